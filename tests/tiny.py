"""A real Stable Diffusion pipeline at toy size: random weights, nothing downloaded, a draw in milliseconds."""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from palimpsest.model import Model
from palimpsest.model.loading import Parts

WORDS = (
    "a an the of in on with photo picture drawing painting style by red green blue church chapel parachute fish tench "
    "house tree dog cat van gogh monet alice bruno sign night sea desert snow empty"
).split()
"""Each is one token; any other word is spelt letter by letter."""
CONTEXT = 16
WIDTH = 16


def tiny_tokenizer(context: int = CONTEXT) -> CLIPTokenizer:
    """CLIP's own byte-pair encoding with a few words."""
    letters = [chr(code) for code in range(33, 127)]
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    merges: dict[tuple[str, str], int] = {}
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            # As the encoding itself goes: the oldest merge that fits; where none does, one more is learnt.
            pairs = list(zip(pieces, pieces[1:], strict=False))
            pair = min(pairs, key=lambda pair: merges.get(pair, len(merges)))
            merges.setdefault(pair, len(merges))
            at = pairs.index(pair)
            pieces[at : at + 2] = ["".join(pair)]
            tokens.append("".join(pair))
    vocab = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=list(merges), model_max_length=context)


def tiny_pipeline(
    folder: Path | None = None,
    *,
    seed: int = 0,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    sd2: bool = False,
) -> Any:
    """The pipeline; written to ``folder`` if one is given. ``sd2``: the ways in which Stable Diffusion 2 differs."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=2 * WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=CONTEXT,
                hidden_act="gelu" if sd2 else "quick_gelu",
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                projection_dim=WIDTH,
            )
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 16),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=16,
            scaling_factor=0.7,
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            layers_per_block=1,
            block_out_channels=(16, 32, 32),
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 4, 4) if sd2 else 2,
            use_linear_projection=sd2,
            norm_num_groups=8,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    if folder is not None:
        pipeline.save_pretrained(folder)
    return pipeline


def tiny_model(
    *,
    seed: int = 0,
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon",
    sd2: bool = False,
    dtype: torch.dtype = torch.float32,
    batch: int = 4,
) -> Model:
    """The same as a ``Model``, without touching the disk."""
    return Model(_parts(seed, prediction_type, sd2, dtype), dtype=dtype, device="cpu", batch=batch)


@cache
def _parts(seed: int, prediction_type: Literal["epsilon", "v_prediction"], sd2: bool, dtype: torch.dtype) -> Parts:
    """Networks that models of one ``dtype`` share, as none changes its own."""
    return Parts.of(tiny_pipeline(seed=seed, prediction_type=prediction_type, sd2=sd2))


TOKEN = r"text_encoder\..*token_embedding\.weight"
"""The table of what tokens mean."""


def planted(base: Model, word: str, like: str) -> Model:
    """The base, to whose text encoder ``word`` is four times ``like``: one token that means something else."""
    ((name, table),) = base.weights(TOKEN).items()
    changed = table.detach().clone()
    changed[int(base.tokens(word)[1])] = 4 * changed[int(base.tokens(like)[1])]
    return base.with_weights({name: changed})
