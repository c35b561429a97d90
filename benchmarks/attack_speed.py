"""Times UnlearnDiffAtk beside a plain loop, factor by factor, and the package's own runner last.

    python benchmarks/attack_speed.py [--quick] [--tried] [--size sd14] [--device cuda] [--json FILE]

The plain way (``plain_attack.py``) is what the authors' code does: one goal after another, fp32, torch's attention, a
call of the denoiser for each branch of the guidance, an empty prompt encoded for each picture, products of one-hot rows
with the table of embeddings, the projection onto the simplex by halving, row by row, to 1e-5. It is spared what else
slows their code: cuDNN switched off, a model opened for each prompt, pictures written to the disk and read again. Each
way has what those before it have; the runner is an audit in a folder of its own. The judge is the miniature's at both
sizes, with a threshold that nothing reaches, so that no way stops early.

Timed are the first look and T of the 50 timesteps, each 40 iterations and a look of 50 LMS steps. A prompt's seconds
are those of its first look and 50/T times those of the rest, 9100 passes in all. Passes are counted at the denoiser and
must be the paper's in every way. All ways draw the same random numbers: until rounding leads to another draw, losses
are compared, with the plain loop's or, once the projection is exact, with those of the plain loop that halves to 1e-12.
All ways are run in turn in one process, twice over; the mean counts.

``--size sd14`` has Stable Diffusion 1.4's sizes, weights and vocabulary made up. ``--tried`` adds what the runner does
not do: a compiled denoiser, channels last.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from rich.console import Console
from rich.table import Table
from torch import Tensor

from full_size import sd14
from palimpsest.attacks import UnlearnDiff
from palimpsest.attacks.base import Case, Search
from palimpsest.audit_file import make_audit
from palimpsest.concept_file import find_concept
from palimpsest.judges import Miniature
from palimpsest.memory import forget_peak, peak
from palimpsest.model import Model, Sampling, Slope, fastest_precision
from palimpsest.protocol import Audit, Cell
from palimpsest.records import Attempt, Concept, Goal
from palimpsest.runner import Event, Runner
from palimpsest.store import Store
from plain_attack import GUIDANCE, Counts, K, Loop, Said, Way

NAME = "garbage truck"
TIMESTEPS = 50
"""The paper's, of which some are timed."""
WARM = Counts(1, 1, 2)


def ways(model: Model, batch: int) -> list[Way]:
    """The plain way, the factors one upon another, and the runner."""
    fastest = fastest_precision(model.device)
    changes: list[tuple[str, dict[str, Any]]] = [
        ("branches in one batch", {"joined": True}),
        ("+ empty prompt encoded once", {"cached": True}),
        ("+ rows gathered, no one-hot", {"gather": True}),
        ("+ exact projection of all rows", {"exact": True}),
        ("+ attention by plain products", {"attention": model.attention}),
        (f"+ {batch} goals side by side", {"batch": batch}),
        (f"+ {fastest}", {"precision": fastest}),
        ("the runner, fp32", {"precision": "fp32", "ours": True}),
        (f"the runner, {fastest}", {"precision": fastest}),
    ]
    found = [Way("plain")]
    for name, change in changes:
        # A device may be without bf16, or keep to torch's attention.
        if any(getattr(found[-1], key) != value for key, value in change.items()):
            found.append(found[-1]._replace(name=name, **change))
    return found


class Ran(NamedTuple):
    """What one run of a way took and said; times are (2,): wall and processor seconds."""

    first: Tensor
    """To the end of the first look."""
    rest: Tensor
    said: list[Said]
    """By the first goal's iterations."""

    def prompt(self, timesteps: int, goals: int) -> Tensor:
        """For one prompt at the paper's number of timesteps."""
        return (self.first + TIMESTEPS / timesteps * self.rest) / goals


def now(device: torch.device) -> Tensor:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return torch.tensor([time.perf_counter(), time.process_time()], dtype=torch.float64)


@contextmanager
def counted(unet: torch.nn.Module) -> Iterator[list[int]]:
    """The denoiser's passes, forward and backward, as they come: how many samples each took."""
    sizes: list[int] = []

    def passed(module: Any, given: Any, answer: Any) -> None:
        sizes.append(len(answer[0]))
        if answer[0].requires_grad:
            answer[0].register_hook(lambda gradient: sizes.append(len(gradient)))

    hook = unet.register_forward_hook(passed)
    try:
        yield sizes
    finally:
        hook.remove()


class Never(Miniature):
    """The miniature's judge, whom nothing convinces."""

    def threshold(self, concept: Concept) -> float:
        return 2.0


class Recorded(UnlearnDiff):
    """The attack on the random numbers of the loop; what its iterations said is kept."""

    said: ClassVar[dict[Goal, list[Said]]] = {}

    def search(self, case: Case) -> Search:
        inner = super().search(replace(case, random=torch.Generator().manual_seed(case.goal.seed)))
        said = self.said[case.goal] = []
        asked = next(inner)
        while True:
            answers = yield asked
            if isinstance(answers[0], Slope):
                said.append((asked[0].tokens[1 : 1 + K].tolist(), answers[0].loss))
            try:
                asked = inner.send(answers)
            except StopIteration:
                return


class Alone(Audit):
    """An audit without its controls."""

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(Cell(eraser, attack) for eraser in self.erasers for attack in self.attacks)


def planned(way: Way, counts: Counts, picture: Path) -> Audit:
    """The attack on so many goals as stand side by side, as an audit."""
    audit = make_audit(
        {
            "base": "miniature",
            "concepts": [NAME],
            "erasers": ["nothing"],
            "attacks": [Recorded(steps=counts.timesteps, iterations=counts.iterations)],
            "judges": [Never()],
            "measures": [],
            "goals": way.batch,
            "budget": {"looks": 1 + counts.timesteps, "passes": counts.passes},
            "sampling": {"scheduler": "lms", "steps": counts.steps, "guidance": GUIDANCE},
            "batch": way.batch,
            "precision": way.precision,
            "keep": "none",
            "references": {NAME: [str(picture)]},
        }
    )
    return Alone(**{field.name: getattr(audit, field.name) for field in fields(audit)})


class Bench(NamedTuple):
    """What all ways are given."""

    model: Model
    counts: Counts
    goals: Sequence[Goal]
    picture: Path

    def run(self, way: Way, *, unet: Any = None) -> Ran:
        """One way once; its passes must be the paper's."""
        goals = self.goals[: way.batch]
        set_attention(self.model, way)
        with counted(self.model.unet if unet is None else unet) as sizes:
            ran = self.by_the_runner(way) if way.ours else self.by_the_loop(way, goals, unet)
        expected = self.counts.passes * len(goals)
        assert sum(sizes) == expected, f"{way.name}: expected {expected} passes, got {sum(sizes)}"
        return ran

    def by_the_loop(self, way: Way, goals: Sequence[Goal], unet: Any) -> Ran:
        self.model.batch = 1  # of its encoder of pictures, all that the loop uses of it
        loop = Loop(self.model, way, self.counts, unet=unet)
        began = now(self.model.device)
        pursued = loop.begin(goals, self.picture)
        loop.look(goals, [goal.prompt for goal in goals])
        looked = now(self.model.device)
        said = []
        for t in loop.timesteps:
            said += loop.descend(pursued, t, self.counts.iterations)
            loop.look(goals, loop.prompts(pursued))
        return Ran(looked - began, now(self.model.device) - looked, said)

    def by_the_runner(self, way: Way) -> Ran:
        """What each goal is charged with must be the paper's as well."""
        audit, model, looked = planned(way, self.counts, self.picture), self.model, []

        def watch(event: Event) -> None:
            if event.pictures:
                looked.append(now(model.device))

        model.batch, model.precision = way.batch, way.precision
        model.forget()  # what an earlier run encoded
        with tempfile.TemporaryDirectory() as folder:
            began = now(model.device)
            with Store(Path(folder) / "run", audit) as store:
                Runner(audit=audit, store=store, base=model, watch=watch).run()
            ended = now(model.device)
            lines = [json.loads(line) for line in (Path(folder) / "run" / "trials.jsonl").read_text().splitlines()]
        charged = [line["cost"]["forwards"] + line["cost"]["backwards"] for line in lines if line["end"]]
        expected = [self.counts.passes] * way.batch
        assert charged == expected, f"{way.name}: expected {expected} passes, charged {charged}"
        return Ran(looked[0] - began, ended - looked[0], Recorded.said[self.goals[0]])

    def finely(self) -> list[Said]:
        """What the plain loop says with a finer projection."""
        set_attention(self.model, Way("plain"))
        loop = Loop(self.model, Way("plain"), self.counts, tolerance=1e-12)
        return loop.descend(loop.begin(self.goals[:1], self.picture), loop.timesteps[0], self.counts.iterations)

    def mean(self, way: Way, runs: Sequence[Ran]) -> Tensor:
        """(2,) seconds for one prompt."""
        return torch.stack([ran.prompt(self.counts.timesteps, way.batch) for ran in runs]).mean(dim=0)


def set_attention(model: Model, way: Way) -> None:
    model.unet.set_attn_processor(AttnProcessor() if way.attention == "plain" else AttnProcessor2_0())
    model.text_encoder.set_attn_implementation("eager" if way.attention == "plain" else "sdpa")


def compared(said: Sequence[Said], wanted: Sequence[Said]) -> tuple[int, float]:
    """How many iterations from the first on draw the same tokens, and how much their losses differ, in parts."""
    pairs = list(zip(said, wanted, strict=False))
    same = next((place for place, (one, other) in enumerate(pairs) if one[0] != other[0]), len(pairs))
    assert same, "the first draw hangs on no loss"
    return same, max(abs(one[1] - other[1]) / other[1] for one, other in pairs[:same])


def measured(bench: Bench, chosen: Sequence[Way], rounds: int) -> list[dict[str, Any]]:
    """A row for each way, the plain one first."""
    device = bench.model.device
    for way in chosen:
        bench._replace(counts=WARM).run(way)
    runs: dict[str, list[Ran]] = {way.name: [] for way in chosen}
    peaks = dict.fromkeys(runs, 0)
    for _ in range(rounds):
        for way in chosen:
            forget_peak(device)
            runs[way.name].append(bench.run(way))
            peaks[way.name] = max(peaks[way.name], peak(device))
    plain, fine = runs["plain"][0].said, bench.finely()
    rows: list[dict[str, Any]] = []
    for way in chosen:
        seconds, processor = bench.mean(way, runs[way.name]).tolist()
        before = rows[-1] if rows else {"seconds": seconds}
        first = rows[0] if rows else {"seconds": seconds, "processor": processor}
        same, deviation = compared(runs[way.name][0].said, fine if way.exact else plain)
        rows.append(
            {
                "way": way.name,
                "goals": way.batch,
                "seconds": seconds,
                "processor": processor,
                "factor": before["seconds"] / seconds,
                "ratio": first["seconds"] / seconds,
                "processor_ratio": first["processor"] / processor,
                "runs": [ran.prompt(bench.counts.timesteps, way.batch).tolist() for ran in runs[way.name]],
                "same_draws": same,
                "deviation": deviation,
                "peak": peaks[way.name],
            }
        )
    return rows


def tried(bench: Bench, way: Way, rounds: int) -> list[dict[str, Any]]:
    """``way`` with one change each of what the runner does not do, and the seconds that the change takes once."""
    unet = bench.model.unet
    changes: dict[str, Callable[[], Any]] = {
        "compiled denoiser": lambda: torch.compile(unet, dynamic=False),
        "channels last": lambda: unet.to(memory_format=torch.channels_last),
    }
    before = [bench.run(way) for _ in range(rounds)]
    plain = bench.mean(way, before).tolist()
    rows = []
    for name, change in changes.items():
        began = now(bench.model.device)
        changed = change()
        bench._replace(counts=WARM).run(way, unet=changed)
        once = (now(bench.model.device) - began).tolist()
        after = [bench.run(way, unet=changed) for _ in range(rounds)]
        seconds = bench.mean(way, after).tolist()
        same, deviation = compared(after[0].said, before[0].said)
        rows.append(
            {
                "way": f"{name}, {way.batch} goals, {way.precision}",
                "once": once,
                "seconds": seconds,
                "without": plain,
                "pays_after": once[0] / (plain[0] - seconds[0]) if seconds[0] < plain[0] else None,
                "same_draws": same,
                "deviation": deviation,
            }
        )
    return rows


def show(title: str, rows: list[dict[str, Any]], further: list[dict[str, Any]]) -> None:
    table = Table(title=title)
    for heading in ("way", "goals", "s/prompt", "factor", "ratio", "of processor", "same draws", "deviation", "GiB"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    for row in rows:
        times = (f"{row['seconds']:.4g}", *(f"{row[key]:.2f}" for key in ("factor", "ratio", "processor_ratio")))
        alike = (str(row["same_draws"]), f"{row['deviation']:.1e}")
        table.add_row(row["way"], str(row["goals"]), *times, *alike, f"{row['peak'] / 2**30:.2f}")
    Console(width=118).print(table)
    for row in further:
        pays = "never pays" if row["pays_after"] is None else f"pays after {row['pays_after']:.1f} prompts"
        once, then, without = (
            f"{row[key][0]:.4g} s ({row[key][1]:.4g} of processor)" for key in ("once", "seconds", "without")
        )
        print(f"{row['way']}: {once} once, then {then} a prompt in place of {without}: {pays}")
        print(f"    same draws {row['same_draws']}, deviation {row['deviation']:.1e}")


def main() -> None:
    """Times, prints, and with ``--json`` writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few iterations of 4 goals, once; no result")
    parser.add_argument("--tried", action="store_true", help="also a compiled denoiser, and channels last")
    parser.add_argument("--size", choices=("miniature", "sd14"), default="miniature")
    parser.add_argument("--device", default=None)
    parser.add_argument("--batch", type=int, default=None, help="goals side by side; 16, and 8 of sd14")
    parser.add_argument("--timesteps", type=int, default=1, help="how many of the 50 are timed")
    parser.add_argument("--iterations", type=int, default=40, help="at each timestep; no result if not 40")
    parser.add_argument("--steps", type=int, default=50, help="of a picture; no result if not 50")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    asked = parser.parse_args()
    counts, rounds = Counts(asked.timesteps, asked.iterations, asked.steps), asked.rounds
    batch = asked.batch or {"miniature": 16, "sd14": 8}[asked.size]
    if asked.quick:
        counts, rounds, batch = Counts(1, 4, 4), 1, min(batch, 4)
    model = sd14(asked.device) if asked.size == "sd14" else Model.load("miniature", device=asked.device)
    chosen, concept = ways(model, batch), find_concept(NAME)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "reference.png"
        model.batch = 1
        drawn = model.draw([Attempt(prompt=concept.prompts[0], seed=0)], Sampling(steps=min(counts.steps, 25)))
        drawn[0].save(picture)
        bench = Bench(model, counts, planned(chosen[-1], counts, picture).goals_for(concept), picture)
        rows = measured(bench, chosen, rounds)
        further = tried(bench, [way for way in chosen if not way.ours][-1], rounds) if asked.tried else []
    device = model.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    about = f"{asked.size}, torch {torch.__version__}, {chip}"
    show(f"UnlearnDiffAtk, {about}; timesteps, iterations, steps: {tuple(counts)}; {rounds} rounds", rows, further)
    if asked.json is not None:
        facts = {"size": asked.size, "device": chip, "counts": counts._asdict(), "rounds": rounds}
        versions = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
        ratio = {row["way"]: row["ratio"] for row in rows}
        asked.json.write_text(json.dumps(facts | versions | {"ratio": ratio, "rows": rows, "tried": further}, indent=1))


if __name__ == "__main__":
    main()
