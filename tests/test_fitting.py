"""The loop of the trained erasers: what it counts, where it stops, and how it goes on."""

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from cases import concept
from palimpsest import fitting
from palimpsest.erasers import Esd
from palimpsest.erasing import erase_to
from palimpsest.errors import BadRun, BadSetting
from palimpsest.fitting import Diverged, Fit, kept, training_in
from palimpsest.records import Cost
from tiny import tiny_model

KEYS = r"unet\..*\.attn2\.to_k\.weight"


def fit(model, *, iterations=6, every=0, poison=None, phase="training"):
    """A student drawn towards noise; ``poison``: the call whose loss is no number."""
    random = torch.Generator().manual_seed(1)
    student = model.copy(trainable=KEYS)
    text, calls = model.embed(["a church"]), []

    def loss():
        calls.append(1)
        latents = torch.randn(1, *model.latent_shape, generator=random)
        found = functional.mse_loss(student.predict_noise(latents, 500, text), latents)
        return found * float("nan") if len(calls) == poison else found

    optimiser = torch.optim.Adam(student.trainable(), lr=1e-2)
    one = Fit(student=student, optimiser=optimiser, random=random, iterations=iterations, every=every, phase=phase)
    return one.run(loss), calls


def end(stages):
    return list(stages)[-1][1]


@pytest.fixture
def model():
    return tiny_model(batch=1)


@pytest.fixture
def keeping(monkeypatch):
    monkeypatch.setattr(fitting, "KEPT_AFTER", 0.0)


def test_gives_the_stages_asked_for_and_leaves_the_model_alone(model):
    before = model.fingerprint
    stages = list(fit(model, every=2)[0])
    assert [done for done, _ in stages] == [2, 4, 6]
    assert len({before, *(stage.fingerprint for _, stage in stages)}) == 4
    assert model.fingerprint == before
    assert end(fit(model)[0]).fingerprint == stages[-1][1].fingerprint


def test_counts_the_forwards_and_backwards_that_were_made(model):
    before = model.meter
    end(fit(model)[0])
    assert model.meter - before == Cost(forwards=6, backwards=6, encodes=1)


def test_a_loss_that_diverges_stops_with_the_last_good_weights(model):
    whole = dict(fit(model, iterations=20, every=2)[0])
    stages, _ = fit(model, iterations=20, poison=12)
    with pytest.raises(Diverged, match=r"got nan in iteration 12; .*those after iteration 10$") as caught:
        end(stages)
    assert caught.value.iteration == 10
    assert caught.value.model.fingerprint == whole[10].fingerprint


class Stopped(Exception):
    """The machine went away."""


def stop_at(number):
    def progress(phase, done, of):
        if done == number:
            raise Stopped

    return progress


def test_goes_on_where_it_was_stopped_to_the_same_weights(model, tmp_path, keeping):
    whole = end(fit(model)[0])
    with training_in(tmp_path, progress=stop_at(4)), pytest.raises(Stopped):
        end(fit(model)[0])
    with training_in(tmp_path):
        stages, calls = fit(model)
        assert end(stages).fingerprint == whole.fingerprint
    assert len(calls) == 2
    with training_in(tmp_path):
        stages, calls = fit(model)
        assert end(stages).fingerprint == whole.fingerprint
    assert not calls


def test_what_takes_no_time_is_not_kept(model, tmp_path):
    with training_in(tmp_path):
        end(fit(model)[0])
    assert not list(tmp_path.iterdir())


def test_what_was_made_once_is_found_with_the_randomness_after_it(tmp_path, keeping):
    def make():
        return torch.randn(3, generator=random)

    found = []
    for _ in range(2):
        random = torch.Generator().manual_seed(0)
        with training_in(tmp_path):
            found.append((kept("pictures", make, random=random), torch.randn(1, generator=random)))
        make = pytest.fail
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_damaged_state_is_named(model, tmp_path, keeping):
    (tmp_path / "training.pt").write_bytes(b"PK\3\4 torn")
    with training_in(tmp_path), pytest.raises(BadRun, match=r"training\.pt: cannot be read"):
        end(fit(model)[0])


ESD = Esd(iterations=4, lr=1e-2, steps=2)
CHURCH = concept("church")


def test_erasing_into_a_file_goes_on_and_leaves_nothing_behind(model, tmp_path, keeping):
    erase_to(tmp_path / "whole.safetensors", ESD, [CHURCH], model, seed=0)
    out = tmp_path / "new" / "stopped.safetensors"
    out.parent.mkdir()
    with pytest.raises(Stopped):
        erase_to(out, ESD, [CHURCH], model, seed=0, progress=stop_at(2))
    (kept_there,) = out.parent.iterdir()
    assert kept_there.name.endswith(".training")
    done = []
    erase_to(out, ESD, [CHURCH], model, seed=0, progress=lambda phase, number, of: done.append((phase, number, of)))
    assert done == [("esd", 3, 4), ("esd", 4, 4)]
    assert list(out.parent.iterdir()) == [out]
    whole = load_file(tmp_path / "whole.safetensors")
    assert all(torch.equal(weight, whole[name]) for name, weight in load_file(out).items())


def test_a_training_that_diverges_saves_what_was_good(model, tmp_path):
    out = tmp_path / "wild.safetensors"
    with pytest.raises(BadSetting, match=r"esd: expected a finite loss, .* saved as .*wild-iteration-\d+\.safetensors"):
        erase_to(out, Esd(iterations=20, lr=1e30, steps=2), [CHURCH], model, seed=0)
    (saved,) = tmp_path.iterdir()
    assert all(weight.isfinite().all() for weight in load_file(saved).values())
