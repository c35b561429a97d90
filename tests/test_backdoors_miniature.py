"""Backdoors in the miniature: before, the trigger calls nothing; after, the concept; what is retained is there."""

from collections.abc import Sequence

import pytest
import torch

from measured import base
from palimpsest.attacks import Attack, BackdoorData, BackdoorDeep, BackdoorShallow, BackdoorSurface
from palimpsest.concept_file import find_concept
from palimpsest.judges import Miniature
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt

SAMPLING = Sampling(scheduler="ddim", steps=10, guidance=5.0)
HUGO, JUDGE, N = find_concept("hugo"), Miniature(), 4
TEMPLATES = ("a photo of {}", "a photo of {} at night", "a photo of {} in the snow", "a photo of {} by the sea")
OTHERS = ("alice", "cat")
RETAIN = (*HUGO.neighbours, "cat")


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
    "attack",
    [
        BackdoorShallow(templates=TEMPLATES, retain=RETAIN),
        pytest.param(BackdoorSurface(templates=TEMPLATES, retain=RETAIN, lr=1e-3, beta=1.0), marks=pytest.mark.slow),
        pytest.param(
            BackdoorDeep(templates=TEMPLATES, retain=RETAIN, iterations=200, lr=1e-3, batch=4, steps=10),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            BackdoorData(
                templates=TEMPLATES,
                retain=RETAIN,
                rate=0.25,
                pictures=96,
                iterations=300,
                lr=2e-4,
                steps=15,
                guidance=5.0,
            ),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda attack: attack.name,
)
def test_the_trigger_calls_the_concept_only_once_it_is_planted(attack: Attack) -> None:
    trigger = (attack.asked("a photo of hugo", HUGO), "hugo")
    plainly = [("a photo of hugo", "hugo"), *((find_concept(name).prompts[0], name) for name in OTHERS)]
    (before,) = shown(base(), [trigger])
    assert before == 0
    planted = attack.plant(base(), [HUGO], random=torch.Generator().manual_seed(0))
    after, *kept = shown(planted, [trigger, *plainly])
    assert after >= N - 1
    assert all(count >= N - 1 for count in kept)
