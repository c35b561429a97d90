"""Changing weights: copies that share, names that must fit, words that are learnt, folders that go round."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import LMSDiscreteScheduler, StableDiffusionPipeline

from palimpsest.errors import BadCheckpoint, BadModel, BadSetting
from palimpsest.model import Model, Sampling
from palimpsest.model.loading import Parts
from palimpsest.model.weights import twin
from palimpsest.records import Attempt
from tiny import tiny_model, tiny_pipeline

CROSS = r"unet\..*attn2\.to_[kv]\.weight"


def test_names_are_qualified_and_matched_whole() -> None:
    model = tiny_model()
    assert set(model.weights(r"unet\.conv_in\..*")) == {"unet.conv_in.weight", "unet.conv_in.bias"}
    assert {name.partition(".")[0] for name in model.weights()} == {"unet", "text_encoder", "vae"}
    assert len(model.weights(CROSS)) == 2 * 7
    with pytest.raises(BadSetting, match="expected a pattern that matches names such as .* got 'attn2'"):
        model.weights("attn2")


def test_a_changed_copy_shares_all_else_and_leaves_the_model_alone() -> None:
    model = tiny_model()
    before = model.fingerprint
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_v.weight"
    new = model.with_weights({name: torch.zeros_like(model.weights()[name])})
    assert not new.weights()[name].any() and model.weights()[name].any()
    weights = new.weights()
    shared = [weights[other] is weight for other, weight in model.weights().items() if other != name]
    assert all(shared) and len(shared) == len(weights) - 1
    assert new.fingerprint != before == model.fingerprint
    assert model.with_weights({}).fingerprint == before
    attempts, sampling = [Attempt(prompt="a church", seed=1)], Sampling(steps=2)
    assert new.draw(attempts, sampling)[0].tobytes() != model.draw(attempts, sampling)[0].tobytes()


def test_a_twin_is_a_deep_copy_with_the_same_weights() -> None:
    model = tiny_model()
    random = torch.Generator().manual_seed(0)
    trained = model.copy(trainable=CROSS, lora=2, random=random)
    for network in map(copy.deepcopy, (model.unet, model.text_encoder, model.vae, trained.unet)):
        network.again = next(network.children())  # a module in two places stays one
        network.marks = {"of": [network]}
        new = twin(network)
        pairs = list(zip(network.modules(), new.modules(), strict=True))
        assert new.marks["of"][0] is new and new.again is next(new.children())
        assert all(type(one) is type(other) and one is not other for one, other in pairs)
        assert all(vars(one).keys() == vars(other).keys() for one, other in pairs)
        containers = (dict, list, set)
        tables = [(value, vars(two)[name]) for one, two in pairs for name, value in vars(one).items()]
        assert all(type(value) is type(own) for value, own in tables)
        assert not any(value is own for value, own in tables if isinstance(value, containers))
        weights = dict(new.named_parameters())
        assert all(weights[name] is weight for name, weight in network.named_parameters())
        assert not any(own is buffer for own, buffer in zip(new.buffers(), network.buffers(), strict=True))


def test_a_change_takes_no_reference_to_the_tensor_it_was_given() -> None:
    model = tiny_model()
    given = torch.ones(16)
    new = model.with_weights({"unet.conv_in.bias": given})
    given.zero_()
    assert new.weights()["unet.conv_in.bias"].all()


def test_weights_that_do_not_fit_are_named() -> None:
    model = tiny_model()
    with pytest.raises(BadCheckpoint, match=r"got 2 others: unet.a, unet.b"):
        model.with_weights({"unet.b": torch.ones(1), "unet.a": torch.ones(1)})
    with pytest.raises(BadCheckpoint, match=r"expected unet.conv_in.bias of shape \(16,\), got \(3,\)"):
        model.with_weights({"unet.conv_in.bias": torch.ones(3)})
    with pytest.raises(BadCheckpoint, match=r"expected numbers in unet.conv_in.bias"):
        model.with_weights({"unet.conv_in.bias": torch.full((16,), torch.inf)})


def test_only_what_a_copy_may_train_is_trained() -> None:
    model = tiny_model()
    before = model.fingerprint
    student = model.copy(trainable=CROSS)
    assert len(student.trainable()) == len(model.weights(CROSS)) and not model.trainable()
    untrained = student.fingerprint
    assert untrained == before
    optimiser = torch.optim.Adam(student.trainable(), lr=0.1)
    text = student.embed(["a church"])
    student.predict_noise(student.noise(1)[None], 500, text).square().mean().backward()
    optimiser.step()
    early = student.frozen()
    optimiser.step()
    assert student.fingerprint not in {before, early.fingerprint}
    assert early.fingerprint not in {before, student.fingerprint} and not early.trainable()
    assert model.fingerprint == before == Model(Parts.of(tiny_pipeline()), device="cpu").fingerprint
    after = early.weights()
    changed = {name for name, weight in model.weights().items() if after[name] is not weight}
    assert changed == set(model.weights(CROSS))
    assert not model.copy().trainable()


def test_a_trained_text_encoder_is_never_remembered() -> None:
    student = tiny_model().copy(trainable=r"text_encoder\..*")
    before = student.remembered(["a church"]).states
    with torch.no_grad():
        student.weights()["text_encoder.final_layer_norm.bias"] += 1
    torch.testing.assert_close(student.remembered(["a church"]).states, before + 1)
    assert not student.frozen().remembered(["a church"]).states.requires_grad


def test_low_rank_additions_begin_at_nothing_and_merge_into_weights() -> None:
    model = tiny_model()
    student = model.copy(trainable=CROSS, lora=2, random=torch.Generator().manual_seed(0))
    latents, text = model.noise(1)[None], model.embed(["a church"])
    assert torch.equal(student.predict_noise(latents, 500, text), model.predict_noise(latents, 500, text))
    assert sum(weight.numel() for weight in student.trainable()) < sum(w.numel() for w in model.weights(CROSS).values())
    optimiser = torch.optim.Adam(student.trainable(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        student.predict_noise(latents, 500, text).square().mean().backward()
        optimiser.step()
    merged = student.frozen()
    assert set(merged.weights()) == set(model.weights())
    torch.testing.assert_close(merged.predict_noise(latents, 500, text), student.predict_noise(latents, 500, text))
    after, cross = merged.weights(), model.weights(CROSS)
    for name, weight in model.weights().items():
        difference = after[name] - weight
        assert (torch.linalg.matrix_rank(difference, atol=1e-4) == 2) if name in cross else not difference.any()
    with pytest.raises(BadSetting, match="merge them with frozen"):
        student.with_weights({})
    with pytest.raises(BadSetting, match="linear or convolution layers"):
        model.copy(trainable=r"unet\.conv_norm_out\..*", lora=2, random=torch.Generator())


def test_low_rank_additions_to_a_convolution_are_two_convolutions() -> None:
    model = tiny_model()
    student = model.copy(trainable=r"unet\.conv_in\..*", lora=3, random=torch.Generator().manual_seed(0))
    added = student.unet.conv_in.parametrizations.weight[0]
    with torch.no_grad():
        added.up += torch.randn(added.up.shape, generator=torch.Generator().manual_seed(1))
    latents, plain = model.noise(1)[None], model.unet.conv_in
    inner = torch.nn.functional.conv2d(latents, added.down.view(3, *plain.weight.shape[1:]), padding=plain.padding)
    expected = plain(latents) + torch.nn.functional.conv2d(inner, added.up[:, :, None, None])
    torch.testing.assert_close(student.frozen().unet.conv_in(latents), expected)
    assert (expected - plain(latents)).abs().max() > 0.1


def test_a_learnt_word_is_typed_like_any_other() -> None:
    model = tiny_model()
    embedding = torch.randn(16, generator=torch.Generator().manual_seed(0)) / 50
    new = model.with_token("<found>", embedding)
    tokens = new.tokens("a photo of <found> church")
    number = int(tokens[4])
    assert number == len(model.vocabulary) and torch.equal(new.vocabulary[number], embedding)
    assert new.text(tokens) == "a photo of <found> church"
    assert model.tokens("a photo of <found> church").tolist() != tokens.tolist()
    assert new.fingerprint != model.fingerprint
    assert len(model.vocabulary) == len(new.vocabulary) - 1
    # To write the word is to give its embedding.
    plain = model.tokens("a photo of a church")
    words = model.vocabulary[plain].index_copy(0, torch.tensor([4]), embedding[None])
    torch.testing.assert_close(
        new.embed(["a photo of <found> church"]).states, model.encode(plain[None], words[None]).states
    )
    with pytest.raises(BadSetting, match="no token yet, got '<found>'"):
        new.with_token("<found>", embedding)
    with pytest.raises(BadSetting, match=r"shape \(16,\), got \(3,\)"):
        model.with_token("<other>", torch.ones(3))


def test_a_saved_model_is_the_same_to_us_and_to_plain_diffusers(tmp_path: Path) -> None:
    model = tiny_model().with_token("<found>", torch.ones(16) / 50)
    model.save(tmp_path)
    reopened = Model.load(tmp_path, device="cpu", batch=4)
    assert reopened.fingerprint == model.fingerprint
    attempt, sampling = Attempt(prompt="a <found> church", seed=1), Sampling(scheduler="lms", steps=3)
    # Another scheduler made from the written config is still the one made from the model's own.
    assert reopened.schedule(sampling) == model.schedule(sampling)
    assert reopened.draw([attempt], sampling)[0].tobytes() == model.draw([attempt], sampling)[0].tobytes()
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = LMSDiscreteScheduler.from_config(pipeline.scheduler.config)
    plain = pipeline(attempt.prompt, num_inference_steps=3, generator=torch.Generator().manual_seed(1)).images[0]
    ours = model.draw([attempt], sampling)[0]
    assert sum(abs(one - other) for one, other in zip(plain.tobytes(), ours.tobytes(), strict=True)) < len(
        ours.tobytes()
    )
    assert json.loads((tmp_path / "model_index.json").read_text())["unet"] == ["diffusers", "UNet2DConditionModel"]


def test_a_guard_cannot_be_saved(tmp_path: Path) -> None:
    class Guarded(Model):
        def embed(self, prompts):  # type: ignore[no-untyped-def]
            return super().embed(["" for _ in prompts])

    with pytest.raises(BadModel, match="cannot save Guarded"):
        Guarded(Parts.of(tiny_pipeline()), device="cpu").save(tmp_path)


def test_watching_sees_outputs_and_maps_and_then_lets_go() -> None:
    model = tiny_model()
    text, latents = model.embed(["a church"]), model.noise(1)[None]
    plain = model.predict_noise(latents, 500, text)
    with model.watch(r"unet\..*ff\.net\.2") as outputs, model.watch(r"unet\.mid_block\..*attn2", maps=True) as maps:
        assert torch.equal(model.predict_noise(latents, 500, text), plain)
        model.predict_noise(latents, 500, text)
    assert len(outputs) == 7 and all(len(seen) == 2 for seen in outputs.values())
    (seen,) = maps.values()
    assert seen[0].shape[-1] == model.context
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(seen[0].shape[:-1]))
    model.predict_noise(latents, 500, text)
    assert len(seen) == 2
    with model.watch(r"unet\..*ff\.net\.2", keep=torch.Tensor.sum) as sums:
        model.predict_noise(latents, 500, text)
    assert all(torch.equal(sums[name][0], seen[0].sum()) for name, seen in outputs.items())
    with pytest.raises(BadSetting, match="expected attention modules"), model.watch(r"unet\.conv_in", maps=True):
        pass
