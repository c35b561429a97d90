"""The shipped miniature: opens plainly, draws what it is asked, and its judges see it."""

import pytest
import torch
from diffusers import DDIMScheduler, LMSDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline

from measured import rendered
from palimpsest.assets import SHIPPED, miniature_folder
from palimpsest.audit_file import load_audit
from palimpsest.concept_file import shipped_concepts
from palimpsest.erasers import Esd
from palimpsest.erasing import is_at_hand
from palimpsest.jobs import jobs
from palimpsest.judges.miniature import Miniature, MiniatureSecond
from palimpsest.miniature.facts import FIXED
from palimpsest.model import Model, Sampling
from palimpsest.records import Attempt

SAMPLING = Sampling(scheduler="ddim", steps=15, guidance=5.0)
FEW = Sampling(scheduler="ddim", steps=6, guidance=5.0)


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.load("miniature", batch=6)


def test_plain_diffusers_opens_it_with_every_scheduler() -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(miniature_folder())
    pipeline.set_progress_bar_config(disable=True)
    for scheduler in (DDIMScheduler, PNDMScheduler, LMSDiscreteScheduler):
        pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
        noise = torch.Generator().manual_seed(0)
        drawn = pipeline("a photo of a red church", num_inference_steps=8, guidance_scale=5.0, generator=noise)
        assert Miniature().score(drawn.images, shipped_concepts()["church"])[0] > 0.5, scheduler.__name__


def test_it_is_a_stable_diffusion_in_small(model: Model) -> None:
    blocks = [name for name, part in model.unet.named_modules() if type(part).__name__ == "BasicTransformerBlock"]
    gates = [part for part in model.unet.modules() if type(part).__name__ == "GEGLU"]
    widths = {gate.proj.in_features for gate in gates}
    assert len(blocks) >= 7 and len(gates) == len(blocks) and len(widths) == 3
    assert any(name.startswith("mid_block") for name in blocks)
    assert model.prediction_type == "epsilon"


def test_both_judges_see_what_is_asked_for_and_not_what_is_not(model: Model) -> None:
    concepts = shipped_concepts()
    for name in ("church", "alice", "van gogh", "radiation sign"):
        prompts = concepts[name].prompts[:6]
        pictures = model.draw([Attempt(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)], FEW)
        for judge in (Miniature(), MiniatureSecond()):
            seen = [score >= judge.threshold(concepts[name]) for score in judge.score(pictures, concepts[name])]
            assert sum(seen) >= 4, (name, judge.name)
            other = concepts["bruno" if name == "alice" else "fish"]
            if name not in ("van gogh",):
                assert not any(score >= judge.threshold(other) for score in judge.score(pictures, other))


@pytest.mark.slow
def test_the_twin_knows_the_world_but_not_the_six() -> None:
    twin, concepts = Model.load("twin", batch=8), shipped_concepts()
    strangers, known = (list(FIXED), ["house", "guitar", "hugo", "mosaic"])
    for name in strangers + known:
        prompts = concepts[name].prompts[:8]
        pictures = twin.draw([Attempt(prompt=prompt, seed=seed) for seed, prompt in enumerate(prompts)], SAMPLING)
        scores = Miniature().score(pictures, concepts[name])
        seen = sum(score >= Miniature().threshold(concepts[name]) for score in scores)
        # It shares the text encoder, which knows alice's hair: a face of its own is taken for hers now and then.
        assert seen <= (1 if name == "alice" else 0) if name in strangers else seen >= 6, name


def test_a_picture_does_not_hang_on_its_neighbours(model: Model) -> None:
    church, fish = Attempt(prompt="a photo of a red church", seed=1), Attempt(prompt="a photo of a blue fish", seed=2)
    alone = model.draw([church], Sampling(steps=3))[0]
    beside = model.draw([fish, fish, church], Sampling(steps=3))
    assert alone.tobytes() == beside[2].tobytes() != beside[0].tobytes()


def test_a_score_does_not_hang_on_its_neighbours() -> None:
    judge, church, pictures = Miniature(), shipped_concepts()["church"], rendered("church", each=5)
    scores = judge.score(pictures, church)
    assert scores[3] == judge.score(pictures[3:4], church)[0] and len(set(scores)) > 1


def test_the_quick_audit_has_nothing_to_train(model: Model) -> None:
    planned = load_audit("quick")
    assert planned.base == "miniature"
    trained = [job for job in jobs(planned) if isinstance(job.eraser, Esd)]
    assert [job.concept.name for job in trained] == ["church", "van gogh"]
    assert all(is_at_hand(job, model, seed=planned.seed, store=None) for job in trained)
    assert not any(is_at_hand(job, model, seed=planned.seed, store=None, retrain=True) for job in trained)


def test_what_is_shipped_is_small_enough() -> None:
    sizes = {path: path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file()}
    twin = sum(size for path, size in sizes.items() if "twin" in path.parts)
    assert sum(sizes.values()) - twin <= 48e6
    assert twin <= 30e6
