"""Whether an edit of a concept's name alone also removes its synonyms, and why: UCE on the miniature.

    python benchmarks/synonyms.py [--quick] [--json FILE]

Of development concepts with synonyms: how alike the text states of name and synonym are at the end token (cosine, less
the mean of four other objects), beside those of two other objects; then how often the base, and UCE of the name alone,
show the concept when they are asked by its name and by each synonym. ``--quick`` takes two pictures of one concept, and
is no result.
"""

import argparse
import json
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from eye import Wanted, look
from palimpsest.erasers import Uce
from palimpsest.miniature.goals import concept_record, synonym_prompts
from palimpsest.model import Model, default_device, fastest_precision
from palimpsest.records import Attempt

CONCEPTS = ("garbage truck", "cassette player", "golf ball", "guitar", "flower")
CENTRE, OTHERS = ("house", "tree", "boat", "cat"), ("fish", "church")
SEED = 77_000


def state(model: Model, word: str) -> Tensor:
    """(width,): what the text encoder says at the end token."""
    prompt = f"a photo of a {word}"
    place = int((model.tokens(prompt) == model.end_token).nonzero()[0])
    return model.embed([prompt]).states[0, place].float()


def cosines(model: Model, name: str) -> dict[str, float]:
    """Synonym, or other object -> its cosine with the name."""
    centre = torch.stack([state(model, word) for word in CENTRE]).mean(0)
    own = state(model, name) - centre
    words = (*concept_record(name).synonyms, *OTHERS)
    return {word: float(cosine_similarity(state(model, word) - centre, own, dim=0)) for word in words}


def shown(model: Model, name: str, n: int) -> dict[str, int]:
    """The name, or a synonym -> how many of ``n`` pictures that were asked for by it show the concept."""
    asked = {name: list(concept_record(name).prompts)} | synonym_prompts(name)
    wanted = [Wanted(name, Attempt(prompt=prompts[i], seed=SEED + i)) for prompts in asked.values() for i in range(n)]
    marks = [seen.shown for seen in look(model, wanted)]
    return {word: sum(marks[at * n : (at + 1) * n]) for at, word in enumerate(asked)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two pictures of one concept; no result")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    n, names = (2, CONCEPTS[:1]) if options.quick else (16, CONCEPTS)
    base = Model.load("miniature", precision=fastest_precision(default_device()), batch=16)
    told: dict[str, object] = {}
    print(f"| concept | word | cosine | base, of {n} | uce of the name, of {n} |\n|---|---|--:|--:|--:|", flush=True)
    for name in names:
        alone = replace(concept_record(name), synonyms=())
        erased = Uce().erase(base, [alone], random=torch.Generator().manual_seed(0))
        alike, before, after = cosines(base, name), shown(base, name, n), shown(erased, name, n)
        for word in (name, *alike):
            cosine = f"{alike[word]:.3f}" if word in alike else ""
            print(f"| {name} | {word} | {cosine} | {before.get(word, '')} | {after.get(word, '')} |", flush=True)
        told[name] = {"cosines": alike, "base": before, "uce": after}
    if options.json:
        with open(options.json, "w") as file:
            json.dump(told, file, indent=1)


if __name__ == "__main__":
    main()
