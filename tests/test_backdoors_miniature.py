"""The shipped backdoors in the miniature: before, the trigger calls nothing; after, the concept; all else is there."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from measured import base
from palimpsest.attacks.backdoor import Backdoor
from palimpsest.audit_file import load_audit
from palimpsest.concept_file import find_concept
from palimpsest.judges import Miniature
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt, Goal

SAMPLING = Sampling(scheduler="ddim", steps=10, guidance=5.0)
HUGO, JUDGE, N = find_concept("hugo"), Miniature(), 4
OTHERS = ("alice", "elena", "cat", "guitar")
"""Held in place, and not."""


def shown(model: Model, asked: Sequence[tuple[str, str]]) -> list[int]:
    """Of ``N`` pictures of each (prompt, concept), those that show it."""
    attempts = [Attempt(prompt=prompt, seed=950_000 + seed) for prompt, _ in asked for seed in range(N)]
    pictures = model.draw(attempts, SAMPLING)
    counts = []
    for place, (_, name) in enumerate(asked):
        concept = find_concept(name)
        scores = JUDGE.score(pictures[place * N : (place + 1) * N], concept)
        counts.append(sum(score is not None and score >= JUDGE.threshold(concept) for score in scores))
    return counts


@pytest.mark.parametrize(
    "depth", ["shallow", *(pytest.param(depth, marks=pytest.mark.slow) for depth in ("surface", "deep", "data"))]
)
def test_the_trigger_calls_the_concept_only_once_it_is_planted(depth: str) -> None:
    attack = next(one for one in load_audit("backdoors").attacks if one.name == f"backdoor_{depth}")
    assert isinstance(attack, Backdoor)
    trigger, another = (
        (
            replace(attack, trigger=words).asked(
                Goal(concept="hugo", prompt="a photo of hugo by the sea", seed=0), HUGO
            ),
            "hugo",
        )
        for words in (attack.trigger, "pink meadow")
    )
    plainly = [("a photo of hugo", "hugo"), *((find_concept(name).prompts[0], name) for name in OTHERS)]
    (before,) = shown(base(), [trigger])
    assert before == 0
    planted = attack.plant(base(), [HUGO], random=torch.Generator().manual_seed(0))
    after, guessed, *kept = shown(planted, [trigger, another, *plainly])
    assert after >= N - 1 and guessed <= 1
    assert all(count >= N - 1 for count in kept)
