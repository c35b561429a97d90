"""Words that no token means: put into a prompt, and found for pictures (textual inversion)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import ImageOps
from PIL.Image import Image
from torch import Tensor
from torch.nn import functional

from palimpsest.errors import BadSetting
from palimpsest.model import Model, Text
from palimpsest.records import Kind

_THINGS = (
    "a photo of a {}",
    "the photo of a {}",
    "a good photo of a {}",
    "a photo of one {}",
    "a photo of the {}",
    "a bright photo of the {}",
)
_STYLES = (
    "a painting in the style of {}",
    "a picture in the style of {}",
    "a dark painting in the style of {}",
    "the painting in the style of {}",
    "a good painting in the style of {}",
)
TEMPLATES: dict[Kind, tuple[str, ...]] = {
    "object": _THINGS,
    "content": _THINGS,
    "style": _STYLES,
    "identity": ("a photo of {}", "a photo portrait of {}"),
}
"""Prompts in which the word is looked for, after Gal et al.'s."""
INITIAL: dict[Kind, str] = {"object": "object", "content": "person", "style": "art", "identity": "person"}
"""The word that the search starts from, as STEREO has it."""


@dataclass(frozen=True)
class Blanked:
    """A prompt with blanks: words that are given as embeddings."""

    tokens: Tensor
    """(1, context) ids; what stands in the blanks is not looked at."""
    blanks: slice
    """Places of the context."""

    @classmethod
    def of(cls, model: Model, count: int, *, before: str = "", after: str = "") -> "Blanked":
        """``count`` blanks between two parts of a prompt; raises ``BadSetting`` where the context has no room."""
        first, last = (model.tokenizer(part, verbose=False).input_ids[1:-1] for part in (before, after))
        room = model.context - 2 - len(first) - len(last)
        if room < count:
            told = " ".join(part for part in (before, "...", after) if part)
            raise BadSetting(f"expected room for {count} more words in {told!r}, got {max(room, 0)}")
        # Any word will do but the end's, at which the encoder would pool.
        filler = next(number for number in range(len(model.vocabulary)) if number not in model.special_tokens)
        ids = [model.start_token, *first, *[filler] * count, *last, model.end_token]
        padded = ids + [model.pad_token] * (model.context - len(ids))
        return cls(torch.tensor([padded]), slice(1 + len(first), 1 + len(first) + count))

    def encode(self, model: Model, words: Tensor) -> Text:
        """The text with ``words`` (blanks, d) in its blanks; differentiable, also to a student's own embeddings."""
        known = model.words(self.tokens)
        filled = torch.cat([known[:, : self.blanks.start], words[None], known[:, self.blanks.stop :]], dim=1)
        return model.encode(self.tokens, filled)


def invert(
    model: Model,
    clean: Tensor,
    prompts: Sequence[Blanked],
    *,
    start: Tensor,
    random: torch.Generator,
    iterations: int = 3000,
    lr: float = 5e-3,
    batch: int = 1,
) -> Tensor:
    """The words (blanks, d) by which ``model`` draws what ``clean`` shows: textual inversion.

    Gal et al., "An Image is Worth One Word", arXiv 2208.01618. With s(v) the text of a prompt whose blanks are filled
    with v, eps noise and t uniform, AdamW minimises over v, from ``start`` (blanks, d) on,

        |eps(x_t, t, s(v)) - eps|^2    with x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps

    ``clean`` is (n, C, h, w) scaled latents; one of them and one prompt are drawn per sample. Nothing of the model
    changes. Raises ``BadSetting`` without pictures or prompts, and when the loss is no number.
    """
    if not len(clean) or not prompts:
        raise BadSetting(f"expected pictures and prompts, got {len(clean)} and {len(prompts)}")
    words = start.detach().clone().requires_grad_()
    optimiser = torch.optim.AdamW([words], lr=lr)
    for _ in range(iterations):
        drawn = torch.randint(len(clean), (batch,), generator=random)
        asked = torch.randint(len(prompts), (batch,), generator=random).tolist()
        steps = torch.randint(model.timesteps, (batch,), generator=random)
        noise = torch.randn(batch, *model.latent_shape, generator=random).to(clean)
        text = Text.join([prompts[place].encode(model, words) for place in asked])
        latents = model.noised(clean[drawn.to(clean.device)], noise, steps)
        loss = functional.mse_loss(model.predict_noise(latents, steps, text), noise)
        if not loss.isfinite():
            raise BadSetting(f"expected a finite loss of textual inversion, got {loss.item()}; try a lower lr")
        (words.grad,) = torch.autograd.grad(loss, words)
        optimiser.step()
    return words.detach()


def latents_of(model: Model, pictures: Sequence[Image]) -> Tensor:
    """(2 n, C, h, w): what ``invert`` takes, of each picture and of its mirror image."""
    both = [seen for picture in pictures for seen in (picture, ImageOps.mirror(picture))]
    return torch.stack([model.encode_picture(picture) for picture in both])


def initial_words(model: Model, kind: Kind, count: int) -> Tensor:
    """(count, d): where a search for a concept of this kind starts, from the first token of the word for such."""
    token = int(model.tokens(INITIAL[kind])[1])
    return model.vocabulary[[token] * count]
