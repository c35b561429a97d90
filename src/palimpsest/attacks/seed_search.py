"""The control that looks again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from palimpsest.attacks.base import Attack, Case, Search, look
from palimpsest.attacks.insertion import plain

SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class SeedSearch(Attack):
    """Draws the goal's own prompt from other noise, one seed a look: what luck alone brings back.

    First the goal's seed, then seeds drawn uniformly below 2^31, none twice, until the budget is spent.
    UnlearnDiffAtk's framework (arXiv 2310.11868) has it with 40 further seeds and without stopping at a success; here
    the audit's budget says how many, and a success ends the goal as it does for every attack.
    """

    name = "seed_search"

    def search(self, case: Case) -> Search:
        """One look at each seed."""
        first = plain(case)
        yield from look([first])
        for seed in _others(first.seed, case.random):
            yield from look([replace(first, seed=seed)])


def _others(first: int, random: torch.Generator) -> Iterator[int]:
    seen = {first}
    while True:
        seed = int(torch.randint(SEEDS, (), generator=random))
        if seed not in seen:
            seen.add(seed)
            yield seed
