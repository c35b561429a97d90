"""How far a pruned concept comes back, and by what: the paper's attack, its rivals, its oracles, and more than these.

    python benchmarks/revival.py [--quick] [--json FILE] [--q Q] [--concepts NAME,...] [--goals N] [--ways WAY;...]
        [--sheet PNG]

The paper's tables in small. ConceptPrune takes each concept out of the miniature, and every way to fill the zeros is
asked for the concept (the goals of the shipped audits) and for its neighbours (as many pictures). The oracles know the
original: they say whether signs or magnitudes bring a concept back. With ``--json`` the file is written after every
concept, and what it holds already is not drawn again. How many signs are found is ``structure.py``'s matter.
``--quick`` takes two goals of one concept and few ways, and is no result.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image, ImageDraw

from eye import Seen, Wanted, goals, look, neighbours
from palimpsest.attacks import Attack, Revive, ReviveChosen, ReviveOracle
from palimpsest.attacks.base import Tryout
from palimpsest.attacks.revive import magnitudes
from palimpsest.erasers import ConceptPrune
from palimpsest.miniature.facts import FIXED, kind_of
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.records import Concept, Verdict
from palimpsest.stats import holm, mcnemar_exact, wilson
from palimpsest.utility.clip_score import clip_cosines
from palimpsest.utility.features import Network

KEEPS = (0.2, 0.4, 0.6, 0.8, 1.0)
SIZES = {"max": "neuron max", "mean": "neuron average", "sample": "neuron sample"}
GRID = {
    f"{SIZES[revive.magnitude]}, K {revive.keep}": revive
    for revive in (Revive(keep=keep, magnitude=size) for size in ("max", "mean", "sample") for keep in KEEPS)
}
WAYS: dict[str, Attack] = {
    **GRID,
    "the code's draw": Revive(magnitude="draw"),
    "recovered magnitudes": Revive(magnitude="recovered"),
    "random signs": Revive(recovery="random"),
    "4-bit quantisation": Revive(recovery="quantisation"),
    "the paper's completion": Revive(completion="paper"),
    "matrix normal": Revive(recovery="matrix_normal"),
    "matrix normal, K 1.0": Revive(recovery="matrix_normal", keep=1.0),
    "oracle: true signs, neuron max": ReviveOracle(),
    "oracle: true signs, neuron average": ReviveOracle(magnitude="mean"),
    "oracle: true signs, neuron sample": ReviveOracle(magnitude="sample"),
    "oracle: true magnitudes, random signs": ReviveOracle(signs="random", magnitude="true"),
    "oracle: neuron max, random signs": ReviveOracle(signs="random"),
    "oracle: 60 % true signs, the rest flipped": ReviveOracle(right=0.6),
    "oracle: 60 % true signs, the rest zero": ReviveOracle(right=0.6, others="zeroed"),
}
RIGHT = (0.6, 0.7, 0.8, 0.9, 0.95)
NMS, AVERAGE, SAMPLE = (f"{size}, K 0.6" for size in SIZES.values())
QUICK = (NMS, "oracle: true signs, neuron max")
UNTOUCHED = ("base", "pruned")
CHOSEN = "revive_chosen"
SHEET = (
    *UNTOUCHED,
    NMS,
    "matrix normal",
    "oracle: true signs, neuron max",
    "oracle: true signs, neuron sample",
    "oracle: true magnitudes, random signs",
)
PAIRS = (
    (NMS, "pruned"),
    (NMS, "random signs"),
    (NMS, AVERAGE),
    (NMS, SAMPLE),
    (SAMPLE, "pruned"),
    ("4-bit quantisation", "pruned"),
    ("matrix normal", NMS),
    ("oracle: true signs, neuron max", "pruned"),
    ("oracle: true signs, neuron sample", "oracle: true magnitudes, random signs"),
    ("oracle: true signs, neuron max", "oracle: neuron max, random signs"),
)
"""Fixed before any picture of the six concepts was drawn: does the first show what the second does not?"""


@dataclass(frozen=True, kw_only=True)
class Chance(Attack):
    """All pruned entries back, each with its true sign by chance alone, as large as the row's mean: an oracle."""

    right: float

    def revise(
        self, victim: Model, *, base: Model | None, concepts: Sequence[Concept], random: torch.Generator
    ) -> Iterator[tuple[int, Model]]:
        """The filled victim."""
        assert base is not None, "an oracle knows the original"
        locating, changed = Revive(), {}
        for name in locating.pruned_layers(victim, base):
            weight, true = (model.weights()[name].detach().double() for model in (victim, base))
            pruned = locating.pruned(victim, base, name)
            sign = true.sign() * (2.0 * (torch.rand(true.shape, generator=random) < self.right) - 1)
            sizes = magnitudes(weight, pruned, true, rule="mean", random=random)
            changed[name] = torch.where(pruned, sign * sizes, weight).float()
        yield 1, victim.with_weights(changed)


WAYS |= {f"oracle: {right:.0%} of the signs right, by chance": Chance(right=right) for right in RIGHT}


class Told(TypedDict):
    """What one model shows of one concept."""

    erased: list[bool]
    preserved: list[bool]
    cosines: list[float]
    """Of prompt and picture, goal by goal, by the miniature's CLIP."""


def chosen(pruned: Model, name: str) -> Model:
    """What ``revive_chosen`` takes, after its looks."""
    revisions = ReviveChosen().revise(
        pruned, base=None, concepts=[concept_record(name)], random=torch.Generator().manual_seed(0)
    )
    step = next(revisions)
    while isinstance(step, Tryout):
        seen = look(step.model, [Wanted(name, attempt) for attempt in step.attempts])
        step = revisions.send([Verdict(scores={"first": one.score}, shown=one.shown) for one in seen])
    number, model = step
    print(f"{name}: {CHOSEN} takes K {ReviveChosen().candidates[number - 1].keep}", flush=True)
    return model


def victims(base: Model, pruned: Model, name: str, ways: Iterable[str]) -> Iterator[tuple[str, Model]]:
    """The base, the pruned model, or what a way makes of it."""
    for way in ways:
        if way in UNTOUCHED:
            yield way, base if way == "base" else pruned
            continue
        if way == CHOSEN:
            yield way, chosen(pruned, name)
            continue
        random = torch.Generator().manual_seed(0)
        for _, model in WAYS[way].revise(pruned, base=base, concepts=[], random=random):
            yield way, model


def drawn(base: Model, name: str, *, q: float, n: int, models: list[str]) -> dict[str, Told]:
    """Model -> what it shows of the concept and of its neighbours."""
    prune = ConceptPrune(q=q, scheduler="ddim", steps=25, guidance=5.0)
    pruned = prune.erase(base, [concept_record(name)], random=torch.Generator())
    wanted, clip = [*goals(name, n), *neighbours(name, n)], Network(measure="revival", source="")

    def told(seen: list[Seen]) -> Told:
        shown = [one.shown for one in seen]
        prompts = [one.attempt.prompt for one in wanted[:n]]
        cosines = clip_cosines(clip, [one.picture for one in seen[:n]], prompts)
        return Told(erased=shown[:n], preserved=shown[n:], cosines=[round(float(cosine), 4) for cosine in cosines])

    return {way: told(look(model, wanted)) for way, model in victims(base, pruned, name, models)}


def share(marks: list[bool]) -> str:
    """Of those shown, with its interval."""
    low, high = wilson(sum(marks), len(marks))
    return f"{sum(marks) / len(marks):.0%} ({low:.0%} to {high:.0%}; {sum(marks)}/{len(marks)})"


def pooled(found: Mapping[str, Mapping[str, Told]], way: str, what: str) -> list[bool]:
    """All concepts' pictures, in one order."""
    return [mark for name in found for mark in found[name][way][what]]  # type: ignore[literal-required]


def table(found: Mapping[str, Mapping[str, Told]], ways: list[str]) -> None:
    """Erased and preserved accuracy, pooled and concept by concept."""
    print(f"\n| model | erased accuracy | preserved accuracy | {' | '.join(found)} |")
    print(f"|---|---|---|{'--:|' * len(found)}")
    for way in [*UNTOUCHED, *ways]:
        cells = (f"{sum(told[way]['erased'])}/{len(told[way]['erased'])}" for told in found.values())
        rates = (share(pooled(found, way, what)) for what in ("erased", "preserved"))
        print(f"| {way} | {' | '.join([*rates, *cells])} |")


def sweep(found: Mapping[str, Mapping[str, Told]]) -> None:
    """K by magnitude rule: erased accuracy."""
    print(f"\n| magnitude | {' | '.join(f'K {keep}' for keep in KEEPS)} |\n|---|{'---|' * len(KEEPS)}")
    for size in SIZES.values():
        cells = (share(pooled(found, f"{size}, K {keep}", "erased")) for keep in KEEPS)
        print(f"| {size} | {' | '.join(cells)} |")


def likeness(found: Mapping[str, Mapping[str, Told]], ways: list[str]) -> None:
    """The paper's measures for styles, for every concept."""
    print("\n| concept | model | similarity | less similar than the original |\n|---|---|--:|---|")
    for name, told in found.items():
        for way in [*UNTOUCHED, *ways]:
            own, before = told[way]["cosines"], told["base"]["cosines"]
            less = share([one < other for one, other in zip(own, before, strict=True)])
            print(f"| {name} ({kind_of(name)}) | {way} | {sum(own) / len(own):.3f} | {less} |")


def tests(found: Mapping[str, Mapping[str, Told]]) -> None:
    """Exact McNemar over all goals, Holm over the pairs."""
    counts = []
    for pair in PAIRS:
        both = list(zip(*(pooled(found, way, "erased") for way in pair), strict=True))
        counts.append((both.count((True, False)), both.count((False, True))))
    adjusted = holm([mcnemar_exact(*count) for count in counts])
    print("\n| shown by | and not by | goals | the other way round | p (Holm) |\n|---|---|--:|--:|--:|")
    for (one, other), (only, back), p in zip(PAIRS, counts, adjusted, strict=True):
        print(f"| {one} | {other} | {only} | {back} | {p:.2g} |")


def sheet(base: Model, names: Sequence[str], *, q: float, path: str) -> None:
    """The first goals of each concept, a row per model, as a PNG."""
    prune, rows = ConceptPrune(q=q, scheduler="ddim", steps=25, guidance=5.0), defaultdict(list)
    for name in names:
        pruned = prune.erase(base, [concept_record(name)], random=torch.Generator())
        for way, model in victims(base, pruned, name, SHEET):
            rows[way] += [seen.picture for seen in look(model, goals(name, 2))]
    side, left, top = base.picture_size[0], 210, 18
    drawn = Image.new("RGB", (left + side * 2 * len(names), top + side * len(rows)), "white")
    pen = ImageDraw.Draw(drawn)
    for column, name in enumerate(names):
        pen.text((left + 2 * column * side, 3), name, fill="black")
    for line, (way, pictures) in enumerate(rows.items()):
        pen.text((4, top + line * side + side // 2 - 6), way, fill="black")
        for column, picture in enumerate(pictures):
            drawn.paste(picture, (left + column * side, top + line * side))
    drawn.save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two goals of one concept, few ways; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, and go on from what it holds")
    parser.add_argument("--sheet", metavar="PNG", help="only draw two goals of each concept by some of the models")
    parser.add_argument("--q", type=float, default=0.1, help="share of each row that ConceptPrune may take per step")
    parser.add_argument("--concepts", default=",".join(FIXED), help="names, with commas between")
    parser.add_argument("--goals", type=int, default=20, help="of each concept, and as many of its neighbours")
    parser.add_argument(
        "--ways", default=";".join([*WAYS, CHOSEN]), help="of filling the zeros, with semicolons between"
    )
    options = parser.parse_args()
    n = 2 if options.quick else options.goals
    names = options.concepts.split(",")[: 1 if options.quick else None]
    ways = list(QUICK) if options.quick else options.ways.split(";")
    models = [*UNTOUCHED, *ways]
    file = Path(options.json) if options.json else None
    found: dict[str, dict[str, Told]] = json.loads(file.read_text())["found"] if file and file.exists() else {}
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=2 if options.sheet else 2 * n)
    if options.sheet:
        sheet(base, names, q=options.q, path=options.sheet)
        return
    print(f"{len(names)} concepts, {len(models)} models each, {2 * n} pictures by each of them", flush=True)
    for name in names:
        if left := [one for one in models if one not in found.get(name, {})]:
            found[name] = found.get(name, {}) | drawn(base, name, q=options.q, n=n, models=left)
            print(f"{name} is drawn", flush=True)
            if file:
                file.write_text(json.dumps({"q": options.q, "found": found}))
    found = {name: found[name] for name in names}
    table(found, ways)
    likeness(found, [way for way in (NMS, "4-bit quantisation", QUICK[1]) if way in ways])
    if set(WAYS) <= set(ways):
        sweep(found)
        tests(found)


if __name__ == "__main__":
    main()
