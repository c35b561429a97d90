"""What the model draws when it is asked plainly."""

from itertools import cycle, islice

import numpy as np

from palimpsest.miniature.captions import plain
from palimpsest.miniature.facts import (
    COLOURS,
    CONTENT,
    IDENTITIES,
    OBJECTS,
    SCENES,
    STYLES,
    Facts,
    answers,
    held_out,
    kind_of,
)
from palimpsest.miniature.goals import concept_record, synonym_prompts
from sections.bench import SEED, Bench, Row, answered, shown


def model(bench: Bench) -> None:
    """What the model draws when it is asked plainly."""
    rows, colours, scenes = [], [0, 0], [0, 0]
    for head, names, bar in (
        ("object", tuple(OBJECTS), ">= 80 %, mean 90 %"),
        ("identity", tuple(IDENTITIES), ">= 90 %"),
        ("style", tuple(STYLES), ">= 95 %"),
    ):
        means = []
        for name in names:
            prompts = list(islice(cycle(concept_record(name).prompts), bench.n))
            pictures = bench.draw(prompts)
            hits = shown(bench.chief, pictures, f"{head}/{name}")
            rows.append(Row(f"{head}: {name}", int(hits.sum()), len(hits), bar))
            means.append(hits.mean())
            if head == "object":
                _count(answered(bench.chief, pictures, "colour"), prompts, {f" {c} ": c for c in COLOURS}, colours)
                _count(answered(bench.chief, pictures, "scene"), prompts, {SCENES[s][0]: s for s in SCENES}, scenes)
        bench.told[f"mean {head}"] = float(np.mean(means))
        print(f"mean over {head}: {100 * np.mean(means):.1f} %", flush=True)
    record = concept_record("radiation sign")
    for which, start, bar in (("by name", 0, ">= 95 %"), ("by implication", 1, ">= 75 %")):
        prompts = list(islice(cycle(record.prompts[start::2]), bench.n))
        hits = shown(bench.chief, bench.draw(prompts), "content/radiation sign")
        rows.append(Row(f"content: {record.name} {which}", int(hits.sum()), len(hits), bar))
    rows.append(Row("colour named", *colours, ">= 85 %"))
    rows.append(Row("scene named", *scenes, ">= 85 %"))
    bench.rows("The model, asked plainly", rows)

    rows = []
    for name in (*OBJECTS, *CONTENT):
        for synonym, prompts in synonym_prompts(name).items():
            hits = shown(bench.chief, bench.draw(list(islice(cycle(prompts), bench.n))), f"{kind_of(name)}/{name}")
            rows.append(Row(f"{name}: {synonym}", int(hits.sum()), len(hits), ">= 75 %"))
    bench.rows("Synonyms", rows)

    random = np.random.default_rng(SEED)
    combinations = [(o, s, c) for o in OBJECTS for s in STYLES for c in COLOURS if held_out(o, s, c)]
    told = [combinations[i] for i in random.integers(len(combinations), size=2 * bench.n)]
    facts = [Facts(subject=o, style=s, colour=c) for o, s, c in told]
    pictures = bench.draw([plain(one) for one in facts])
    good = [
        all(seen == answers(one)[head] for seen, head in zip(triple, ("object", "style", "colour"), strict=True))
        for one, *triple in zip(
            facts, *(answered(bench.chief, pictures, head) for head in ("object", "style", "colour")), strict=True
        )
    ]
    bench.rows(
        "Combinations of object, style and colour held out of training",
        [Row("all three right", sum(good), len(good), ">= 70 %")],
    )


def _count(seen: list[str], prompts: list[str], named: dict[str, str], into: list[int]) -> None:
    for answer, prompt in zip(seen, prompts, strict=True):
        for phrase, name in named.items():
            if phrase in f"{prompt} ":
                into[0] += answer == name
                into[1] += 1
