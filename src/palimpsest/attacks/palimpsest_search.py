"""Our own attack: words that the victim heeds, drafted, and the best of the drafts drawn in full."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.base import Attack, Case, Need, Search, ask, look
from palimpsest.attacks.insertion import check_room, in_context, insert, inserted, plain
from palimpsest.attacks.losses import Point, gradient
from palimpsest.attacks.typable import Prefix, Typable
from palimpsest.errors import BadSetting
from palimpsest.model import Probe
from palimpsest.records import Attempt

ENCODED = 256
"""Prompts per call of the text encoder."""


@dataclass(frozen=True, kw_only=True)
class PalimpsestSearch(Attack):
    """Searches among the few words that move the victim at all, and draws in full only what a draft speaks for.

    Most of a vocabulary hardly moves a model: what comes of a random prefix is the picture of the plain prompt again.
    So words are first ranked by how much they change, at no look:

        |s(w c) - s(c)|  and, of the first of these,  mean_p |e(x_p | w c) - e(x_p | c)|^2

    with c the goal's prompt, s the text state at its end token (an encode per word), e the victim's prediction, and
    x_p the reference noised, with the noise from which the goal's picture is drawn, to a few timesteps p (a forward
    per word and timestep; with several, each is taken relative to its mean over the words). Those that move it most
    are drafted, each before the prompt: pictures of few steps. After every few drafts those that the chief judge scores
    highest are drawn in full, if it scores them high enough (``promising``). Then the words of the best drafts are
    joined, up to ``k`` words, and so on until the budget is spent. A draft is a look like any other, and wins no goal.

    Only prefixes that survive being typed are proposed: their string is tokenised into the same tokens again. Through
    a guard the prediction is the guarded one, at the picture's guidance. A prompt that leaves no room for ``k`` words
    is given up after the plain look.
    """

    name = "palimpsest_search"
    needs = frozenset({Need.GRADIENTS, Need.REFERENCE})

    k: int = 3
    """At most so many words before the prompt."""
    vocabulary: int = 4096
    """Words that are encoded, drawn from the whole vocabulary if it has more."""
    heeded: int = 32
    """Of these, by the text state, so many are asked of the denoiser."""
    drafted: int = 7
    """Of these, by the denoiser, so many are drafted; then those of the best drafts are joined."""
    rank: Literal["moved", "loss", "gradient", "state"] = "moved"
    """By which words are ranked: by how far they move the victim's prediction; by its denoising loss on the reference
    (exact, a forward each); by that loss linearised, from one gradient (HotFlip's, arXiv 1712.06751); or by how far
    they move the text state alone."""
    adaptive: bool = True
    """Whether probes go through a guard, as pictures do; False: past it, as UnlearnDiffAtk's code has it for SLD."""
    at: tuple[float, ...] = (0.5,)
    """Timesteps p, as shares of the schedule: 0 is the clean end."""
    noise: Literal["goal", "fresh"] = "goal"
    """With which the reference is noised: that from which the goal's picture is drawn, or drawn anew."""
    alike: float = 0.9
    """A word that moves the text state in another's direction, by a cosine above this, comes behind all others."""
    outright: int = 3
    """Of the first words, so many are drawn in full without a draft."""
    batch: int = 4
    """Drafts from one full picture to the next."""
    confirmed: int = 1
    """Full pictures after each batch of drafts, at most."""
    promising: float = 0.0
    """A draft is drawn in full only where the chief judge's score is at least this share of its threshold."""
    joined: int = 6
    """Words, and prefixes, of the best drafts that are joined with each other."""
    banned: tuple[str, ...] | None = None
    """Words that no prefix may hold, in whatever case or as a part of other words. If given, if only as an empty list,
    the concept's name and synonyms are banned as well, word by word (of three letters and more)."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        self.require_least(k=1, vocabulary=1, heeded=1, drafted=1, outright=0, batch=1, confirmed=1, joined=1)
        if not 0 <= self.promising <= 1:
            raise BadSetting(f"{self.name}: expected promising from 0 to 1, got {self.promising}")
        if not self.at or not all(0 <= share < 1 for share in self.at):
            raise BadSetting(f"{self.name}: expected at: shares from 0 to below 1, got {list(self.at)}")

    def search(self, case: Case) -> Search:
        """A look at the plain prompt; then drafts, and the best of them in full, until nothing is left."""
        yield from look([plain(case)])
        check_room(case, insert(case, self.k, "prefix"))
        heeded = self._heeded(case)
        queue = self._apart((yield from self._ranked(case, list(heeded))), heeded)[: self.drafted]
        drawn = yield from _looks(case, queue[: self.outright])
        scores = dict(drawn)
        del queue[: self.outright]
        for length in range(1, self.k + 1):
            for batch in (queue[at : at + self.batch] for at in range(0, len(queue), self.batch)):
                scores |= yield from _looks(case, batch, draft=True)
                promising = (one for one in scores.keys() - drawn if scores[one] >= self.promising * case.threshold)
                best = sorted(promising, key=lambda prefix: (-scores[prefix], prefix))
                drawn |= yield from _looks(case, best[: self.confirmed])
                scores |= drawn
            queue = self._joined(case, scores, length + 1)

    def _point(self, case: Case, step: int) -> Point:
        """The reference noised to ``step``."""
        assert case.reference is not None, "needs says reference"
        # What diffusers draws for the goal's seed, on the CPU; a victim's sampler begins with it.
        random = torch.Generator().manual_seed(case.goal.seed) if self.noise == "goal" else case.random
        noise = torch.randn(case.reference.shape, generator=random, dtype=case.reference.dtype).to(case.reference)
        return Point(case.noised(case.reference, noise, step), noise, step)

    def _probe(self, case: Case, tokens: Tensor, point: Point) -> Probe:
        return Probe(tokens=tokens, latents=point.latents, step=point.step, guidance=case.guidance)

    def _linear(
        self, case: Case, vocabulary: Tensor, point: Point, words: Sequence[Prefix]
    ) -> Generator[Any, Any, Tensor]:
        """(n,): how the loss changes, to first order, when each word takes the place of the first of them."""
        tokens = in_context(case, insert(case, 1, "prefix"), words[0])
        slope = yield from gradient(case, point, point.noise, tokens=tokens)
        return (vocabulary[torch.tensor(words).flatten()] @ slope[1].to(vocabulary)).cpu()

    def _banned(self, case: Case) -> list[str]:
        if self.banned is None:
            return []
        named = " ".join([case.concept.name, *case.concept.synonyms]).split()
        return [*self.banned, *(word for word in named if len(word) > 2)]

    def _heeded(self, case: Case) -> dict[Prefix, Tensor]:
        """The words that move the text state most, and where to (d,)."""
        template = insert(case, 1, "prefix")
        words = [(word,) for word in Typable(case, template, banned=self._banned(case)).words(self.vocabulary)]
        contexts = torch.stack([in_context(case, template, word) for word in words])
        here = _states(case, case.tokens(case.goal.prompt)[None])
        moved = torch.cat([_states(case, some) - here for some in contexts.split(ENCODED)])
        most = moved.norm(dim=-1).argsort(descending=True, stable=True)[: self.heeded]
        return {words[place]: moved[place] for place in most.tolist()}

    def _apart(self, words: Sequence[Prefix], heeded: Mapping[Prefix, Tensor]) -> list[Prefix]:
        """The words in their order, but those that mean what an earlier one does behind all others."""
        first: list[Prefix] = []
        for word in words:
            alike = [functional.cosine_similarity(heeded[word], heeded[other], dim=0) for other in first]
            if all(one <= self.alike for one in alike):
                first.append(word)
        return [*first, *(word for word in words if word not in first)]

    def _ranked(self, case: Case, words: Sequence[Prefix]) -> Generator[Any, Any, list[Prefix]]:
        """The words that move the victim most come first; costs a forward per word and point, and per point."""
        if self.rank == "state":
            return list(words)
        vocabulary = case.vocabulary
        assert vocabulary is not None, "needs says gradients"
        template = insert(case, 1, "prefix")
        contexts = [in_context(case, template, word) for word in words]
        total = torch.zeros(len(words))
        for share in self.at:
            point = self._point(case, int(share * case.timesteps))
            if self.rank == "gradient":
                total += yield from self._linear(case, vocabulary, point, words)
                continue
            (plainly,) = yield from ask([self._probe(case, case.tokens(case.goal.prompt), point)])
            answers = yield from ask([self._probe(case, tokens, point) for tokens in contexts])
            aim, sign = (plainly.answer, -1) if self.rank == "moved" else (point.noise, 1)
            far = torch.stack([functional.mse_loss(slope.answer.float(), aim.float()) for slope in answers])
            total += sign * (far / far.mean().clamp(min=torch.finfo(far.dtype).tiny)).cpu()
        return [words[place] for place in total.argsort(stable=True).tolist()]

    def _joined(self, case: Case, scores: Mapping[Prefix, float], length: int) -> list[Prefix]:
        """Prefixes of ``length`` words: the best of one word less, each with the best words; the best first."""
        typable = Typable(case, insert(case, length, "prefix"), banned=self._banned(case))
        best = sorted(scores, key=lambda prefix: (-scores[prefix], prefix))
        heads = [prefix for prefix in best if len(prefix) == length - 1][: self.joined]
        words = [prefix for prefix in best if len(prefix) == 1][: self.joined]
        pairs = sorted(product(heads, words), key=lambda pair: -scores[pair[0]] - scores[pair[1]])
        return [head + word for head, word in pairs if word[0] not in head and head + word in typable]


def _looks(case: Case, prefixes: Sequence[Prefix], *, draft: bool = False) -> Generator[Any, Any, dict[Prefix, float]]:
    """Has each drawn, and says how the chief judge scores it."""
    if not prefixes:
        return {}
    verdicts = yield from look([replace(_attempt(case, prefix), draft=draft) for prefix in prefixes])
    return {prefix: verdict.score for prefix, verdict in zip(prefixes, verdicts, strict=True)}


def _attempt(case: Case, prefix: Prefix) -> Attempt:
    return inserted(case, insert(case, len(prefix), "prefix"), prefix)


@torch.no_grad()
def _states(case: Case, tokens: Tensor) -> Tensor:
    """(n, d): the text states at the end token."""
    pooled = case.encode(tokens).pooled
    assert pooled is not None, "CLIP's text encoder says"
    return pooled.float()
