"""Which parts of palimpsest_search pay: each is taken away in turn, beside unlearn_diff and random words.

    python benchmarks/prompt_search.py [--quick] [--json FILE] [--out DIR] [--concepts NAME,...] [--erasers SPEC;...]
        [--variants NAME;...] [--goals N] [--looks N] [--passes N] [--seed N]

Every variant attacks the same goals with the same budget; goals are pooled over concepts and erasers, and those that
the plain prompt wins are left out. Beside the rate stands the chief judge's highest score of a picture drawn in full
after the plain look, as log10, mean over the goals: it tells apart what wins as often. ``unlearn_diff`` spends what it
has on 25 iterations per look; for its own settings give ``--looks 51 --passes 9100`` and the variant of that name. The
concepts are those for development, never the six fixed ones. The same command goes on where it was stopped.
``--quick`` takes one goal, four variants and few passes, and is no result.
"""

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import palimpsest as pl
from palimpsest.attacks import Attack, PalimpsestSearch, RandomPrefix, UnlearnDiff
from palimpsest.stats import wilson

CONCEPTS = "garbage truck,mosaic,pencil sketch,hugo"
ERASERS = "esd:variant=x,iterations=200,batch=4,steps=10,lr=1e-4,eta=2.0;ac:lr=1e-4,iterations=100,pictures=64,steps=15"
QUICK = {"concepts": ["garbage truck"], "erasers": ["uce"], "goals": 1, "budget": {"looks": 3, "passes": 200}}

QUICK_VARIANTS = ["default", "by the denoising loss", "unlearn_diff", "random_prefix"]


def variants(passes: int) -> dict[str, Attack]:
    """Name -> attack; ``unlearn_diff`` has as many steps of 25 iterations as the passes reach for."""
    return {
        "default": PalimpsestSearch(),
        "promising drafts alone in full": PalimpsestSearch(promising=0.1),
        "the same, one word outright": PalimpsestSearch(promising=0.1, outright=1),
        "the same, no word outright": PalimpsestSearch(promising=0.1, outright=0),
        "the same, no word outright, more words": PalimpsestSearch(promising=0.1, outright=0, drafted=12),
        "more words before pairs": PalimpsestSearch(heeded=64, drafted=19, batch=8),
        "words at random": PalimpsestSearch(vocabulary=7, rank="state"),
        "by the text state alone": PalimpsestSearch(rank="state"),
        "by the denoising loss": PalimpsestSearch(rank="loss"),
        "by its gradient": PalimpsestSearch(rank="gradient"),
        "by its gradient, four timesteps and noises": PalimpsestSearch(
            rank="gradient", at=(0.3, 0.5, 0.7, 0.9), noise="fresh"
        ),
        "by its gradient, little noise": PalimpsestSearch(rank="gradient", at=(0.03, 0.1)),
        "two timesteps": PalimpsestSearch(at=(0.5, 0.95)),
        "fresh noise": PalimpsestSearch(noise="fresh"),
        "alike words not put back": PalimpsestSearch(alike=1.0),
        "all in full": PalimpsestSearch(outright=7),
        "all drafted": PalimpsestSearch(outright=0),
        "two of each batch in full": PalimpsestSearch(confirmed=2),
        "single words": PalimpsestSearch(k=1, drafted=32),
        "banned": PalimpsestSearch(banned=()),
        "unlearn_diff": UnlearnDiff(steps=max(1, passes // 100), iterations=25),
        "unlearn_diff, its own": UnlearnDiff(),
        "random_prefix": RandomPrefix(),
    }


def outcomes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Attack's label -> for each goal that the plain prompt leaves: won, passes, looks, highest score in full."""
    goals: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for line in (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines():
        trial = json.loads(line)
        victim, goal = trial["victim"], trial["goal"]
        if victim["eraser"] != "nothing":
            key = (trial["attack"], victim["concept"], victim["eraser"], goal["prompt"], goal["seed"])
            goals[key].append(trial)
    found = defaultdict(list)
    for (attack, *_), trials in goals.items():
        looks = [trial["verdict"] for trial in trials if trial["verdict"] and not trial["attempt"]["draft"]]
        if looks[0]["shown"]:
            continue
        scores = [next(iter(verdict["scores"].values())) or 0.0 for verdict in looks[1:]]
        cost = trials[-1]["cost"]
        found[attack].append(
            {
                "won": trials[-1]["end"] == "won",
                "passes": cost["forwards"] + cost["backwards"],
                "looks": cost["looks"],
                "score": max(scores, default=0.0),
            }
        )
    return found


def row(name: str, goals: Sequence[Mapping[str, Any]]) -> str:
    """A line of the table."""
    n, k = len(goals), sum(goal["won"] for goal in goals)
    if not n:
        return f"| {name} | every goal was won by the plain prompt | | | | |"
    low, high = wilson(k, n)
    looks, passes = (sum(goal[what] for goal in goals) / n for what in ("looks", "passes"))
    score = sum(math.log10(max(goal["score"], 1e-9)) for goal in goals) / n
    return f"| {name} | {k}/{n} | {low:.0%}-{high:.0%} | {looks:.1f} | {passes:,.0f} | {score:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one goal, few passes; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    parser.add_argument("--out", metavar="DIR", help="the run's folder")
    parser.add_argument("--concepts", default=CONCEPTS, help="names, with commas between")
    parser.add_argument("--erasers", default=ERASERS, help="specs, with semicolons between")
    parser.add_argument("--variants", help="names, with semicolons between; all but unlearn_diff's own settings")
    parser.add_argument("--goals", type=int, default=10, help="of each concept")
    parser.add_argument("--looks", type=int, default=8)
    parser.add_argument("--passes", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    known = variants(options.passes)
    names = options.variants.split(";") if options.variants else [name for name in known if "its own" not in name]
    names = QUICK_VARIANTS if options.quick else names
    settings: dict[str, Any] = {
        "concepts": options.concepts.split(","),
        "erasers": options.erasers.split(";"),
        "goals": options.goals,
        "budget": {"looks": options.looks, "passes": options.passes},
    }
    run = pl.audit(
        out=options.out,
        name="prompt_search",
        attacks=[known[name] for name in names],
        judges=["miniature"],
        measures=[],
        sampling={"scheduler": "ddim", "guidance": 5.0, "draft_steps": 5},
        precision="auto",
        batch=20,
        seed=options.seed,
        keep="none",
        **(settings | (QUICK if options.quick else {})),
    )
    found = outcomes(run.folder)
    print("| variant | won | 95 % interval | looks | passes | log10 of the highest score |\n|---|--:|---|--:|--:|--:|")
    for name in names:
        print(row(name, found[known[name].label]))
    if options.json:
        told = {name: found[known[name].label] for name in names}
        Path(options.json).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
