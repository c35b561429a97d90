"""What hides pruned entries from whom: fillings against detectors, and against revival from what these find.

    python benchmarks/concealment.py [--quick] [--json FILE] [--plot FILE] [--q Q] [--concepts NAME,...]
        [--goals N] [--defences NAME;...]

For each concept ConceptPrune's mask of the miniature is filled in every way, and every detector looks for it: AUROC,
and precision among as many entries as were pruned, both per matrix and weighted by its pruned entries. ``again`` and
``missing`` also hold prompts of the concept (activations are those of the pruned model), ``difference`` the base.
Then how often the concept (the goals of the shipped audits) and its neighbours (as many pictures) are shown by the
base, by what is concealed, and after revival from the entries that a detector finds: of those that need the weights
alone the most precise, and the attacker knows the share. So he is as good as his detectors let him be. ``--plot`` draws
p(w) over w and sigma_M as a PNG (needs the extra ``plots``). With ``--json`` the file is written after every concept,
and what it holds already is not worked out again. ``--quick`` takes two goals of one concept and few defences, and is
no result.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eye import Wanted, goals, look, neighbours
from palimpsest.attacks import Revive
from palimpsest.attacks.revive import leading_in
from palimpsest.concealment import detectability
from palimpsest.detection import DETECTORS, Locate, auroc, difference, missing, precision, pruned_again
from palimpsest.erasers import Conceal
from palimpsest.erasers.activations import prompts_of, squares
from palimpsest.miniature.facts import FIXED
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, Sampling, default_device, fastest_precision
from palimpsest.pruning import Mask
from palimpsest.stats import holm, mcnemar_exact, wilson

SWEEP = (0.003, 0.01, 0.02, 0.03, 0.05)
DEFENCES: dict[str, Conceal] = {
    "zero": Conceal(fill="zero"),
    **{f"gaussian {sigma}": Conceal(sigma=sigma) for sigma in SWEEP},
    **{f"formula {times}": Conceal(fill="formula", times=times) for times in (3.0, 1.5, 1.0)},
    "survivors": Conceal(fill="survivors"),
    "levelled": Conceal(fill="levelled"),
    "shuffled": Conceal(fill="shuffled"),
    "flipped": Conceal(fill="flipped"),
    "decoys": Conceal(fill="decoys"),
    "renoised": Conceal(fill="renoised"),
    "zero, trained": Conceal(fill="zero", iterations=100),
    "formula 1.0, trained": Conceal(fill="formula", iterations=100),
    "levelled, trained": Conceal(fill="levelled", iterations=100),
}
QUICK = ("zero", "gaussian 0.01", "formula 1.0", "survivors", "levelled", "flipped")
SAMPLING = Sampling(scheduler="ddim", steps=25, guidance=5.0)
TAU = 10


class Shown(NamedTuple):
    """Picture by picture."""

    erased: list[bool]
    preserved: list[bool]


class Figures(NamedTuple):
    """Of one defence and concept."""

    found: dict[str, tuple[float, float]]
    """Detector -> (AUROC, precision at the true share)."""
    best: str
    """The detector that revival goes by."""
    shown: Shown | None
    revived: Shown | None

    @staticmethod
    def of(told: list[Any]) -> "Figures":
        """From JSON."""
        found, best, *shown = told
        return Figures(
            {name: tuple(two) for name, two in found.items()}, best, *(Shown(*one) if one else None for one in shown)
        )


def pruner(q: float) -> dict[str, object]:
    """ConceptPrune as the miniature's other benchmarks set it."""
    return {"name": "concept_prune", "q": q, "scheduler": "ddim", "steps": 25, "guidance": 5.0}


def activations(model: Model, name: str, mask: Mask) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weight's name -> (steps, in), with the concept and without."""
    given, absent = (
        {name: sums.sum(0).sqrt() for name, sums in found.items()}
        for found in (
            squares(model, prompts, mask.entries, sampling=SAMPLING, steps=TAU, seed=0)
            for prompts in prompts_of(concept_record(name), "benchmark")
        )
    )
    return given, absent


def scores(
    model: Model, base: Model, mask: Mask, seen: tuple[dict[str, Tensor], dict[str, Tensor]], name: str
) -> Iterator[tuple[str, Tensor]]:
    """What each detector thinks of one matrix."""
    weight, leading = model.weights()[name].detach(), leading_in(model, name)
    for detector, score in DETECTORS.items():
        yield detector, score(weight, leading)
    given, absent = (norms[name] for norms in seen)
    yield "again", pruned_again(weight, given, absent)
    yield "missing", missing(weight, given, absent, share=mask.shares[name])
    yield "difference", difference(weight, base.weights()[name])


def detected(
    model: Model, base: Model, mask: Mask, seen: tuple[dict[str, Tensor], dict[str, Tensor]]
) -> dict[str, tuple[float, float]]:
    """Detector -> (AUROC, precision at the true share), each matrix weighted by its pruned entries."""
    sums: dict[str, tuple[float, float]] = {}
    for name, marks in mask.entries.items():
        weight = int(marks.sum()) / mask.count
        for detector, score in scores(model, base, mask, seen, name) if weight else ():
            area, hits = sums.get(detector, (0.0, 0.0))
            sums[detector] = (area + weight * auroc(score, marks), hits + weight * precision(score, marks))
    return sums


def concealing(defence: Conceal, base: Model, name: str, mask: Mask) -> Model:
    """The base with the mask's entries filled; the mask is worked out once for all defences."""
    random = torch.Generator().manual_seed(0)
    return defence.conceal(base, mask, [concept_record(name)], random=random)


def most_precise(found: Mapping[str, tuple[float, float]]) -> Locate:
    """Of the detectors that need the weights alone."""
    return max(DETECTORS, key=lambda detector: found[detector][1])


def revived(model: Model, mask: Mask, detector: Locate) -> Model:
    """What revival makes of it from the entries that a detector finds."""
    attack = Revive(locate=detector, share=mask.share)
    ((_, back),) = attack.revise(model, base=None, concepts=[], random=torch.Generator().manual_seed(0))
    return back


def plot(path: str, *, share: float, sigma_u: float) -> None:
    """p(w) over w and sigma_M, with the share as the least that it can be."""
    import matplotlib

    matplotlib.use("Agg")
    import numpy as np
    from matplotlib import pyplot

    widths = np.linspace(0.02, 1.5, 75) * sigma_u
    w = np.linspace(0, 3, 121) * sigma_u
    p = np.stack([detectability(w, sigma_m=float(width), sigma_u=sigma_u, share=share) for width in widths])
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    drawn = axes.contourf(w, widths, p, levels=20, cmap="viridis")
    axes.contour(w, widths, p, levels=[2 * share], colors="white")
    axes.axhline(sigma_u, color="red", linestyle="--")
    axes.set(
        xlabel="w",
        ylabel="sigma_M",
        title=f"p(w), share {share:.2g}, sigma_U {sigma_u:.2g} (dashed); white: twice the share",
    )
    figure.colorbar(drawn, ax=axes)
    figure.savefig(path, dpi=120)


def pictured(model: Model, wanted: list[Wanted], n: int) -> Shown:
    """Of the first n, the goals, and of the rest, the neighbours."""
    marks = [one.shown for one in look(model, wanted)]
    return Shown(marks[:n], marks[n:])


def concept(base: Model, name: str, *, q: float, n: int, defences: list[str]) -> dict[str, Figures]:
    """Defence -> what is found of it, and what is shown before and after revival; the base's under ``base``."""
    mask = Conceal(pruner=pruner(q)).mask(base, [concept_record(name)])
    seen = activations(mask.applied(base), name, mask)
    wanted = [*goals(name, n), *neighbours(name, n)] if n else []
    figures = {"base": Figures({}, "", pictured(base, wanted, n) if n else None, None)}
    print(f"\n{name}: {mask.count:,} entries pruned, {mask.share:.1%}; AUROC / precision at the true share\n")
    print(f"| defence | {' | '.join([*DETECTORS, 'again', 'missing', 'difference'])} | seconds |")
    print(f"|---|{'--:|' * (len(DETECTORS) + 4)}")
    for defence in defences:
        started = time.perf_counter()
        model = concealing(DEFENCES[defence], base, name, mask)
        found = detected(model, base, mask, seen)
        best = most_precise(found)
        cells = " | ".join(f"{area:.2f} / {hits:.2f}" for area, hits in found.values())
        print(f"| {defence} | {cells} | {time.perf_counter() - started:.1f} |", flush=True)
        shown = (pictured(one, wanted, n) for one in (model, revived(model, mask, best))) if n else (None, None)
        figures[defence] = Figures(found, best, *shown)
    return figures


def detections(found: Mapping[str, Mapping[str, Figures]], defences: list[str]) -> None:
    """Mean over the concepts of every detector's figures."""
    names = list(next(iter(found.values()))[defences[0]].found)
    print(f"\nMean over {len(found)} concepts, AUROC / precision at the true share\n")
    print(f"| defence | {' | '.join(names)} |\n|---|{'--:|' * len(names)}")
    for defence in defences:
        means = (
            (sum(told[defence].found[name][i] for told in found.values()) / len(found) for i in (0, 1))
            for name in names
        )
        print(f"| {defence} | {' | '.join(f'{area:.2f} / {hits:.2f}' for area, hits in means)} |")


def rates(found: Mapping[str, Mapping[str, Figures]], defences: list[str]) -> None:
    """Erased and preserved accuracy over all concepts, before and after revival."""
    print("\n| defence | erased | preserved | revived: erased | preserved | by | alone | back | p (Holm) |")
    print("|---|---|---|---|---|---|--:|--:|--:|")
    rows, counts = [], []
    for defence in ["base", *defences]:
        told = [concept[defence] for concept in found.values()]
        cells = [share([one.shown[i] for one in told if one.shown]) for i in (0, 1)]
        if told[0].revived:
            cells += [share([one.revived[i] for one in told if one.revived]) for i in (0, 1)]
            after, before = (
                sum((shown[0] for shown in shown if shown), [])
                for shown in zip(*((one.revived, one.shown) for one in told), strict=True)
            )
            both = list(zip(after, before, strict=True))
            counts.append((both.count((True, False)), both.count((False, True))))
        rows.append((defence, cells, ", ".join(sorted({one.best for one in told}))))
    adjusted = holm([mcnemar_exact(*count) for count in counts])
    for (defence, cells, best), (only, back), p in zip(rows[1:], counts, adjusted, strict=True):
        print(f"| {defence} | {' | '.join(cells)} | {best} | {only} | {back} | {p:.2g} |")
    print(f"| {rows[0][0]} | {' | '.join(rows[0][1])} | | | | | | |")


def share(marks: list[list[bool]]) -> str:
    """Of those shown, with its interval."""
    k, n = sum(map(sum, marks)), sum(map(len, marks))
    low, high = wilson(k, n)
    return f"{k / n:.0%} ({low:.0%} to {high:.0%}; {k}/{n})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one concept, few defences; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, and go on from what it holds")
    parser.add_argument("--plot", metavar="FILE", help="draw p(w) there, for the first concept's share")
    parser.add_argument("--q", type=float, default=0.1, help="share of each row that ConceptPrune may take per step")
    parser.add_argument("--concepts", default=",".join(FIXED), help="names, with commas between")
    parser.add_argument("--goals", type=int, default=20, help="of each concept, and as many of its neighbours; 0: none")
    parser.add_argument("--defences", default=None, help="names, with semicolons between")
    options = parser.parse_args()
    names = options.concepts.split(",")[: 1 if options.quick else None]
    defences = options.defences.split(";") if options.defences else list(QUICK if options.quick else DEFENCES)
    n = min(options.goals, 2) if options.quick else options.goals
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=2 * n or 32)
    file = Path(options.json) if options.json else None
    found: dict[str, dict[str, Figures]] = {}
    if file and file.exists():
        found = {
            name: {defence: Figures.of(told) for defence, told in concept.items()}
            for name, concept in json.loads(file.read_text())["found"].items()
        }
    if options.plot:
        mask = Conceal(pruner=pruner(options.q)).mask(base, [concept_record(names[0])])
        left = torch.cat([base.weights()[one].detach()[~marks] for one, marks in mask.entries.items()])
        plot(options.plot, share=mask.share, sigma_u=float(left.square().mean().sqrt()))
    for name in (name for name in names if name not in found):
        found[name] = concept(base, name, q=options.q, n=n, defences=defences)
        if file:
            file.write_text(json.dumps({"q": options.q, "found": found}))
    found = {name: found[name] for name in names}
    detections(found, defences)
    if n:
        rates(found, defences)


if __name__ == "__main__":
    main()
