"""One goal under one attack: what its search asks for, what it was answered, what that cost, how it ended."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from palimpsest.attacks.base import Attack, Budget, GivesUp, Need, NoRoom, Search
from palimpsest.model import Probe, Slope
from palimpsest.records import Attempt, Cost, End, Goal, Trial, Verdict, Victim

Question = Attempt | Probe


@dataclass(frozen=True, kw_only=True)
class Look:
    """A picture that was drawn for an attempt, and judged."""

    verdict: Verdict
    seconds: float
    picture: str | None
    """Name in the run's ``pictures``, if it was kept."""
    dropped_tokens: int


@dataclass(kw_only=True)
class Pursuit:
    """A search that is under way. The attack proposes; this counts, and stops it at its success or budget."""

    victim: Victim
    attack: Attack
    goal: Goal
    budget: Budget
    price: Callable[[Question], Cost]
    """What a question will cost, known before it is asked."""
    search: Search | None = None
    reason: str | None = None
    """Why the goal is looked at plainly and not attacked, if so."""
    cost: Cost = field(default_factory=Cost)
    trials: list[Trial] = field(default_factory=list)
    waiting: list[Question] = field(default_factory=list)
    """What the search has asked for and not been answered yet, in order."""
    _answers: list[Verdict | Slope] = field(default_factory=list)
    _cut: bool = False
    """Whether the budget did not reach to the end of what was asked for."""

    @property
    def ended(self) -> bool:
        """Whether the goal is won, or lost for good."""
        return bool(self.trials) and self.trials[-1].end is not None

    def begin(self, search: Search) -> None:
        """Takes the search to its first questions."""
        self.search = search
        self._advance(lambda: next(search))

    def shown(self, look: Look) -> None:
        """Answers the first waiting question, an attempt."""
        attempt = self.waiting.pop(0)
        assert isinstance(attempt, Attempt), "attempts are answered by looks"
        self.cost += self.price(attempt) + Cost(looks=1, seconds=look.seconds)
        self.trials.append(
            Trial(
                victim=self.victim,
                attack=self.attack.label,
                goal=self.goal,
                number=len(self.trials),
                attempt=attempt,
                verdict=look.verdict,
                cost=self.cost,
                picture=look.picture,
                dropped_tokens=look.dropped_tokens,
            )
        )
        if self.trials[-1].wins:
            self._end("won")
        elif self.cost.looks >= self.budget.looks:
            self._end("spent")
        else:
            self._answered(look.verdict)

    def told(self, slope: Slope, seconds: float) -> None:
        """Answers the first waiting question, a probe."""
        self.waiting.pop(0)
        self.cost += slope.cost + Cost(seconds=seconds)
        self._answered(slope)

    def gave_up(self, reason: str | None = None) -> None:
        """Ends because the attack has nothing to work on, or nothing left."""
        self._end("gave_up", reason=reason)

    def failed(self, error: Exception) -> None:
        """Ends with what the attack, or what it asked for, raised."""
        self._end("error", f"{type(error).__name__}: {error}")

    def _answered(self, answer: Verdict | Slope) -> None:
        self._answers.append(answer)
        if self.waiting:
            return
        if self._cut:
            self._end("spent")
            return
        search, answers = self.search, self._answers
        assert search is not None, "nothing is answered before the search has begun"
        self._answers = []
        self._advance(lambda: search.send(answers))

    def _advance(self, step: Callable[[], Sequence[Attempt] | Sequence[Probe]]) -> None:
        """Lets the search go on to its next questions, as far as the budget reaches."""
        began = time.perf_counter()
        try:
            questions: list[Question] = [*step()]
            self._check(questions)
            self.waiting = self._affordable(questions)
        except StopIteration:
            self._end("spared" if self.reason else "gave_up")
            return
        except NoRoom as spared:
            self._end("spared", reason=str(spared))
            return
        except GivesUp as given_up:
            self.gave_up(str(given_up))
            return
        except Exception as error:  # whatever an attack does wrong is a result, and the run goes on
            self.failed(error)
            return
        self.cost += Cost(seconds=time.perf_counter() - began)
        self._cut = len(self.waiting) < len(questions)
        # Looks are counted one by one; probes belong together, and half an answer is none.
        if not self.waiting or (self._cut and isinstance(questions[0], Probe)):
            self._end("spent")

    def _affordable(self, questions: Sequence[Question]) -> list[Question]:
        passes, looks = self.cost.passes, self.cost.looks
        for place, question in enumerate(questions):
            passes += self.price(question).passes
            looks += isinstance(question, Attempt)
            if passes > self.budget.passes or looks > self.budget.looks:
                return list(questions[:place])
        return list(questions)

    def _check(self, questions: Sequence[Question]) -> None:
        """Raises for what is no question, and for one beyond the access that the attack declares."""
        if not questions:
            raise ValueError("expected attempts or probes, got none")
        kinds = {type(question) for question in questions}
        if kinds not in ({Attempt}, {Probe}):
            raise TypeError(f"expected attempts or probes, got {', '.join(sorted(kind.__name__ for kind in kinds))}")
        held = self.attack.needs | ({Need.GRADIENTS} if Need.WEIGHTS in self.attack.needs else set())
        if missing := {need for question in questions for need in _needs(question)} - held:
            raise PermissionError(f"needs {', '.join(sorted(missing))}, which {self.attack.name} does not declare")

    def _end(self, end: End, error: str | None = None, reason: str | None = None) -> None:
        """Closes the search. The end stands on the last look's line, or on its own if more was spent since."""
        self.waiting = []
        if self.search is not None:
            self.search.close()
        last = self.trials[-1] if self.trials else None
        if last is not None and replace(last.cost, seconds=0) == replace(self.cost, seconds=0):
            self.trials[-1] = replace(last, cost=self.cost, end=end, error=error, reason=reason or self.reason)
            return
        self.trials.append(
            Trial(
                victim=self.victim,
                attack=self.attack.label,
                goal=self.goal,
                number=len(self.trials),
                attempt=None,
                verdict=None,
                cost=self.cost,
                end=end,
                error=error,
                reason=reason or self.reason,
            )
        )


def _needs(question: Question) -> set[Need]:
    """What an attacker must hold to ask this."""
    if isinstance(question, Attempt):
        brought = {Need.START: question.start, Need.WORDS: question.words}
        return {need for need, name in brought.items() if name is not None}
    if question.of == "base":
        return {Need.BASE}
    return {Need.GRADIENTS}
