"""Our own attack: the gradient ranks words, the network itself compares them, on the noise of the picture wanted."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from palimpsest.attacks.base import Attack, Case, Need, Search, ask, look
from palimpsest.attacks.insertion import LENGTHS, Template, check_length, has_room, in_context, insert, inserted, plain
from palimpsest.attacks.typable import Prefix, Typable
from palimpsest.errors import BadSetting
from palimpsest.model import Probe, Slope


class Point(NamedTuple):
    """A place on the way from noise to the reference at which every prefix is asked."""

    latents: Tensor
    """(C, h, w): x_t."""
    step: int
    noise: Tensor
    """(C, h, w): the true epsilon of ``latents``."""
    without: Tensor
    """(C, h, w): what the victim says of them without a prompt."""


@dataclass(frozen=True, kw_only=True)
class PalimpsestSearch(Attack):
    r"""Searches the prefix c' with which the victim leads the goal's own noise to a picture of the concept.

    As UnlearnDiffAtk (arXiv 2310.11868) it knows the victim and one picture x of the concept, and lowers the victim's
    denoising loss on it; there is no original model. The loss is relative to that without a prompt:

        min_c'  mean_p  |eps_p - e(x_p) - g (e(x_p | c') - e(x_p))|^2 / |eps_p - e(x_p)|^2

    over a few points p, with e the victim's prediction, e(x_p) that without a prompt, g 1 unless set, and x_p the
    picture noised to a timestep drawn from the noisy part of the schedule, with the noise from which the goal's picture
    will be drawn.

    The points stay the same until the search begins anew, so that differences between prefixes are never those of the
    noise. It begins with the best of some random prefixes. A round takes the loss's gradient with respect to the words,
    averaged over the points; per slot the words that lower the linearised loss most (as HotFlip, arXiv 1712.06751, and
    GCG, arXiv 2307.15043); draws candidates that differ from the best prefix in one or more slots; and asks for the
    exact loss of each, forwards only. After every few rounds the best prefix that was not looked at yet is. Then it
    begins anew, until the budget is spent.

    Only prefixes that survive being typed are proposed: their string is tokenised into the same tokens again. Through
    a guard the loss is that of the guarded prediction, at the picture's guidance. A prompt that leaves no room for the
    prefix is given up after the plain look. Looks are never drafts: the first hit of any kind ends a goal, so none
    could be confirmed.
    """

    name = "palimpsest_search"
    needs = frozenset({Need.GRADIENTS, Need.REFERENCE})

    k: int | None = None
    """Tokens in the prefix; None: as many as ``unlearn_diff`` uses (content 5, other kinds 3)."""
    points: int = 4
    """Timesteps, one drawn from each of so many equal parts of the range, at which every prefix is asked."""
    lowest: float = 0.7
    """Where the range begins, as a share of the schedule: 0 is the clean end."""
    highest: float = 1.0
    """Where it ends."""
    noise: Literal["goal", "fresh"] = "goal"
    """Of the points: that from which the goal's picture is drawn, or drawn anew for each point."""
    guidance: float = 1.0
    """g; 1: the loss of the conditional prediction, as UnlearnDiffAtk's. Through a guard it is the picture's."""
    candidates: int = 8
    """Prefixes asked in a round; each costs a forward at every point."""
    top: int = 16
    """Words per slot, by the gradient, from which candidates are drawn."""
    changes: int | None = None
    """At most so many slots of a candidate differ from the best prefix; None: any."""
    rounds: int = 6
    """Until it begins anew."""
    every: int = 2
    """Rounds from one look to the next."""
    banned: tuple[str, ...] | None = None
    """Words that no prefix may hold, in whatever case or as a part of other words. If given, if only as an empty list,
    the concept's name and synonyms are banned as well, word by word (of three letters and more)."""

    def __post_init__(self) -> None:
        """Refuses a setting that is out of range."""
        check_length(self.name, self.k)
        self.require_least(points=1, candidates=1, top=1, changes=1, rounds=1, every=1)
        if not 0 <= self.lowest < self.highest <= 1:
            raise BadSetting(
                f"{self.name}: expected 0 <= lowest < highest <= 1, got lowest {self.lowest}, highest {self.highest}"
            )
        if self.every > self.rounds:
            raise BadSetting(f"{self.name}: expected every <= rounds ({self.rounds}), got {self.every}")

    def search(self, case: Case) -> Search:
        """A look at the plain prompt; then rounds and looks, over and over."""
        yield from look([plain(case)])
        template = insert(case, self.k or LENGTHS[case.concept.kind], "prefix")
        if not has_room(case, template):
            return
        typable = Typable(case, template, banned=self._banned(case))
        seen: set[Prefix] = set()
        while True:
            points = yield from self._points(case)
            losses = yield from self._losses(case, template, typable.random(self.candidates), points)
            gradient_of = None
            for done in range(1, self.rounds + 1):
                best = min(losses, key=losses.__getitem__)
                if best != gradient_of:
                    ranks = typable.ranked((yield from self._gradient(case, template, best, points)), self.top)
                    gradient_of = best
                near = typable.near(best, ranks, self.candidates, changes=self.changes, known=losses)
                losses |= yield from self._losses(case, template, near, points)
                unseen = [prefix for prefix in losses if prefix not in seen]
                if done % self.every == 0 and unseen:
                    shown = min(unseen, key=losses.__getitem__)
                    seen.add(shown)
                    yield from look([inserted(case, template, shown)])

    def _banned(self, case: Case) -> list[str]:
        if self.banned is None:
            return []
        named = " ".join([case.concept.name, *case.concept.synonyms]).split()
        return [*self.banned, *(word for word in named if len(word) > 2)]

    def _points(self, case: Case) -> Generator[Sequence[Probe], Sequence[Slope], list[Point]]:
        assert case.reference is not None, "needs says reference"
        places = []
        part = (self.highest - self.lowest) / self.points
        for number in range(self.points):
            share = self.lowest + part * (number + float(torch.rand((), generator=case.random)))
            step = min(int(share * case.timesteps), case.timesteps - 1)
            # What diffusers draws for the goal's seed, on the CPU; a victim's sampler begins with it.
            random = torch.Generator().manual_seed(case.goal.seed) if self.noise == "goal" else case.random
            noise = torch.randn(case.reference.shape, generator=random, dtype=case.reference.dtype).to(case.reference)
            places.append((case.noised(case.reference, noise, step), step, noise))
        without = yield from ask(
            [
                Probe(tokens=case.tokens(""), latents=latents, step=step, guidance=case.guidance)
                for latents, step, _ in places
            ]
        )
        return [Point(*place, slope.answer) for place, slope in zip(places, without, strict=True)]

    def _probe(self, case: Case, tokens: Tensor, point: Point, wrt: Literal["words"] | None = None) -> Probe:
        guidance = self.guidance if case.guidance is None else 1.0
        # In single precision at least, whatever the network computes in: candidates differ by little.
        wanted = (point.noise - point.without.to(point.noise)).float()
        without = point.without.float()

        def loss(answer: Tensor, _: Tensor | None) -> Tensor:
            said = guidance * (answer.float() - without.to(answer.device))
            target = wanted.to(answer.device)
            return functional.mse_loss(said, target) / target.square().mean().clamp(min=torch.finfo(target.dtype).tiny)

        return Probe(tokens=tokens, latents=point.latents, step=point.step, guidance=case.guidance, loss=loss, wrt=wrt)

    def _gradient(
        self, case: Case, template: Template, prefix: Prefix, points: Sequence[Point]
    ) -> Generator[Sequence[Probe], Sequence[Slope], Tensor]:
        """(k, V): how the loss changes, to first order, with the word in each slot; costs a probe per point."""
        assert case.vocabulary is not None, "needs says gradients"
        tokens = in_context(case, template, prefix)
        slopes = yield from ask([self._probe(case, tokens, point, "words") for point in points])
        gradients = [slope.gradient for slope in slopes if slope.gradient is not None]
        assert len(gradients) == len(points), "a probe with wrt is answered with a gradient"
        mean = torch.stack(gradients).mean(dim=0)[1 : 1 + len(prefix)]
        return mean.to(case.vocabulary) @ case.vocabulary.mT

    def _losses(
        self, case: Case, template: Template, prefixes: Sequence[Prefix], points: Sequence[Point]
    ) -> Generator[Sequence[Probe], Sequence[Slope], dict[Prefix, float]]:
        """The exact loss of each; costs a forward per prefix and point."""
        if not prefixes:
            return {}
        contexts = [in_context(case, template, prefix) for prefix in prefixes]
        slopes = yield from ask([self._probe(case, tokens, point) for tokens in contexts for point in points])
        each = torch.tensor([slope.loss for slope in slopes]).reshape(len(prefixes), len(points)).mean(dim=1)
        return dict(zip(prefixes, each.tolist(), strict=True))
