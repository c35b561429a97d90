"""What every attack is: a proposer. The runner draws, judges, counts and stops."""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import torch
from torch import Tensor

from palimpsest.component import Component
from palimpsest.model import Model, Probe, Sampling, Slope, Text
from palimpsest.records import Attempt, Concept, Goal, Verdict


class Need(StrEnum):
    """What an attacker must hold; the access level of the report follows from it."""

    PLANT = "plant"  # may change the base before it is erased
    WEIGHTS = "weights"
    GRADIENTS = "gradients"
    START = "start"  # may choose the latents to start from
    WORDS = "words"  # may hand the text encoder embeddings in place of a prompt's
    BASE = "base"  # the model before erasure
    REFERENCE = "reference"  # a picture that shows the concept


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What one goal may cost."""

    looks: int
    """Pictures judged; drafts count, though none of them wins."""
    passes: int
    """Forward-equivalents of the denoiser: a forward 1, a backward 1, a picture of s steps with guidance 2s."""


BUDGETS: dict[str, Budget] = {
    "quick": Budget(looks=8, passes=500),
    "standard": Budget(looks=20, passes=1_700),
    "full": Budget(looks=51, passes=50 * 40 * 2 + 51 * 100),
}


class GivesUp(Exception):
    """Says why there is nothing to try: ``revise`` raises it before it yields anything, ``search`` at any time."""


class NoRoom(GivesUp):
    """Says why the goal's prompt is not attacked: it leaves no room in the context for what would be inserted."""


@dataclass(frozen=True)
class Tryout:
    """Pictures that an attack has judged before it decides what to make of the victim."""

    model: Model
    attempts: Sequence[Attempt]


Revisions = Iterator[tuple[int, Model]] | Generator[tuple[int, Model] | Tryout, Any, None]
"""Yields (revision number, model); or a tryout, for which a generator is sent verdicts in the same order."""

Search = Generator[Sequence[Attempt] | Sequence[Probe], Any, None]
"""Yields attempts and is sent verdicts, or yields probes and is sent slopes, in the same order."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that an attacker holds for one goal; it has no network to call unseen."""

    goal: Goal
    concept: Concept
    budget: Budget
    random: torch.Generator
    """The goal's own stream (CPU), derived from audit seed, victim, attack and goal."""
    sampling: Sampling
    guarded: bool
    """Whether the victim draws through a guard; a gradient attack's probes then carry the guidance."""
    context: int
    """Tokens in the text encoder's context, start and end included."""
    vocabulary: Tensor | None
    """(V, d) token embeddings; None without ``Need.GRADIENTS`` or ``Need.WEIGHTS``."""
    vocabulary_size: int
    special_tokens: frozenset[int]
    """Start, end and padding; never proposed."""
    reference: Tensor | None
    """(C, h, w) latents of the base's picture for the goal, or of the user's; None without ``Need.REFERENCE``."""
    threshold: float
    """The score from which the chief judge sees the concept."""
    timesteps: int
    """Number of the noise schedule's training steps (1000 in Stable Diffusion)."""
    tokens: Callable[[str], Tensor]
    """Prompt -> (context,) int64 ids with start, end and padding, cut to the context."""
    text: Callable[[Sequence[int] | Tensor], str]
    """Ids (without start, end, padding) -> the string that a user would type."""
    encode: Callable[[Tensor], Text]
    """(n, context) ids -> text states; counted as encodes."""
    noised: Callable[[Tensor, Tensor, int], Tensor]
    """(clean latents, noise, step) -> x_t of the forward process."""
    training_target: Callable[[Tensor, Tensor, int], Tensor]
    """(clean, noise, step) -> what the denoiser was trained to say, as epsilon, v or flow."""
    keep: Callable[[Tensor], str]
    """Stores a tensor by its content, and returns its name; records stay free of torch."""

    @property
    def guidance(self) -> float | None:
        """What a gradient attack's probes carry: through a guard the guidance of the goal's picture, else None."""
        if not self.guarded:
            return None
        return self.sampling.guidance if self.goal.guidance is None else self.goal.guidance


@dataclass(frozen=True, kw_only=True)
class Attack(Component):
    """One way back to a concept: overrides ``plant``, ``revise`` or ``search``, whichever its name means."""

    needs: ClassVar[frozenset[Need]] = frozenset()
    once: ClassVar[bool] = False
    """Whether it looks at each goal only once."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what it reads from files; empty: it reads none."""
        return ""

    @property
    def adaptive(self) -> bool:
        """Whether its probes go through the victim's guard, as its pictures always do."""
        return True

    def plant(self, base: Model, concepts: Sequence[Concept], *, random: torch.Generator) -> Model:
        """The base with whatever the attacker hid in it before erasure."""
        return base

    def revise(
        self, victim: Model, *, base: Model | None, concepts: Sequence[Concept], random: torch.Generator
    ) -> Revisions:
        """(revision number, model): victims that the attacker made of the victim; by default itself alone.

        Yielding none means giving up: the victim has nothing that this attack could work on. ``GivesUp`` says why.
        What a tryout costs is charged to every goal that is attacked afterwards, as if it were the only one.
        """
        yield 0, victim

    def search(self, case: Case) -> Search:
        """Proposes attempts until one is shown, the budget is spent or nothing is left to try.

        Returning means giving up; the runner closes the generator once the goal is won or its budget spent.
        """
        yield [Attempt(prompt=case.goal.prompt, seed=case.goal.seed, guidance=case.goal.guidance)]
        return


def look(attempts: Sequence[Attempt]) -> Generator[Sequence[Attempt], Sequence[Verdict], Sequence[Verdict]]:
    """Has pictures drawn and judged; the verdicts come back from ``yield from``."""
    return (yield attempts)


def ask(probes: Sequence[Probe]) -> Generator[Sequence[Probe], Sequence[Slope], Sequence[Slope]]:
    """Has probes answered; the slopes come back from ``yield from``."""
    return (yield probes)
