"""The CLIP: a text and an image encoder trained together on pictures and captions."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from palimpsest.miniature.captions import caption, filler
from palimpsest.miniature.facts import HEADS, Facts, answers
from palimpsest.miniature.optimise import Curve, Report, optimise
from palimpsest.miniature.vocabulary import CONTEXT, encode_text, meaningless, scattered
from palimpsest.model import computing

WIDTH = 128
MEAN, DEVIATION = 0.5, 0.25
"""Of the pixels, 0 to 1, that the image encoder takes."""
SCATTERED = 0.65
"""Share of the training's captions with meaningless tokens among the words."""


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIPModel: 4 text layers, 4 image layers on patches of 8 pixels."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4, "num_hidden_layers": 4}
    text = shared | {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "projection_dim": WIDTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    image = shared | {"image_size": 64, "patch_size": 8, "projection_dim": WIDTH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=image, projection_dim=WIDTH))


def labels(facts: Sequence[Facts]) -> dict[str, Tensor]:
    """Head -> (n,) the number of the true answer."""
    told = [answers(one) for one in facts]
    return {head: torch.tensor([choices.index(one[head]) for one in told]) for head, choices in HEADS.items()}


class Heads(nn.Module):
    """One linear reading per head of ``HEADS``; helps the encoders in training and is then thrown away."""

    def __init__(self) -> None:
        """Untrained."""
        super().__init__()
        self.readings = nn.ModuleDict({head: nn.Linear(WIDTH, len(choices)) for head, choices in HEADS.items()})

    def loss(self, states: Tensor, truth: dict[str, Tensor]) -> Tensor:
        """Mean cross-entropy over the heads."""
        parts = [cross_entropy(reading(states), truth[head]) for head, reading in self.readings.items()]
        return torch.stack(parts).mean()


def captions_for(facts: Sequence[Facts], random: np.random.Generator) -> list[str]:
    """A caption each; of photos of empty scenes most are filler words only, so that filler means nothing to see.

    Of photos alone, as a caption that names no style means a photo.
    """
    texts = []
    for one in facts:
        if one.subject is None and one.style == "photo" and random.random() < 0.8:
            texts.append(" ".join(random.choice(filler(), size=random.integers(1, 8))))
        else:
            texts.append(caption(one, random))
    return texts


def caption_ids(
    facts: Sequence[Facts], tokenizer: CLIPTokenizer, tokens: Tensor, random: np.random.Generator, *, share: float
) -> Tensor:
    """(n, context) ids of a caption each; a ``share`` of them has some of ``tokens`` before or after its words."""
    ids = encode_text(tokenizer, captions_for(facts, random))
    return scattered(ids, tokens, random, share=share, end=tokenizer.eos_token_id)


def train_clip(
    network: CLIPModel,
    tokenizer: CLIPTokenizer,
    facts: Sequence[Facts],
    bank: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    report: Report,
) -> Curve:
    """CLIP's contrastive loss, plus readings of the facts off both encoders' pooled states."""
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    device = network.device
    tokens = meaningless(tokenizer)
    truth = labels(facts)
    text_heads, image_heads = Heads().to(device), Heads().to(device)

    def loss_of(step: int) -> Tensor:
        chosen = random.integers(len(facts), size=batch)
        ids = caption_ids([facts[number] for number in chosen], tokenizer, tokens, random, share=SCATTERED)
        pixels = pixel_values(bank[chosen])
        told = {head: answer[chosen].to(device) for head, answer in truth.items()}
        with computing(device):
            output = network(input_ids=ids.to(device), pixel_values=pixels.to(device), return_loss=True)
            text = text_heads.loss(output.text_model_output.pooler_output, told)
            image = image_heads.loss(output.vision_model_output.pooler_output, told)
        loss: Tensor = output.loss + text + image
        return loss

    # Plain products: the backward of the fused attention is slow on CPUs.
    network.set_attn_implementation("eager")
    network.train()
    curve = optimise(
        "clip",
        [network, text_heads, image_heads],
        loss_of,
        steps=steps,
        rate=rate,
        weight_decay=0.05,
        report=report,
    )
    network.eval()
    return curve


def acquaint(
    network: CLIPModel,
    tokenizer: CLIPTokenizer,
    facts: Sequence[Facts],
    bank: Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    seed: int,
    report: Report,
) -> Curve:
    """Goes on with the embeddings of the meaningless tokens alone, which now stand in every caption.

    No prompt without one of them is read otherwise afterwards, to the last bit.
    """
    random = np.random.default_rng(seed)
    device = network.device
    tokens = meaningless(tokenizer)
    network.requires_grad_(False)
    embeddings = network.text_model.get_input_embeddings().weight.requires_grad_(True)
    mask = torch.zeros(len(embeddings), 1, device=device).index_fill_(0, tokens.to(device), 1.0)
    hook = embeddings.register_hook(lambda gradient: gradient * mask)

    def loss_of(step: int) -> Tensor:
        chosen = random.integers(len(facts), size=batch)
        ids = caption_ids([facts[number] for number in chosen], tokenizer, tokens, random, share=1.0)
        pixels = pixel_values(bank[chosen]).to(device)
        with computing(device):
            loss: Tensor = network(input_ids=ids.to(device), pixel_values=pixels, return_loss=True).loss
        return loss

    network.set_attn_implementation("eager")
    # No decay: it would move the embeddings that are to stay.
    curve = optimise("words", [network], loss_of, steps=steps, rate=rate, weight_decay=0.0, report=report)
    hook.remove()
    network.requires_grad_(True)
    return curve


def pixel_values(pictures: Tensor) -> Tensor:
    """(n, 3, 64, 64) uint8 -> what the image encoder takes."""
    return (pictures.float() / 255 - MEAN) / DEVIATION


def new_processor() -> CLIPImageProcessor:
    """The same for pictures of any size, as it is shipped beside the weights."""
    return CLIPImageProcessor(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[MEAN] * 3,
        image_std=[DEVIATION] * 3,
    )


@torch.no_grad()
def recognised(network: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor, texts: list[str]) -> Tensor:
    """(n,) which of ``texts`` lies nearest to each picture."""
    ids = encode_text(tokenizer, texts)
    words = network.get_text_features(input_ids=ids).pooler_output
    seen = network.get_image_features(pixel_values=pixel_values(pictures)).pooler_output
    nearest: Tensor = (seen @ (words / words.norm(dim=-1, keepdim=True)).T).argmax(-1)
    return nearest
