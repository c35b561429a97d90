"""All searches against one model, side by side: what they wait for is drawn, asked and judged in full batches."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice, takewhile
from typing import TypeVar

import torch
from PIL.Image import Image
from torch import Tensor

from palimpsest.judges.base import Judge
from palimpsest.model import Model, Probe, Sampling, Slope
from palimpsest.protocol import Keep
from palimpsest.pursuit import Look, Pursuit, Question
from palimpsest.records import Attempt, Concept, Cost, Verdict
from palimpsest.store import Store

LIVE = 2
"""Batches' worth of searches under way: enough that a full batch of one kind is nearly always waiting."""

QuestionT = TypeVar("QuestionT", Attempt, Probe)
AnswerT = TypeVar("AnswerT")


@dataclass(kw_only=True)
class Searching:
    """The searches of all goals of all attacks against one model."""

    model: Model
    base: Model
    concept: Concept
    judges: Sequence[Judge]
    sampling: Sampling
    keep: Keep
    store: Store
    tensors: dict[str, Tensor] = field(default_factory=dict)
    """What the attempts' ``words`` and ``start`` name."""
    _plain: dict[Attempt, Look | Exception] = field(default_factory=dict)
    """Looks at goals as they stand, with which most attacks begin: drawn once, charged to each."""
    _prices: dict[Attempt, Cost] = field(default_factory=dict)

    def price(self, question: Question) -> Cost:
        """What a question will cost, looks excluded."""
        if isinstance(question, Probe):
            asked = self.model if question.of == "victim" else self.base
            return asked.probe_cost(question)
        alike = replace(question, prompt="", seed=0, words=None, start=None)
        if alike not in self._prices:
            self._prices[alike] = self.model.picture_cost(alike, self.sampling)
        return self._prices[alike]

    def run(self, pursuits: Iterator[Pursuit], after: Callable[[Sequence[Pursuit], int], None]) -> None:
        """Takes every goal to its end and writes it down; what has ended makes room for the next.

        ``after`` is told, after each batch, the pursuits that were under way and the number of pictures drawn.
        """
        live: list[Pursuit] = []
        while live := [*live, *islice(pursuits, LIVE * self.model.batch - len(live))]:
            drawn = self._serve([pursuit for pursuit in live if not pursuit.ended])
            for pursuit in live:
                if pursuit.ended:
                    self.store.finish(pursuit.trials)
            after(live, drawn)
            live = [pursuit for pursuit in live if not pursuit.ended]

    def tried(self, attempts: Sequence[Attempt]) -> tuple[list[Verdict], Cost]:
        """Verdicts on pictures that belong to no goal, and what they cost; raises what drawing raises."""
        began = time.perf_counter()
        verdicts: list[Verdict] = []
        for at in range(0, len(attempts), self.model.batch):
            verdicts += self._judge(self.model.draw(attempts[at : at + self.model.batch], self.sampling))
        spent = Cost(looks=len(attempts), seconds=time.perf_counter() - began)
        return verdicts, sum((self.price(attempt) for attempt in attempts), spent)

    def _serve(self, live: Sequence[Pursuit]) -> int:
        """Answers one batch, of the kind of question of which most are waiting; returns the pictures drawn."""
        waiting: Counter[Hashable] = Counter()
        for pursuit in live:
            waiting[_kind(pursuit.waiting[0])] += len(_leading(pursuit))
        if not waiting:
            return 0
        kind = max(waiting, key=lambda kind: min(waiting[kind], self.model.batch))
        asked = [pursuit for pursuit in live if _kind(pursuit.waiting[0]) == kind]
        if isinstance(asked[0].waiting[0], Attempt):
            return self._look(asked)
        self._ask(asked)
        return 0

    def _look(self, asked: Sequence[Pursuit]) -> int:
        goals = (pursuit.goal for pursuit in asked)
        plain = {Attempt(prompt=goal.prompt, seed=goal.seed, guidance=goal.guidance) for goal in goals}
        attempts = (question for pursuit in asked for question in _leading(pursuit) if isinstance(question, Attempt))
        new = [attempt for attempt in dict.fromkeys(attempts) if attempt not in self._plain][: self.model.batch]
        looks = self._plain | self._looks(new, plain)
        self._plain = {attempt: look for attempt, look in looks.items() if attempt in plain or attempt in self._plain}
        for pursuit in asked:
            # What a search asks for next may have been drawn already.
            while pursuit.waiting and isinstance(first := pursuit.waiting[0], Attempt) and first in looks:
                look = looks[first]
                if isinstance(look, Look):
                    pursuit.shown(look)
                else:
                    pursuit.failed(look)
        return len(new)

    def _looks(self, attempts: Sequence[Attempt], plain: set[Attempt]) -> dict[Attempt, Look | Exception]:
        """Draws and judges, at most one batch."""
        began = time.perf_counter()
        drawn = _each(lambda some: self.model.draw(some, self.sampling, tensors=self.tensors), attempts)
        pictures = {attempt: found for attempt, found in zip(attempts, drawn, strict=True) if isinstance(found, Image)}
        verdicts = dict(zip(pictures, self._judge(list(pictures.values())), strict=True))
        seconds = (time.perf_counter() - began) / max(1, len(attempts))
        looks: dict[Attempt, Look | Exception] = {}
        for attempt, found in zip(attempts, drawn, strict=True):
            if isinstance(found, Exception):
                looks[attempt] = found
                continue
            verdict = verdicts[attempt]
            kept = self.keep == "all" or (self.keep == "hits" and (bool(verdict.shown) or attempt in plain))
            looks[attempt] = Look(
                verdict=verdict,
                seconds=seconds,
                picture=self.store.keep_picture(found) if kept else None,
                dropped_tokens=self.model.dropped(attempt.prompt),
            )
        return looks

    def _judge(self, pictures: Sequence[Image]) -> list[Verdict]:
        if not pictures:
            return []
        scores = {judge.label: judge.score(pictures, self.concept) for judge in self.judges}
        chief = self.judges[0]
        threshold = chief.threshold(self.concept)
        return [
            Verdict(
                scores={judge: given[place] for judge, given in scores.items()},
                shown=None if score is None else score >= threshold,
            )
            for place, score in enumerate(scores[chief.label])
        ]

    def _ask(self, asked: Sequence[Pursuit]) -> None:
        pairs = [(pursuit, question) for pursuit in asked for question in _leading(pursuit)][: self.model.batch]
        probes = [question for _, question in pairs if isinstance(question, Probe)]
        began = time.perf_counter()
        slopes = _each(lambda some: self.model.ask(some, base=self.base), probes)
        seconds = (time.perf_counter() - began) / len(probes)
        for (pursuit, _), slope in zip(pairs, slopes, strict=True):
            if pursuit.ended:  # by an earlier question of the same batch
                continue
            if isinstance(slope, Slope):
                pursuit.told(slope, seconds)
            else:
                pursuit.failed(slope)


def _each(
    call: Callable[[list[QuestionT]], list[AnswerT]], questions: Sequence[QuestionT]
) -> list[AnswerT | Exception]:
    """An answer to each question; one that cannot be answered spoils no other's."""
    try:
        return [*call(list(questions))]
    except torch.OutOfMemoryError:  # no attack's fault
        raise
    except Exception as error:
        if len(questions) == 1:
            return [error]
        return [_each(call, [question])[0] for question in questions]


def _leading(pursuit: Pursuit) -> list[Question]:
    """The questions that may be answered next: the first, and those of its kind right behind it."""
    kind = _kind(pursuit.waiting[0])
    return list(takewhile(lambda question: _kind(question) == kind, pursuit.waiting))


def _kind(question: Question) -> Hashable:
    """What questions share that are best answered in one batch."""
    if isinstance(question, Attempt):
        return Attempt, question.draft, question.start_step
    return Probe, question.of, question.wrt, question.guidance is None
