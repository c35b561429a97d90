"""What hides pruned entries from whom: fillings against detectors, and against revival from what these find.

    python benchmarks/concealment.py [--quick] [--json FILE] [--plot FILE] [--q Q] [--concepts NAME,...]
        [--pictures N] [--neighbours N] [--defences NAME;...]

For each concept ConceptPrune's mask of the miniature is filled in every way, and every detector looks for it: AUROC,
and precision among as many entries as were pruned, both per matrix and weighted by its pruned entries. ``again`` and
``missing`` also hold prompts of the concept (activations are those of the pruned model), ``difference`` the base.
With ``--pictures`` also how often the concept and its neighbours are shown by the base, by what is concealed, and after
revival from the entries that a detector finds: of those that need the weights alone the most precise, and the attacker
knows the share. So he is as good as his detectors let him be. ``--plot`` draws p(w) over w and
sigma_M as a PNG (needs the extra ``plots``). ``--quick`` takes one concept and few defences, and is no result.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from eye import Eye
from palimpsest.attacks import Revive
from palimpsest.attacks.revive import leading_in
from palimpsest.concealment import detectability
from palimpsest.detection import DETECTORS, Locate, auroc, difference, missing, precision, pruned_again
from palimpsest.erasers import Conceal
from palimpsest.erasers.activations import prompts_of, squares
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, Sampling
from palimpsest.pruning import Mask
from palimpsest.stats import wilson

CONCEPTS = "mosaic,garbage truck,hugo"
"""For development; the six fixed concepts are for the final table."""
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


def rates(label: str, name: str, model: Model, eye: Eye, neighbours: list[str], told: dict[str, object]) -> None:
    """A line of the table of pictures."""
    k, *others = eye.shown(model, [name, *neighbours])
    low, high = wilson(k, eye.n)
    kept, of = sum(others), eye.n * len(neighbours)
    print(f"| {name} | {label} | {k}/{eye.n} ({low:.0%}-{high:.0%}) | {kept}/{of} |", flush=True)
    told[f"{name}, {label}, shown"] = {"k": k, "n": eye.n, "neighbours": kept, "of": of}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one concept, few defences; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", metavar="FILE", help="draw p(w) there, for the first concept's share")
    parser.add_argument("--q", type=float, default=0.1, help="share of each row that ConceptPrune may take per step")
    parser.add_argument("--concepts", default=CONCEPTS, help="names, with commas between")
    parser.add_argument("--pictures", type=int, default=0, help="of each concept and neighbour")
    parser.add_argument("--neighbours", type=int, default=2, help="how many, the last of their list")
    parser.add_argument("--defences", default=None, help="names, with semicolons between")
    options = parser.parse_args()
    base, eye = Model.load("miniature", batch=32), Eye(options.pictures)
    told: dict[str, object] = {"q": options.q}
    names = options.concepts.split(",")[: 1 if options.quick else None]
    defences = options.defences.split(";") if options.defences else list(QUICK if options.quick else DEFENCES)
    for number, name in enumerate(names):
        mask = Conceal(pruner=pruner(options.q)).mask(base, [concept_record(name)])
        pruned = mask.applied(base)
        if options.plot and not number:
            left = torch.cat([base.weights()[one].detach()[~marks] for one, marks in mask.entries.items()])
            plot(options.plot, share=mask.share, sigma_u=float(left.square().mean().sqrt()))
        seen = activations(pruned, name, mask)
        print(f"\n{name}: {mask.count:,} entries pruned, {mask.share:.1%}; AUROC / precision at the true share\n")
        print(f"| defence | {' | '.join([*DETECTORS, 'again', 'missing', 'difference'])} | seconds |")
        print(f"|---|{'--:|' * (len(DETECTORS) + 4)}")
        models, best = {"base": base}, {}
        for defence in defences:
            started = time.perf_counter()
            models[defence] = concealing(DEFENCES[defence], base, name, mask)
            found = detected(models[defence], base, mask, seen)
            best[defence] = most_precise(found)
            cells = " | ".join(f"{area:.2f} / {hits:.2f}" for area, hits in found.values())
            print(f"| {defence} | {cells} | {time.perf_counter() - started:.1f} |", flush=True)
            told[f"{name}, {defence}"] = found
        if eye.n:
            neighbours = list(concept_record(name).neighbours[-options.neighbours :])
            print("\n| concept | model | shown | neighbours |\n|---|---|--:|--:|")
            for label, model in models.items():
                rates(label, name, model, eye, neighbours, told)
                if label in best:
                    back = revived(model, mask, best[label])
                    rates(f"{label}, revived ({best[label]})", name, back, eye, neighbours, told)
    if options.json:
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)


if __name__ == "__main__":
    main()
