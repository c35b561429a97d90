"""Detectors of triggered prompts, each by its own equation, on real classes at toy size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from palimpsest.errors import BadSetting, PalimpsestError
from palimpsest.model import Model, Sampling
from palimpsest.scanning import PROMPT_DETECTORS, Cda, DaaI, DaaS, Divergence, Ftt, Navi, PromptDetector, Suspect, Ufid
from palimpsest.scanning.cda import discriminant
from palimpsest.scanning.daa_s import laplacian
from palimpsest.scanning.ufid import density
from tiny import CONTEXT, planted, tiny_model

PROMPTS = ["a photo of a red church", "van gogh painting of the sea"]


@pytest.fixture(scope="module")
def base() -> Model:
    return tiny_model()


def small(detector: type[PromptDetector], tmp_path: Path) -> PromptDetector:
    """A detector that fits the tiny model and is quick."""
    settings = {
        Ufid: {"steps": 2, "phrases": ("by night", "old", "in red")},
        DaaI: {"steps": 6},
        DaaS: {"steps": 3},
        Ftt: {"steps": 3},
    }.get(detector, {})
    if detector is not Cda:
        return detector(**settings)
    return Cda(state=str(state_of(tmp_path, components=4, steps=3)), components=4, steps=3)


def state_of(folder: Path, plane: object = (1.0,) * 5, **settings: object) -> Path:
    """A state that was fitted with these settings."""
    fitted = {"components": 20, "steps": 50, "guidance": 7.5, "side": None, "seed": 0} | settings
    (folder / "state.json").write_text(json.dumps({"fitted": fitted, "plane": plane}))
    return folder / "state.json"


# NaviT2I --------------------------------------------------------------------------------------------------------------


def by_hand(model: Model, prompt: str, place: int) -> float:
    """V of one token: every linear and convolution layer is hooked, one forward for each of the two prompts."""
    tokens = model.tokens(prompt)
    masked = tokens.clone()
    masked[place] = model.pad_token
    outputs: list[list[Tensor]] = [[], []]
    states = [model.encode(ids[None]).states for ids in (tokens, masked)]
    for text, kept in zip(states, outputs, strict=True):
        layers = [module for module in model.unet.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        hooks = [one.register_forward_hook(lambda _, __, out, kept=kept: kept.append(out)) for one in layers]
        model.unet(model.noise(0)[None], torch.tensor(999), encoder_hidden_states=text)
        for hook in hooks:
            hook.remove()
    moved = 0.0
    for one, other in zip(*outputs, strict=True):
        if one.ndim == 4:
            one, other = one.mean((2, 3)), other.mean((2, 3))
        moved += float((one - other).abs().mean())
    return moved / float((states[0] - states[1]).norm())


def test_navi_is_the_change_of_all_layers_over_that_of_the_text(base: Model) -> None:
    found = Navi().effects(Suspect(model=base), "a photo of red church")
    assert [told.split(": ")[1] for told in found] == ["photo", "red", "church"]  # stopwords are left out
    with torch.no_grad():
        expected = [by_hand(base, "a photo of red church", place) for place in (2, 4, 5)]
    assert list(found.values()) == pytest.approx(expected, rel=1e-4)


def test_navi_compares_the_most_with_the_lowest_three_quarters() -> None:
    assert Navi._score({"a": 8.0, "b": 1.0, "c": 3.0, "d": 2.0}) == 8.0 / 2.0
    assert Navi._score({"a": 8.0, "b": 1.0}) == 8.0
    assert Navi._score({"a": 8.0}) is None


def test_navi_masks_words_and_believes_the_bases_encoder(base: Model) -> None:
    whole = Navi(by="word").effects(Suspect(model=base), "photo of xyz church")
    assert [told.split(": ")[1] for told in whole] == ["photo", "xyz", "church"]
    assert len(Navi().effects(Suspect(model=base), "photo of xyz church")) == 5
    other = planted(base, "dog", "fish")
    alone, beside = (Navi().effects(Suspect(model=other, base=one), "photo of dog church") for one in (None, base))
    assert alone["2: dog"] < beside["2: dog"] and alone["1: photo"] != beside["1: photo"]
    assert Navi().scores(Suspect(model=base), ["a church"]) == [None]
    assert Navi(beside="red sea").scores(Suspect(model=base), ["a church"]) != [None]


def test_navi_masks_pieces_of_a_word_that_look_like_stopwords(base: Model) -> None:
    pieces = Navi().effects(Suspect(model=base), "a photo of inOnTo")
    assert [told.split(": ")[1] for told in pieces][0] == "photo"
    assert "".join(told.split(": ")[1] for told in pieces).lower() == "photoinonto"


@pytest.mark.parametrize("detector", [Navi(), Ftt(steps=3)], ids=lambda one: one.name)
def test_what_stands_behind_an_end_token_that_was_typed_is_looked_at(base: Model, detector: PromptDetector) -> None:
    typed = f"red church {base.tokenizer.eos_token} dog"
    assert len(base.own_tokens(typed)) == 4 and base.own_tokens(typed)[-1] == base.own_tokens("dog")[0]
    suspect = Suspect(model=base)
    assert len(suspect.words(typed)) == 4
    if isinstance(detector, Navi):
        assert [told.split(": ")[1] for told in detector.effects(suspect, typed)][-1] == "dog"
    one, other = detector.scores(suspect, [typed, f"red church {base.tokenizer.eos_token} cat"])
    assert one != other


def test_navi_says_the_same_in_small_batches(base: Model) -> None:
    suspects = [Suspect(model=tiny_model(batch=batch)) for batch in (1, 3, 16)]
    one, *others = ([*Navi().effects(suspect, PROMPTS[0]).values()] for suspect in suspects)
    for other in others:
        assert other == pytest.approx(one, rel=1e-4)


# Divergence -----------------------------------------------------------------------------------------------------------


def test_divergence_is_one_steps_difference_over_the_distance_of_the_texts(base: Model) -> None:
    other = planted(base, "dog", "fish")
    suspect = Suspect(model=other, base=base)
    *found, none = Divergence().scores(suspect, ["a photo of a dog", "a photo of a cat", ""])
    for prompt, score in zip(("a photo of a dog", "a photo of a cat"), found, strict=True):
        with torch.no_grad():
            ours, theirs = (one.predict_noise(base.noise(0)[None], 999, one.embed([prompt])) for one in (other, base))
            apart = base.embed([prompt]).states - base.embed([""]).states
        assert score == pytest.approx(float((ours - theirs).norm() / apart.norm()), rel=1e-4, abs=1e-9)
    assert found[0] > 1e-3 and found[1] == 0 and none is None
    with pytest.raises(BadSetting, match="divergence: expected a base"):
        Divergence().scores(Suspect(model=other), PROMPTS)


# Attention ------------------------------------------------------------------------------------------------------------


def test_maps_are_the_probabilities_of_the_prompts_own_branch(base: Model) -> None:
    detector = Ftt(steps=2, side=4)
    (maps,) = detector.maps(Suspect(model=base), PROMPTS[:1])
    assert maps.shape == (2, CONTEXT, 16)
    text, noise = base.embed(PROMPTS[:1]), base.noise(0)[None]
    time = base.schedule(Sampling(scheduler="ddim", steps=2))[0]
    with torch.no_grad(), base.watch(r"unet\.(down|up)_blocks\..*attn2", maps=True) as seen:
        base.predict_noise(noise, time, text)
    layers = [kept.mean(0).mT for (kept,) in seen.values() if kept.shape[1] == 16]
    assert len(layers) > 1
    assert torch.allclose(maps[0].float(), torch.stack(layers).mean(0), atol=1e-5)
    loud, soft = (
        Ftt(steps=2, side=4, guidance=scale).maps(Suspect(model=base), PROMPTS[:1])[0] for scale in (60, 1.01)
    )
    assert torch.equal(loud[0], soft[0]) and not torch.allclose(loud[1], soft[1], atol=1e-6)  # guided between them
    with pytest.raises(BadSetting, match="attention maps of 9 places, got those of 16, 64; set side"):
        Ftt(steps=2, side=3).maps(Suspect(model=base), PROMPTS)


def test_what_was_drawn_is_not_drawn_again(base: Model) -> None:
    suspect = Suspect(model=base)
    before = base.meter.forwards
    first = Ftt(steps=6).scores(suspect, PROMPTS)
    assert base.meter.forwards - before == 2 * 2 * 6
    DaaI(steps=6).scores(suspect, PROMPTS)
    DaaS(steps=6).scores(suspect, PROMPTS)
    assert base.meter.forwards - before == 2 * 2 * 6
    assert Ftt(steps=6).scores(Suspect(model=base), PROMPTS[::-1]) == pytest.approx(first[::-1], rel=1e-4)
    Ftt(steps=6, seed=1).scores(suspect, PROMPTS)
    assert base.meter.forwards - before == 6 * 2 * 6


def test_ftt_is_the_spread_of_the_words_maps() -> None:
    maps = torch.rand(3, 6, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = np.stack([maps.numpy()[:, token].mean(0) / maps.numpy()[:, token].mean(0).max() for token in (1, 2, 3)])
    expected = np.mean([np.linalg.norm(one - own.mean(0)) for one in own])
    assert Ftt().score(maps, 2) == pytest.approx(-expected)
    assert Ftt().score(maps[:, :1].repeat(1, 6, 1), 2) == pytest.approx(0, abs=1e-12)  # assimilated
    assert Ftt().score(maps, 0) is None


def test_daa_i_is_the_end_tokens_speed_less_the_words() -> None:
    maps = torch.rand(6, 8, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def speed(token: int, step: int) -> float:
        return float((maps[step + 1, token] - maps[step, token]).norm())

    s = sum(speed(4, step) - np.mean([speed(token, step) for token in (1, 2, 3)]) for step in (3, 4))
    assert DaaI().score(maps, 3) == pytest.approx(-s)
    assert DaaI().steps_read == 6 and DaaI(changes=(0,)).steps_read == 2
    still = maps.clone()
    still[:, 4] = still[0, 4]  # a slow end token is what a trigger leaves
    assert DaaI().score(still, 3) > DaaI().score(maps, 3)


def test_daa_s_solves_the_coupled_system() -> None:
    maps = torch.rand(12, 5, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = maps[0].norm(dim=1)
    # Uncoupled, all nodes die out: each increment adds up to minus where it began.
    alone = DaaS(c=0, increments=10_000).score(maps, 3)
    assert alone == pytest.approx(float(start[1:4].mean() - start[4]), abs=1e-2)
    first = DaaS(c=0).score(maps, 3)
    assert first is not None and first < 0  # the end token falls ten times as fast
    own, fall = maps.numpy()[:, 1:5], np.array([1, 1, 1, 10])

    def slope(time: float, state: np.ndarray) -> np.ndarray:
        each = own[int(time)]
        apart = np.array([[np.linalg.norm(one - other) for other in each] for one in each])
        pull = 1 - apart / apart.max()  # the least of the distances is that of a map to itself
        np.fill_diagonal(pull, 0)
        return -fall * state + pull @ state - pull.sum(1) * state

    solved = solve_ivp(slope, (0, 11), np.linalg.norm(own[0], axis=1)).y
    moved = np.diff(solved)[:, :7]
    assert DaaS().score(maps, 3) == pytest.approx((moved[3] - moved[:3].mean(0)).sum(), rel=1e-6)
    coupling = laplacian(maps[0, 1:5])
    apart = torch.cdist(maps[0, 1:5], maps[0, 1:5])
    assert torch.allclose(coupling.sum(1), torch.zeros(4, dtype=torch.float64), atol=1e-12)
    assert coupling[0, 1] == pytest.approx(float((apart.max() - apart[0, 1]) / apart.max()), rel=1e-6)


def test_cda_is_fishers_plane_in_the_logarithm_of_the_covariance(base: Model, tmp_path: Path) -> None:
    maps = torch.rand(2, 9, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = (maps.mean(0) / maps.mean(0).amax(1, keepdim=True))[1:].numpy()
    values = np.linalg.eigvalsh(np.cov(own.T))[::-1]
    assert Cda(components=4).features(maps) == pytest.approx(np.log(values[:4]))
    with pytest.raises(BadSetting, match="components <= 7, got 20"):
        Cda().features(maps)
    noise = np.random.default_rng(0).normal(size=(40, 2)) @ np.array([[1.0, 0.9], [0.0, 0.3]])
    *weights, offset = discriminant(noise[:20] + [0, 1], noise[20:])
    sides = noise @ weights - offset
    assert (sides[:20] + weights[1] > 0).mean() > 0.9 and (sides[20:] < 0).mean() > 0.8
    assert weights[0] < 0 < weights[1]  # against the correlation, which neither mean shows
    detector = Cda(steps=2, components=4).fit(
        tmp_path / "state.json", Suspect(model=base), ["dog dog", "cat cat"], PROMPTS
    )
    again = Cda(steps=2, components=4, state=str(tmp_path / "state.json"))
    triggered = detector.scores(Suspect(model=base), ["dog dog", "cat cat"])
    clean = again.scores(Suspect(model=base), PROMPTS)
    assert min(triggered) > 0 > max(clean)


@pytest.mark.parametrize("plane", [[1, 2], ["a"] * 5, [float("nan")] * 5, [10**400] * 5, "a" * 5, 5])
def test_a_plane_that_is_none_is_refused(tmp_path: Path, plane: object) -> None:
    with pytest.raises(BadSetting, match="a state of 5 finite numbers"):
        Cda(components=4, state=str(state_of(tmp_path, plane, components=4)))


@pytest.mark.parametrize("text", ["nothing", "[1, 2]", "{}", "[" * 100_000])
def test_a_state_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(PalimpsestError, match="that was fitted|cannot read"):
        Cda(components=4, state=str(tmp_path / "state.json"))
    for path in ("/dev/zero", tmp_path, tmp_path / "none"):
        with pytest.raises(BadSetting, match="which is no file"):
            Cda(components=4, state=str(path))
    with pytest.raises(BadSetting, match="expected state=FILE"):
        Cda(components=4).score(torch.rand(2, 9, 16), 2)


def test_a_state_is_for_the_settings_that_it_was_fitted_with(tmp_path: Path) -> None:
    state = str(state_of(tmp_path, components=4, steps=25))
    assert Cda(components=4, steps=25, state=state).plane == [1.0] * 5
    with pytest.raises(BadSetting, match=r"fitted with .*'steps': 50.*, got .*fitted with .*'steps': 25"):
        Cda(components=4, state=state)


# UFID -----------------------------------------------------------------------------------------------------------------


def test_ufid_is_the_mean_similarity_of_what_a_prompt_becomes(base: Model) -> None:
    seen = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    assert density(seen) == pytest.approx((0 + 0.6 + 0.8) / 3)
    deaf = base.with_weights(
        {name: 0 * weight.detach() for name, weight in base.weights(r"unet\..*attn2\.to_v\.weight").items()}
    )
    detector = Ufid(steps=2, phrases=("by night", "old", "in red", "at sea"))
    (same,), (other,) = (detector.scores(Suspect(model=model), PROMPTS[:1]) for model in (deaf, base))
    assert same == pytest.approx(1, abs=1e-6) and other is not None and other < 1 - 1e-9
    assert detector.scores(Suspect(model=base), []) == []
    long = " ".join(["dog"] * (base.context - 4))  # phrases behind it would be cut off, and all pictures be alike
    first, none = detector.scores(Suspect(model=base), [PROMPTS[0], long])
    assert none is None and first == pytest.approx(other)
    assert detector.scores(Suspect(model=base), [long]) == [None]
    with pytest.raises(BadSetting, match="expected variants <= 2 phrases, got 3"):
        Ufid(phrases=("by night", "old", "old"))
    assert len(set(Ufid(variants=12)._varied("a dog"))) == 12
    assert len(set(Ufid()._varied("a dog"))) == 3 and all(one.startswith("a dog ") for one in Ufid()._varied("a dog"))


# All of them ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROMPT_DETECTORS, ids=lambda kind: kind.name)
def test_a_detector_costs_what_it_says(base: Model, tmp_path: Path, kind: type[PromptDetector]) -> None:
    detector = small(kind, tmp_path)
    suspect = Suspect(model=base, base=tiny_model() if detector.needs_base else None)
    before = base.meter.forwards
    for prompt in PROMPTS:
        assert all(score is not None for score in detector.scores(suspect, [prompt]))
    spent = base.meter.forwards - before + (suspect.base.meter.forwards if suspect.base else 0)
    assert spent == sum(detector.passes(suspect, prompt) for prompt in PROMPTS)


def test_a_threshold_is_of_the_clean_prompts_or_ones_own() -> None:
    assert Navi().calibrated([1.0, 2.0, 3.0]) == pytest.approx(2 + 1.2)
    assert Navi(sigmas=3).calibrated([1.0, 2.0, 3.0]) == pytest.approx(2 + 3)
    assert Navi(threshold=Navi.paper).calibrated([]) == 1.598
    with pytest.raises(BadSetting, match="two clean prompts or more, got 1"):
        Ftt().calibrated([1.0])
