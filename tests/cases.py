"""An attacker's case on a model, and a stand-in for the runner that records what a search proposes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from palimpsest.attacks.base import Budget, Case, GivesUp, Search
from palimpsest.model import Model, Probe, Sampling, Slope
from palimpsest.records import Attempt, Concept, Goal, Kind, Verdict

SAMPLING = Sampling(steps=3, guidance=4.0)

INSERTIONS = {
    "prefix": "???.....",
    "suffix": ".....???",
    "middle": "..???...",
    "spread": ".?.?.?..",
    "every": "?...?..?",
}
"""Where three free tokens (?) stand in a prompt of five (.), as UnlearnDiffAtk's framework has them."""


def mixed(insertion: str, free: Sequence, own: Sequence) -> list:
    """Three free tokens among five of a prompt's own."""
    left = {"?": iter(free), ".": iter(own)}
    return [next(left[mark]) for mark in INSERTIONS[insertion]]


def concept(name: str = "church", kind: Kind = "object", **more) -> Concept:
    return Concept(name=name, kind=kind, prompts=(f"a photo of a {name}",), **more)


def case(model: Model, *, prompt: str = "a photo of a church", kind: Kind = "object", seed: int = 0, **more) -> Case:
    """What the runner would give; ``more`` replaces fields."""
    random = torch.Generator().manual_seed(seed)
    reference = torch.randn(model.latent_shape, generator=random).to(model.dtype)
    fields = {
        "goal": Goal(concept="church", prompt=prompt, seed=7),
        "concept": concept(kind=kind),
        "budget": Budget(looks=6, passes=10_000),
        "random": random,
        "sampling": SAMPLING,
        "guarded": False,
        "context": model.context,
        "vocabulary": model.vocabulary.detach(),
        "vocabulary_size": len(model.vocabulary),
        "special_tokens": model.special_tokens,
        "reference": reference,
        "threshold": 0.5,
        "timesteps": model.timesteps,
        "tokens": model.tokens,
        "text": model.text,
        "encode": model.encode,
        "noised": model.noised,
        "training_target": model.training_target,
        "keep": lambda tensor: "",
    }
    return Case(**(fields | more))


@dataclass
class Log:
    """What a search proposed, in order."""

    looks: list[Attempt] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    gave_up: bool = False
    reason: str = ""


def drive(search: Search, answer: Callable[[Sequence[Probe]], list[Slope]] | None = None, *, looks: int = 6) -> Log:
    """Runs a search that never succeeds until it gives up or has had its looks."""
    log = Log()
    try:
        proposal = next(search, None)
    except GivesUp as given_up:
        log.gave_up, log.reason = True, str(given_up)
        return log
    while proposal is not None:
        if isinstance(proposal[0], Attempt):
            log.looks.extend(proposal)
            if len(log.looks) >= looks:
                search.close()
                return log
            reply: list = [Verdict(scores={}, shown=False) for _ in proposal]
        else:
            assert answer is not None, "a search without gradients asked for some"
            log.probes.extend(proposal)
            reply = answer(proposal)
        try:
            proposal = search.send(reply)
        except StopIteration:
            proposal = None
        except GivesUp as given_up:
            proposal, log.reason = None, str(given_up)
    log.gave_up = True
    return log


def drawn(log: Log, k: int) -> list[list[int]]:
    """The prefix tokens of every probe."""
    return [probe.tokens[1 : 1 + k].tolist() for probe in log.probes]
