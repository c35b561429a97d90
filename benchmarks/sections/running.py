"""How fast the model is, and whether it gives the same again."""

import time
from collections.abc import Callable
from functools import partial

import torch

from palimpsest.judges.miniature import as_tensor
from palimpsest.miniature.facts import FIXED, OBJECTS
from palimpsest.miniature.goals import concept_record
from palimpsest.model import Model, Probe
from palimpsest.records import Attempt
from sections.bench import PRECISION, PRECISIONS, SEED, Bench, table


def speed(bench: Bench) -> None:
    """Pictures and probes per second."""
    rows = []
    for precision in PRECISIONS:
        for batch in (1, 8) if bench.quick else (1, 8, 32):
            model = Model.load("miniature", precision=precision, batch=batch)
            attempts = [Attempt(prompt="a photo of a red church", seed=i) for i in range(batch)]
            model.draw(attempts[:1], bench.short)
            pictures = _rate(partial(model.draw, attempts, bench.sampling), batch, bench.quick)
            tokens = model.tokens("a photo of a red church")
            noise = torch.randn(model.latent_shape, generator=torch.Generator().manual_seed(0))
            probes = [
                Probe(tokens=tokens, latents=noise, step=500, loss=lambda said, _: said.square().mean(), wrt="words")
                for _ in range(batch)
            ]
            asked = _rate(partial(model.ask, probes), batch, bench.quick)
            rows.append([precision, str(batch), f"{pictures:.1f}", f"{asked:.1f}"])
    drawn = f"pictures/s ({bench.sampling.steps} steps, guidance)"
    table("Speed", ["precision", "batch", drawn, "probes/s (forward and backward)"], rows)
    bench.told["speed"] = rows


def determinism(bench: Bench) -> None:
    """Whether a picture hangs on what else is in its batch, and how much on the batch's size."""
    wanted = [Attempt(prompt=concept_record(name).prompts[0], seed=SEED + i) for i, name in enumerate(FIXED)]
    strangers = [Attempt(prompt=concept_record(name).prompts[1], seed=i) for i, name in enumerate(OBJECTS)]
    rows = []
    for precision in PRECISIONS:
        bench.model.precision, bench.model.batch = precision, bench.batch
        alone = as_tensor(bench.model.draw(wanted, bench.sampling)).float()
        mixed = as_tensor(bench.model.draw([*strangers, *wanted[::-1]], bench.sampling)).float()
        among = mixed[len(strangers) :].flip(0)
        rows.append([f"{precision}: among others, in another order", f"{(alone - among).abs().mean() / 255:.6f}", "0"])
        for batch in (1, 8):
            bench.model.batch = batch
            other = as_tensor(bench.model.draw(wanted, bench.sampling)).float()
            difference = (alone - other).abs().mean() / 255
            told = f"{precision}: batches of {batch} instead of {bench.batch}"
            rows.append([told, f"{difference:.6f}", "< 0.003922"])
    bench.model.precision, bench.model.batch = PRECISION, bench.batch
    table("Determinism", ["", f"mean difference of {len(wanted)} pictures (0 to 1)", "bar"], rows)
    bench.told["determinism"] = rows


def _rate(work: Callable[[], object], count: int, quick: bool) -> float:
    work()
    started, done = time.perf_counter(), 0
    while time.perf_counter() - started < (0.1 if quick else 4):
        work()
        done += count
    return done / (time.perf_counter() - started)
