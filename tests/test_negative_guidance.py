"""Where ESD's kin ask: trajectories side by side are the trajectories one by one."""

import pytest
import torch

from palimpsest.negative_guidance import point, points, predictions
from tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=3)


def calls(model, run):
    """What ``run`` gives, and the sizes of the batches that the denoiser was given."""
    sizes = []
    hook = model.unet.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    try:
        return run(), sizes
    finally:
        hook.remove()


@pytest.mark.parametrize("within", [True, False])
def test_side_by_side_is_one_by_one(model, within):
    texts = [model.embed(["church"]).repeat(2), model.embed(["van gogh"]), *[model.embed(["fish"])] * 3]
    asked = {"steps": 5, "guidance": 3.0, "within": within}
    one, other = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    (latents, times), together = calls(model, lambda: points(model, texts, one, **asked))
    alone, apart = calls(model, lambda: [point(model, text, other, **asked) for text in texts])
    assert [len(found) for found in latents] == [len(text) for text in texts]
    for found, at, (expected, when) in zip(latents, times, alone, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)
        assert torch.equal(at, when)
    assert torch.equal(one.get_state(), other.get_state())
    assert sum(together) == sum(apart)  # no pass more
    assert len(together) < len(apart)
    assert max(together) <= 2 * model.batch  # both branches


def test_no_trajectories_are_none(model):
    assert points(model, [], torch.Generator(), steps=5, guidance=3.0, within=True) == ([], [])


def test_predictions_come_in_batches_of_the_models_own_size(model):
    latents = torch.randn(7, *model.latent_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    steps, null, each = torch.arange(7) * 100, model.embed([""]), model.embed(["church"] * 7)
    (without, given), sizes = calls(model, lambda: predictions(model, latents, steps, [null, each]))
    assert sizes == [6, 6, 2]
    for found, text in ((without, null.repeat(7)), (given, each)):
        torch.testing.assert_close(found, model.predict_noise(latents, steps, text).detach(), atol=1e-9, rtol=0)
