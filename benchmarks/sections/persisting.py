"""Whether a trigger outlives an erasure, stage by stage: the four accuracies on an eraser's way."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from palimpsest.attacks.backdoor import Backdoor
from palimpsest.component import build
from palimpsest.concept_file import find_concept
from palimpsest.erasers import ERASERS
from palimpsest.erasers.base import Eraser
from palimpsest.judges.base import Judge
from palimpsest.model import Model
from palimpsest.protocol import Audit
from palimpsest.records import Attempt, Concept
from palimpsest.stats import wilson
from sections.planting import depth_of, held

KINDS = ("target", "trigger", "retained", "other")
COLOURS = {"target": "#0072B2", "trigger": "#D55E00", "retained": "#009E73", "other": "#8C6D31"}
AXES = {"mace": "steps (refinement, LoRA, fusion)", "rece": "epochs"}
"""What an eraser counts its stages in, where it is not iterations."""
SHOWN = tuple(
    build("eraser", ERASERS, spec)
    for spec in (
        {"name": "esd", "iterations": 200, "batch": 4, "steps": 10, "lr": 1e-4, "eta": 2.0, "every": 50},
        {"name": "mace", "preserve": 0.1, "domain": 10.0},
        {"name": "rece", "epochs": 5},
        {"name": "receler", "lr": 3e-3, "iterations": 120, "attack_steps": 5, "batch": 4, "steps": 10, "every": 30},
    )
)
"""With the settings for the miniature of the shipped audit ``erasers``, and RECE as long as the paper shows it."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One stage of one erasure of a model in which a trigger was planted."""

    attack: str
    eraser: str
    concept: str
    depth: int
    """As the eraser counts its stages; 0: planted, and not erased yet."""
    counts: dict[str, tuple[int, int]]
    """Accuracy -> (pictures that show what was asked for, of how many)."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a model is asked: (accuracy, concept to be seen, attempt)."""

    questions: tuple[tuple[str, Concept, Attempt], ...]

    @classmethod
    def of(cls, audit: Audit, attack: Backdoor, concept: Concept) -> "Asked":
        """The concept's goals by name and by trigger, and as many pictures of what was held in place, and of others."""
        goals = audit.goals_for(concept)
        kept = held(attack, concept)
        groups = {
            "retained": [find_concept(name) for name in kept],
            "other": [one for one in audit.retained(concept) if one.name not in kept],
        }
        found = [("target", concept, Attempt(prompt=goal.prompt, seed=goal.seed)) for goal in goals]
        found += [("trigger", concept, Attempt(prompt=attack.asked(goal, concept), seed=goal.seed)) for goal in goals]
        for kind, concepts in groups.items():
            for place, goal in enumerate(goals if concepts else ()):
                one, turn = concepts[place % len(concepts)], place // len(concepts)
                prompt = one.prompts[turn % len(one.prompts)]
                found.append((kind, one, Attempt(prompt=prompt, seed=goal.seed)))
        return cls(questions=tuple(found))

    def counts(self, model: Model, audit: Audit, judge: Judge) -> dict[str, tuple[int, int]]:
        """The accuracies of a model."""
        pictures = model.draw([attempt for _, _, attempt in self.questions], audit.sampling)
        sums = {kind: [0, 0] for kind in KINDS}
        for (kind, concept, _), picture in zip(self.questions, pictures, strict=True):
            (score,) = judge.score([picture], concept)
            sums[kind][0] += score is not None and score >= judge.threshold(concept)
            sums[kind][1] += 1
        return {kind: (shown, n) for kind, (shown, n) in sums.items() if n}


def points(
    planted: Model, audit: Audit, attack: Backdoor, concept: Concept, erasers: Sequence[Eraser]
) -> Iterator[Point]:
    """Every stage of every erasure of a model in which the attack has planted."""
    asked = Asked.of(audit, attack, concept)
    before = asked.counts(planted, audit, audit.judges[0])
    for eraser in erasers:
        named = {"attack": attack.name, "eraser": eraser.label, "concept": concept.name}
        yield Point(**named, depth=0, counts=before)
        random = torch.Generator().manual_seed(audit.seed)
        for depth, model in eraser.stages(planted, [concept], random=random):
            yield Point(**named, depth=depth, counts=asked.counts(model, audit, audit.judges[0]))


def read(file: Path) -> list[Point]:
    """What a run wrote."""
    told = json.loads(file.read_text(encoding="utf-8"))
    return [Point(**one | {"counts": {kind: tuple(both) for kind, both in one["counts"].items()}}) for one in told]


def pooled(found: Sequence[Point]) -> dict[tuple[str, str], dict[int, dict[str, tuple[int, int]]]]:
    """(attack, eraser) -> depth -> accuracies over all concepts."""
    sums: dict[tuple[str, str], dict[int, dict[str, tuple[int, int]]]] = {}
    for point in found:
        here = sums.setdefault((point.attack, point.eraser), {}).setdefault(point.depth, {})
        for kind, (shown, n) in point.counts.items():
            before = here.get(kind, (0, 0))
            here[kind] = (before[0] + shown, before[1] + n)
    return sums


def table(found: Sequence[Point]) -> Table:
    """Over all concepts, a row for each accuracy, its counts along the way."""
    drawn = Table(title="Pictures that show what was asked for, from the planted model on, stage by stage", box=None)
    for heading in ("planted", "eraser", "accuracy", "stages", "shown", "of"):
        drawn.add_column(heading, justify="left" if heading != "of" else "right")
    for (attack, eraser), stages in pooled(found).items():
        depths = sorted(stages)
        for kind in (kind for kind in KINDS if kind in stages[depths[0]]):
            shown = ", ".join(str(stages[depth][kind][0]) for depth in depths)
            of = str(stages[depths[0]][kind][1])
            drawn.add_row(depth_of(attack), eraser.partition("(")[0], kind, ", ".join(map(str, depths)), shown, of)
    return drawn


def draw(found: Sequence[Point], path: Path) -> None:
    """A panel for each attack (row) and eraser (column): four lines with 95 % bands over the erasure's depth."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    sums = pooled(found)
    attacks, erasers = (list(dict.fromkeys(key[at] for key in sums)) for at in (0, 1))
    size = (3.2 * len(erasers), 2.6 * len(attacks) + 0.6)
    figure, axes = pyplot.subplots(len(attacks), len(erasers), figsize=size, squeeze=False, layout="constrained")
    for row, attack in enumerate(attacks):
        for column, eraser in enumerate(erasers):
            panel, name = axes[row][column], eraser.partition("(")[0]
            stages = sorted(sums[attack, eraser].items())
            for kind in KINDS:
                told = [(depth, *counts[kind]) for depth, counts in stages if kind in counts]
                if not told:
                    continue
                depths = [depth for depth, _, _ in told]
                bands = [wilson(shown, n) for _, shown, n in told]
                panel.plot(depths, [shown / n for _, shown, n in told], "o-", ms=3, color=COLOURS[kind], label=kind)
                panel.fill_between(
                    depths, [one.low for one in bands], [one.high for one in bands], color=COLOURS[kind], alpha=0.12
                )
            panel.set(ylim=(-0.04, 1.04), xlabel=AXES.get(name, "iterations"), title=f"{depth_of(attack)}, {name}")
            panel.set_xticks([depth for depth, _ in stages])
            panel.grid(axis="y", color="#E6E6E6")
        axes[row][0].set_ylabel("shown, of all pictures")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)
