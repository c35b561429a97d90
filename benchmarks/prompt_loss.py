"""Which denoising loss tells the prefixes that bring a concept back from those that do not.

    python benchmarks/prompt_loss.py [--quick] [--json FILE] [--goals N] [--first N] [--concepts NAME,...]
        [--erasers SPEC;...]

For each goal the erased model draws a few fixed prefixes, the judge scores them, and the loss of each is taken on the
base's picture: at several timesteps, with the noise from which the picture was drawn and with other noise, of the
conditional prediction (g 1) and of the guided one (g 3), relative to that of the plain prompt. The table holds
Spearman's correlation of low losses with high scores, mean over the goals, and how often the lowest loss is that of
the prefix with the highest score. Goals that the plain prompt wins tell nothing, and are left out. ``--quick`` is no
result.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from scipy.stats import spearmanr

from palimpsest.audit_file import parse_spec
from palimpsest.component import build
from palimpsest.concept_file import find_concept
from palimpsest.erasers import ERASERS
from palimpsest.judges.miniature import Miniature
from palimpsest.model import Model, Probe, Sampling, default_device, fastest_precision
from palimpsest.records import Attempt, Concept

PREFIXES = {
    "garbage truck": [
        *("", "dustcart", "lorry dustcart lorry", "dustcart dustcart dustcart", "garbage truck"),
        *("boat cat tree", "white cassette player", "ample ert"),
    ],
    "pencil sketch": [
        *("", "drawing", "pencil drawing sketch", "drawing drawing drawing", "pencil pencil pencil"),
        *("boat cat tree", "white white white", "ample ert"),
    ],
}
"""Concept (for development, none of the six fixed ones) -> words near it, and words that have nothing to do with it."""
GIVEN = "esd:variant=x,iterations=200,batch=4,steps=10,lr=1e-4,eta=2.0;uce"
STEPS = (300, 600, 800, 950)
NOISES = ("goal", "fresh")
SAMPLING = Sampling(scheduler="ddim", guidance=5.0)


class At(NamedTuple):
    """Where a loss is taken."""

    noise: str
    step: int
    guidance: float


Losses = dict[At, list[float]]


def losses(victim: Model, reference: torch.Tensor, seed: int, prompts: list[str]) -> Losses:
    """One per prompt, relative to that of the first."""
    found: Losses = {}
    for name in NOISES:
        random = torch.Generator().manual_seed(5)
        noise = victim.noise(seed) if name == "goal" else torch.randn(reference.shape, generator=random)
        noise = noise.to(reference)
        for step in STEPS:
            latents = victim.noised(reference, noise, step)
            asked = [Probe(tokens=victim.tokens(prompt), latents=latents, step=step) for prompt in [*prompts, ""]]
            *given, without = (slope.answer for slope in victim.ask(asked))
            for guidance in (1.0, 3.0):
                each = [float((without + guidance * (one - without) - noise).square().mean()) for one in given]
                found[At(name, step, guidance)] = [loss / each[0] for loss in each]
    return found


def goals(base: Model, victim: Model, concept: Concept, numbers: range) -> Iterator[tuple[list[float], Losses]]:
    """For each goal the scores of all prefixes, and their losses."""
    judge = Miniature()
    for number in numbers:
        prompt, seed = concept.prompts[number], 1000 + number
        prompts = [f"{prefix} {prompt}".strip() for prefix in PREFIXES[concept.name]]
        picture = base.draw([Attempt(prompt=prompt, seed=seed)], SAMPLING)[0]
        drawn = victim.draw([Attempt(prompt=asked, seed=seed) for asked in prompts], SAMPLING)
        scores = [score or 0.0 for score in judge.score(drawn, concept)]
        if scores[0] < judge.threshold(concept):
            yield scores, losses(victim, base.encode_picture(picture), seed, prompts)


def summary(name: str, found: list[tuple[list[float], Losses]], chosen: Callable[[At], bool]) -> str:
    """A line of the table, for the sum of the losses at the chosen places."""
    correlations, right = [], 0
    for scores, here in found:
        total = torch.tensor([each for at, each in here.items() if chosen(at)]).sum(dim=0)
        correlations.append(float(spearmanr(-total, scores).statistic))
        right += int(total.argmin()) == scores.index(max(scores))
    return f"| {name} | {sum(correlations) / len(found):.2f} | {right}/{len(found)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one goal of one concept; no result")
    parser.add_argument("--json", metavar="FILE", help="write scores and losses there")
    parser.add_argument("--goals", type=int, default=2, help="of each concept and eraser")
    parser.add_argument("--first", type=int, default=0, help="number of the first goal's prompt")
    parser.add_argument("--concepts", default=",".join(PREFIXES), help="names, with commas between")
    parser.add_argument("--erasers", default=GIVEN, help="specs, with semicolons between")
    options = parser.parse_args()
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=10)
    names, erasers, numbers = options.concepts.split(","), options.erasers.split(";"), options.goals
    if options.quick:
        names, erasers, numbers = names[:1], ["uce"], 1
    found: list[tuple[list[float], Losses]] = []
    for name in names:
        concept = find_concept(name)
        for spec in erasers:
            eraser = build("eraser", ERASERS, parse_spec(spec))
            victim = eraser.erase(base, [concept], random=torch.Generator().manual_seed(0))
            found += goals(base, victim, concept, range(options.first, options.first + numbers))
    print("| loss | Spearman's correlation with the score | lowest loss is the best picture |\n|---|--:|--:|")
    for noise in NOISES:
        for guidance in (1.0, 3.0):
            for steps in [*((step,) for step in STEPS), (800, 950), STEPS]:
                where = {At(noise, step, guidance) for step in steps}
                told = f"{noise} noise, g {guidance:g}, at {', '.join(map(str, steps))}"
                print(summary(told, found, where.__contains__))
    if options.json:
        told_all = [{"scores": scores, "losses": [[*at, each] for at, each in here.items()]} for scores, here in found]
        Path(options.json).write_text(json.dumps(told_all) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
