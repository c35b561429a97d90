"""Whether revival brings back what was erased by changing weights: SalUn and Scissorhands, which zero none.

    python benchmarks/revival_changed.py [--quick] [--json FILE] [--runs DIR] [--goals N]

The victims are those that ``benchmarks/erasers.py`` left below ``runs/`` (it must have run). Of each second linear the
entries that differ most from the public base are set to zero, as the authors of "Roots Beneath the Cut" advise, and
then recovered as pruned ones. ``--quick`` takes two goals of one concept, and is no result.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file

from eye import goals, look, neighbours
from palimpsest.attacks import ReviveChanged
from palimpsest.miniature.facts import FIXED
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.stats import wilson

ERASERS = ("salun", "scissorhands")
SHARES = (0.02, 0.1, 0.5)
"""Of each matrix, those taken as pruned: the setting's default, what ConceptPrune prunes, SalUn's own mask."""


def victims(base: Model, folder: Path) -> dict[str, Model]:
    """Eraser -> what it made of the base, by the weights in a run's folder."""
    files = {eraser: sorted((folder / "erased").glob(f"{eraser}-*.safetensors")) for eraser in ERASERS}
    return {eraser: base.with_weights(load_file(file)) for eraser, (file,) in files.items()}


def share(marks: list[bool]) -> str:
    """Of those shown, with its interval."""
    low, high = wilson(sum(marks), len(marks))
    return f"{sum(marks) / len(marks):.0%} ({low:.0%} to {high:.0%}; {sum(marks)}/{len(marks)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two goals of one concept; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmark-erasers"), help="where the victims lie")
    parser.add_argument("--goals", type=int, default=20, help="of each concept, and as many of its neighbours")
    options = parser.parse_args()
    n = 2 if options.quick else options.goals
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=2 * n)
    found: dict[str, list[list[bool]]] = defaultdict(lambda: [[], []])
    for name in FIXED[: 1 if options.quick else None]:
        wanted = [*goals(name, n), *neighbours(name, n)]
        for eraser, victim in victims(base, options.runs / name.replace(" ", "_")).items():
            models = {eraser: victim}
            for part in SHARES:
                random = torch.Generator().manual_seed(0)
                ((_, back),) = ReviveChanged(share=part).revise(victim, base=base, concepts=[], random=random)
                models[f"{eraser}, revived, share {part}"] = back
            for label, model in models.items():
                seen = [one.shown for one in look(model, wanted)]
                found[label][0] += seen[:n]
                found[label][1] += seen[n:]
        print(f"{name} is drawn", flush=True)
    print("\n| model | erased accuracy | preserved accuracy |\n|---|---|---|")
    for label, marks in found.items():
        print(f"| {label} | {' | '.join(map(share, marks))} |")
    if options.json:
        Path(options.json).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
