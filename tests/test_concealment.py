"""What stands where pruning took something: how surely it tells, and exactly what each filling is."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from cases import concept
from palimpsest import concealment
from palimpsest.audit_file import parse_spec
from palimpsest.component import build
from palimpsest.concealment import detectability, detectability_between, sigma_for
from palimpsest.erasers import ERASERS, Conceal, ConceptPrune, Magnitude
from palimpsest.errors import BadSetting
from palimpsest.pruning import Mask
from tiny import tiny_model

ENTRIES = (40, 60)


def entries(*, seed=0, dtype=torch.float32):
    """A matrix whose rows differ in spread, and a mask of its large entries in every other column."""
    random = torch.Generator().manual_seed(seed)
    weight = torch.randn(ENTRIES, generator=random) * torch.linspace(1, 2, ENTRIES[0]).unsqueeze(1)
    weight = weight.to(dtype).float()
    mask = (weight.abs() > weight.abs().median()) & (torch.arange(ENTRIES[1]) % 2 == 0)
    return weight, mask


def fill(name, *, seed=1, **settings):
    weight, mask = entries()
    return getattr(concealment, name)(weight, mask, torch.Generator().manual_seed(seed), **settings)


@pytest.mark.parametrize(("sigma_m", "p"), [(0.001, 0.48), (0.003, 0.24), (0.01, 0.085), (0.03, 0.03)])
def test_p_of_w_has_the_papers_limits(sigma_m, p):
    settings = {"sigma_m": sigma_m, "sigma_u": 0.03, "share": 0.03}
    near, far = detectability([1e-9, 10.0], **settings)
    assert detectability(0.0, **settings) == pytest.approx(near, rel=1e-6) == pytest.approx(p, abs=0.005)
    assert far == pytest.approx(0.03)
    inside = detectability(np.linspace(0, 0.2, 50), **settings)
    assert (np.diff(inside) <= 1e-12).all()


def test_p_of_w_is_counted_in_a_sample():
    random = np.random.default_rng(0)
    modified, others = random.normal(0, 0.01, 40_000), random.normal(0, 0.03, 160_000)
    for w in (0.005, 0.02):
        few, many = (abs(modified) <= w).sum(), (abs(others) <= w).sum()
        told = detectability(w, sigma_m=0.01, sigma_u=0.03, share=0.2)
        assert few / (few + many) == pytest.approx(float(told), abs=0.01)


def test_of_zeros_p_of_w_is_certain_at_zero_alone():
    told = detectability([0.0, 0.03, np.inf], sigma_m=0.0, sigma_u=0.03, share=0.1)
    assert told[0] == 1.0
    assert told[1] == pytest.approx(0.1 / (0.1 + 0.9 * 0.6827), abs=1e-4)
    assert told[2] == pytest.approx(0.1)


def test_any_interval_and_any_distribution():
    kinds = {"modified": norm(0, 0.01).cdf, "unmodified": norm(0, 0.03).cdf, "share": 0.2}
    symmetric = detectability_between(-0.02, 0.02, **kinds)
    assert symmetric == pytest.approx(float(detectability(0.02, sigma_m=0.01, sigma_u=0.03, share=0.2)))
    aside = detectability_between(0.0, 0.1, modified=norm(0.05, 0.01).cdf, unmodified=norm(0, 0.03).cdf, share=0.2)
    assert aside == pytest.approx(0.2 / (0.2 + 0.8 * 0.4995), abs=1e-3)
    assert np.isnan(detectability_between(5.0, 6.0, modified=lambda x: 1.0, unmodified=lambda x: 1.0, share=0.2))


@pytest.mark.parametrize("share", [0.02, 0.1])
@pytest.mark.parametrize("times", [1.0, 1.5, 3.0])
def test_sigma_is_the_smallest_that_keeps_to_the_bound(times, share):
    sigma = sigma_for(times, sigma_u=0.03, share=share)
    at_zero = [detectability(0.0, sigma_m=factor * sigma, sigma_u=0.03, share=share) for factor in (1, 0.99)]
    assert at_zero[0] == pytest.approx(times * share)
    assert at_zero[1] > times * share


def test_sigma_at_the_ends():
    assert sigma_for(1.0, sigma_u=0.03, share=0.1) == pytest.approx(0.03)
    assert sigma_for(10.0, sigma_u=0.03, share=0.1) == 0.0
    with pytest.raises(ValueError, match="expected times >= 1, got 0.5"):
        sigma_for(0.5, sigma_u=0.03, share=0.1)
    with pytest.raises(ValueError, match="0 < share < 1"):
        detectability(0.1, sigma_m=0.1, sigma_u=0.1, share=0.0)


FILLINGS = {
    "zero": {},
    "gaussian": {"sigma": 0.1},
    "formula": {"times": 2.0},
    "survivors": {},
    "levelled": {},
    "flipped": {},
    "shuffled": {},
}


@pytest.mark.parametrize("name", FILLINGS)
def test_a_filling_leaves_what_survives_and_hangs_on_its_randomness_alone(name):
    weight, mask = entries()
    before = weight.clone()
    filled = fill(name, **FILLINGS[name])
    assert torch.equal(filled[~mask], weight[~mask])
    assert not torch.equal(filled[mask], weight[mask])
    assert torch.equal(entries()[0], before)
    assert torch.equal(filled, fill(name, **FILLINGS[name]))
    assert torch.equal(filled, fill(name, seed=2, **FILLINGS[name])) == (name in {"zero", "flipped"})


def test_gaussians_are_as_wide_as_they_say():
    weight, mask = entries()
    assert fill("zero")[mask].abs().max() == 0
    assert fill("gaussian", sigma=0.1)[mask].std() == pytest.approx(0.1, rel=0.15)
    sigma_u, share = float(weight[~mask].square().mean().sqrt()), float(mask.float().mean())
    sigma = sigma_for(2.0, sigma_u=sigma_u, share=share)
    assert fill("formula", times=2.0)[mask].std() == pytest.approx(sigma, rel=0.15)
    assert fill("formula", times=1.0)[mask].std() == pytest.approx(float(weight[~mask].std()), rel=0.15)


def test_survivors_are_copies_from_the_same_row():
    weight, mask = entries()
    for row, filled, marks in zip(weight, fill("survivors"), mask, strict=True):
        assert torch.isin(filled[marks], row[~marks]).all()
        assert filled[marks].unique().numel() > 1
    alone = torch.tensor([[1.0, 2.0]])
    gone = concealment.survivors(alone, torch.tensor([[True, True]]), torch.Generator())
    assert torch.equal(gone, torch.zeros(1, 2))


def test_flipped_and_shuffled_keep_the_sizes():
    weight, mask = entries()
    assert torch.equal(fill("flipped")[mask], -weight[mask])
    shuffled = fill("shuffled")
    for row, filled, marks in zip(weight, shuffled, mask, strict=True):
        assert torch.equal(filled[marks].abs().sort().values, row[marks].abs().sort().values)
    assert 0.4 < (shuffled.sign() == weight.sign())[mask].float().mean() < 0.6
    assert (shuffled.abs() == weight.abs())[mask].float().mean() < 0.3


def test_levelled_columns_are_as_long_as_the_others():
    weight, mask = entries()
    scale = weight.square().mean(1).sqrt()
    means = {}
    for name, settings in (("levelled", {}), ("formula", {"times": 1.0})):
        drawn = [fill(name, seed=seed, **settings) / scale.unsqueeze(1) for seed in range(20)]
        means[name] = torch.stack(drawn).square().mean((0, 1))[mask.any(0)].mean()
    # These columns lost all that was large. Normal draws as wide as the rest leave them short of it.
    assert means["levelled"] == pytest.approx(1.0, abs=0.05)
    assert means["formula"] < 0.8


def test_decoys_are_zeros_in_the_same_columns():
    weight, mask = entries()
    zeros = fill("decoys", ratio=0.5) == 0
    assert zeros[mask].all()
    assert torch.equal(zeros.sum(0) - mask.sum(0), (0.5 * mask.sum(0)).long())
    assert torch.equal((fill("decoys", ratio=100.0) == 0).any(0), mask.any(0))
    assert torch.equal(fill("decoys", ratio=0.0), fill("zero"))


def test_renoising_moves_every_entry_by_noise_of_low_rank():
    weight, mask = entries()
    noise = fill("renoised", sigma=0.1, rank=3) - weight.masked_fill(mask, 0)
    assert torch.linalg.matrix_rank(noise, atol=1e-3) == 3
    assert noise.square().mean().sqrt() == pytest.approx(0.1, rel=0.3)


def test_the_grid_is_the_coarsest_type_that_holds_all():
    for dtype, size in ((torch.float16, 1), (torch.bfloat16, 1e10), (torch.float32, 1)):
        assert concealment.grid((size * entries()[0]).to(dtype).float()) is dtype


# The eraser ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def conceal(model, *, concepts=(), **settings):
    settings = {"pruner": {"name": "magnitude", "share": 0.2, "largest": True}} | settings
    return Conceal(**settings).erase(model, list(concepts) or [concept()], random=torch.Generator().manual_seed(0))


def test_it_prunes_as_the_pruner_and_fills_the_same_places(model):
    pruned = Magnitude(share=0.2, largest=True)
    mask, zeros = pruned.mask(model, []), pruned.erase(model, [], random=torch.Generator())
    assert conceal(model, fill="zero").fingerprint == zeros.fingerprint
    filled = conceal(model, sigma=0.05)
    for name, marks in mask.entries.items():
        values = filled.weights()[name].detach()
        assert torch.equal(values[~marks], model.weights()[name][~marks])
        assert (values == 0).sum() == 0
        assert values[marks].std() == pytest.approx(0.05, rel=0.25)
    assert not Mask.of_zeros(zeros).overlap(mask).beyond < 1
    assert Mask.of_zeros(filled).count == 0


@pytest.mark.parametrize("name", [*FILLINGS, "decoys", "renoised"])
def test_every_filling_has_its_name_and_keeps_to_half_precision(model, name):
    half = model.with_weights({name: weight.half().float() for name, weight in model.weights().items()})
    filled = conceal(half, fill=name).weights()
    before = half.weights()
    changed = [name for name, weight in filled.items() if not torch.equal(weight, before[name])]
    assert changed and all(".ff.net.2." in one for one in changed)
    assert all(torch.equal(filled[one].half().float(), filled[one]) for one in changed)
    free = conceal(model, fill="gaussian").weights()[changed[0]]
    assert not torch.equal(free.half().float(), free)


def test_training_brings_the_neighbours_back_to_the_unpruned_model(model):
    church = concept("church", neighbours=("house", "tree"))
    settings = {"concepts": [church], "fill": "levelled"}
    untrained = conceal(model, **settings)
    trained = conceal(model, **settings, iterations=40, lr=3e-3, pictures=2)
    random = torch.Generator().manual_seed(5)
    latents = torch.randn(8, *model.latent_shape, generator=random)
    steps, text = torch.randint(model.timesteps, (8,), generator=random), model.embed(["house", "tree"] * 4)
    with torch.no_grad():
        target, first, last = (one.predict_noise(latents, steps, text) for one in (model, untrained, trained))
    assert (last - target).square().mean() < 0.5 * (first - target).square().mean()
    with pytest.raises(BadSetting, match="expected concepts with neighbours to train with, got none"):
        conceal(model, iterations=1)


def test_the_pruner_is_a_name_or_a_table_also_on_the_command_line():
    table = {"name": "concept_prune", "q": 0.1, "layers": "ff2"}
    written = "conceal:pruner={name = 'concept_prune', q = 0.1, layers = 'ff2'},fill=flipped"
    built = build("eraser", ERASERS, parse_spec(written))
    assert built == Conceal(pruner=table, fill="flipped")
    assert build("eraser", ERASERS, "conceal:fill=flipped".partition(":")[0]).pruner == ConceptPrune.name
    assert build("eraser", ERASERS, built.spec) == built


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pruner": "esd"}, "no pruning eraser called 'esd'; there are: cad, concept_prune, fia, magnitude"),
        ({"pruner": {"name": "fia", "q": 1}}, "pruning eraser 'fia' has no setting 'q'"),
        ({"times": 0.5}, "conceal: expected times >= 1, got 0.5"),
        ({"sigma": -1.0}, "conceal: expected sigma >= 0, got -1.0"),
        ({"batch": 0}, "conceal: expected batch >= 1, got 0"),
    ],
)
def test_refuses_what_is_out_of_range(settings, message):
    with pytest.raises(Exception, match=message):
        Conceal(**settings)
