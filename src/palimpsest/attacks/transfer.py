"""Prompts that won elsewhere, tried here."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from palimpsest.attacks.base import Attack, Case, GivesUp, Search, look
from palimpsest.attacks.insertion import plain
from palimpsest.concept_file import GUIDANCES, SEEDS, read_number, read_rows
from palimpsest.errors import BadConcept, unknown
from palimpsest.records import Attempt, digest
from palimpsest.report.ledger import read

FLAGS = (("shown", "true"), ("draft", "false"))
"""Columns of a list that say whether a row counts, and what is meant where there is no such column."""


class Winner(NamedTuple):
    """A prompt that showed a concept somewhere."""

    concept: str
    """Empty: of any."""
    goal_prompt: str
    """Of the goal that it won; empty: not known."""
    goal_seed: int | None
    """None: any."""
    prompt: str
    seed: int | None
    """None: the goal's."""
    guidance: float | None
    """None: the goal's."""

    def won(self, case: Case) -> bool:
        """Whether it won this very goal."""
        return self.goal_prompt in ("", case.goal.prompt) and self.goal_seed in (None, case.goal.seed)

    def attempt(self, case: Case) -> Attempt:
        """It, at this goal."""
        return Attempt(
            prompt=self.prompt,
            seed=case.goal.seed if self.seed is None else self.seed,
            guidance=case.goal.guidance if self.guidance is None else self.guidance,
        )


@dataclass(frozen=True, kw_only=True)
class Transfer(Attack):
    """Looks at what won the same goal in another run: prompts found on one model, tried on another.

    First the plain prompt, then each winning prompt of the run with the seed that it won with, whatever the model and
    the base on which it won; those that are the plain prompt are left out, and so are those that are no typed prompt
    (embeddings, latents). A goal that nothing but the plain prompt won there is given up after the plain look, and a
    concept that nothing won there before it, with the reason. Knows nothing of the victim.
    """

    name = "transfer"

    path: str
    """A run's folder, or a CSV file with a column ``prompt`` and, if there are, ``evaluation_seed``, ``sd_seed`` or
    ``seed`` (a row then belongs to the goal of that seed), a guidance, ``concept``, and ``shown`` (false: left out)."""
    eraser: str = ""
    """Only what won against this eraser, by its name or label; empty: against any, the untouched base included."""
    attack: str = ""
    """Only what this attack found, by its name or label; empty: any."""
    others: bool = False
    """Go on with what won other goals of the concept."""

    def __post_init__(self) -> None:
        """Reads the run; raises ``BadRun`` where it is none, ``UnknownName`` for an eraser or attack not in it."""
        assert self.winners is not None

    @property
    def fingerprint(self) -> str:
        """Of the winners."""
        return digest(list(self.winners))

    @cached_property
    def winners(self) -> tuple[Winner, ...]:
        """All that won, in the order in which they are tried."""
        path = Path(self.path)
        found = _listed(path) if path.suffix == ".csv" else self._of_run(path)
        return tuple(dict.fromkeys(found))

    def search(self, case: Case) -> Search:
        """One look at the plain prompt, then one at each winner."""
        known = [winner for winner in self.winners if winner.concept in ("", case.concept.name)]
        own = [winner for winner in known if winner.won(case)]
        rest = [winner for winner in known if self.others and winner not in own]
        first = plain(case)
        attempts = dict.fromkeys(winner.attempt(case) for winner in (*own, *rest))
        if not known:
            raise GivesUp(f"nothing won {case.concept.name!r} in {self._source}")
        yield from look([first])
        for attempt in attempts:
            if attempt != first:
                yield from look([attempt])
        if not attempts.keys() - {first}:
            raise GivesUp(f"no prompt but the plain one is known to have won this goal in {self._source}")

    @property
    def _source(self) -> str:
        """In words."""
        return " ".join(part for part in (self.path, self.eraser, self.attack) if part)

    def _of_run(self, folder: Path) -> list[Winner]:
        outcomes = read(folder).outcomes
        for what, wanted, labels in (
            ("eraser", self.eraser, {key.eraser for key in outcomes}),
            ("attack", self.attack, {key.attack for key in outcomes}),
        ):
            if wanted and not any(_is_called(label, wanted) for label in labels):
                raise unknown(f"{what} in {folder}", wanted, labels)
        return [
            Winner(outcome.key.concept, outcome.goal.prompt, outcome.goal.seed, won.prompt, won.seed, won.guidance)
            for key, cell in outcomes.items()
            if _is_called(key.eraser, self.eraser) and _is_called(key.attack, self.attack)
            for outcome in cell
            if outcome.won is not None
            and (won := outcome.won.attempt) is not None
            and replace(won, words=None, start=None) == won
        ]


def _is_called(label: str, wanted: str) -> bool:
    return wanted in ("", label, label.partition("(")[0].partition(" [")[0])


def _listed(path: Path) -> list[Winner]:
    """The rows of a CSV file, those left out that say they were not shown, or were drafts."""
    columns, rows = read_rows(path)
    seeds, guidances = (next((name for name in names if name in columns), "") for names in (SEEDS, GUIDANCES))
    found = []
    for at, row in enumerate(rows, start=2):
        shown, draft = ((row[name] or "" if name in columns else default).strip().lower() for name, default in FLAGS)
        if shown not in ("true", "1") or draft in ("true", "1"):
            continue
        prompt, where = (row["prompt"] or "").strip(), f"{path}, row {at}"
        if not prompt:
            raise BadConcept(f"{where}: expected a prompt with words in it, got {row['prompt']!r}")
        seed = _optional(row.get(seeds), f"{where}, {seeds}")
        if seed is not None and not (seed.is_integer() and 0 <= seed < 2**63):
            raise BadConcept(f"{where}: expected a whole number from 0 on as seed, got {row[seeds]}")
        number = None if seed is None else int(seed)
        guidance = _optional(row.get(guidances), f"{where}, {guidances}")
        found.append(Winner((row.get("concept") or "").strip(), "", number, prompt, number, guidance))
    return found


def _optional(text: str | None, where: str) -> float | None:
    return read_number(text, where) if text and text.strip() else None
