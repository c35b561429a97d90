"""Receler against a plain loop that shares no code with it; and its adapters, kept, saved and read back."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from typer.testing import CliRunner

from cases import concept
from palimpsest.cli import app
from palimpsest.erasers import Checkpoint, Receler
from palimpsest.erasers.receler import concept_masks
from palimpsest.erasing import difference
from palimpsest.errors import BadCheckpoint, BadModel, BadSetting
from palimpsest.model import Sampling
from palimpsest.records import Attempt
from scripted import Seeds, audit, run, trials
from tiny import tiny_model, tiny_pipeline

CHURCH, VAN_GOGH = concept("church"), concept("van gogh", "style")
SETTINGS = {"iterations": 3, "lr": 5e-2, "steps": 4, "attack_steps": 2, "soft": 3, "hidden": 8, "w": 100.0}
LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
UP = f"unet.{LAYER}.to_out.1.up.weight"
CLOSE = 1e-6
"""The samplers keep their schedule in single precision; weights move by 1e-2."""


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=1)


def erase(model, concepts=(CHURCH,), **settings):
    return Receler(**(SETTINGS | settings)).erase(model, concepts, random=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def erased(model):
    return erase(model)


class Loop:
    """Published Receler in plain PyTorch, its adapters as hooks; a mutation changes one thing in it."""

    def __init__(self, model, mutation=""):
        self.model, self.mutation, self.unet = model, mutation, model.unet
        self.adapted, self.maps, self.added = True, {}, {}

    def run(self):
        self.random = torch.Generator().manual_seed(0)
        self.weights, hooks = {}, []
        for name, module in self.unet.named_modules():
            if name.endswith("attn2"):
                width = module.to_out[0].out_features
                self.weights[name] = [
                    (2 * torch.rand(8, width, generator=self.random) - 1) / width**0.5,
                    (2 * torch.rand(8, generator=self.random) - 1) / width**0.5,
                    torch.zeros(width, 8),
                    torch.zeros(width),
                ]
                self.weights[name] = [one.double().requires_grad_() for one in self.weights[name]]
                hooks.append(module.register_forward_hook(lambda *a, name=name, **k: self.adapt(name, a[2])))
                hooks.append(
                    module.register_forward_hook(
                        lambda module, given, named, out, name=name: self.look(name, module, given, named),
                        with_kwargs=True,
                    )
                )
        try:
            self.train()
        finally:
            for hook in hooks:
                hook.remove()
        return self.weights[LAYER][2].detach()

    def adapt(self, name, out):
        if not self.adapted:
            return out
        first, bias, second, last = self.weights[name]
        self.added[name] = functional.linear(functional.gelu(functional.linear(out, first, bias)), second, last)
        return out + self.added[name]

    def look(self, name, module, given, named):
        """Attention to the one token of the name, averaged over heads."""
        query, key = module.to_q(given[0]), module.to_k(named["encoder_hidden_states"])
        query, key = (one.unflatten(-1, (module.heads, -1)).transpose(1, 2) for one in (query, key))
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        self.maps[name] = scores.softmax(-1)[..., 1].mean(1).detach()

    def train(self):
        adam = torch.optim.Adam([one for four in self.weights.values() for one in four], lr=SETTINGS["lr"])
        church, null = (self.model.embed([prompt]).states.detach() for prompt in ("church", ""))
        soft = attack = None
        for _ in range(3):
            torch.randint(1, (), generator=self.random)
            x, t = self.point(church, null)
            self.adapted = False
            with torch.no_grad():
                without, given = self.ask(x, t, null), self.ask(x, t, church)
            maps = dict(self.maps)
            self.adapted = True
            if soft is None or self.mutation == "forgets the soft tokens":
                soft = torch.rand(3, 16, generator=self.random).double().requires_grad_()
                attack = torch.optim.Adam([soft], lr=0.1, weight_decay=0.0 if self.mutation == "no decay" else 0.1)
            for _ in range(2):
                error = ((self.ask(x, t, self.softened(church, soft)) - given) ** 2).mean()
                (soft.grad,) = torch.autograd.grad(error, soft)
                attack.step()
            asked = church if self.mutation == "unattacked" else self.softened(church, soft.detach())
            found = self.ask(x, t, asked)
            target = without - (-1 if self.mutation == "sign" else 1) * (given - without)
            loss = ((found - target) ** 2).mean() + 100.0 * self.outside(maps)
            adam.zero_grad()
            loss.backward()
            adam.step()

    def softened(self, church, soft):
        place = 1 if self.mutation == "on the name" else 2
        return torch.cat([church[:, :place], soft[None], church[:, place + 3 :]], 1)

    def outside(self, maps):
        shown = torch.stack([one for one in maps.values() if one.shape[1] == 64]).mean(0).reshape(8, 8)
        inside = (shown - shown.min()) / (shown.max() - shown.min()) >= (0.9 if self.mutation == "threshold" else 0.1)
        inside = inside if self.mutation != "inside" else ~inside
        losses = []
        for one in self.added.values():
            every = {64: 1, 16: 2, 4: 4, 1: 8}[one.shape[1]]
            elsewhere = (~inside[::every, ::every]).flatten().double()
            losses.append(((one**2).mean(-1)[0] * elsewhere).sum() / (elsewhere.sum() + 1e-9))
        return sum(losses) / len(losses) * (0 if self.mutation == "no mask" else 1)

    def ask(self, x, t, states):
        return self.unet(x, t, encoder_hidden_states=states).sample

    @torch.no_grad()
    def point(self, states, null):
        reached = int(torch.randint(4, (), generator=self.random))
        x = torch.randn(1, *self.model.latent_shape, generator=self.random).double()
        self.adapted = self.mutation != "the original walks"
        for at in (751, 501, 251)[:reached]:
            given, without = self.ask(x, at, states), self.ask(x, at, null)
            noise = without + 3 * (given - without)
            now, then = (self.model.alphas_cumprod[step].double() for step in (at, at - 250))
            x = then.sqrt() * (x - (1 - now).sqrt() * noise) / now.sqrt() + (1 - then).sqrt() * noise
        bottom = 250 * (3 - reached)
        return x, torch.randint(bottom, bottom + 250, (1,), generator=self.random)


def test_equals_a_plain_loop(model, erased):
    expected = Loop(model).run()
    assert expected.abs().max() > 1e-2
    torch.testing.assert_close(erased.weights()[UP], expected, atol=CLOSE, rtol=0)


MUTATIONS = ["sign", "unattacked", "forgets the soft tokens", "no decay", "on the name", "the original walks"]


@pytest.mark.parametrize("mutation", [*MUTATIONS, "inside", "no mask", "threshold"])
def test_another_method_does_not_pass(model, erased, mutation):
    # A hundred times what the plain loop may differ by.
    assert (erased.weights()[UP] - Loop(model, mutation).run()).abs().max() > 100 * CLOSE


def test_the_mask_is_of_the_layer_nearest_to_16_by_16():
    shown = torch.zeros(1, 1, 256, 3)
    shown[0, 0, :16, 1] = 1.0  # the first row of 16
    other = torch.rand(1, 1, 1024, 3, generator=torch.Generator().manual_seed(0))
    masks = concept_masks([other, shown], (64, 64), slice(1, 2), threshold=0.1)
    assert masks[256].reshape(16, 16).nonzero()[:, 0].unique().tolist() == [0]
    assert masks[1024].reshape(32, 32).nonzero()[:, 0].unique().tolist() == [0, 1]


def test_it_begins_as_the_base_and_each_concept_counts(model):
    start = erase(model, lr=0.0)
    x = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).double()
    text = model.embed(["church"])
    assert torch.equal(start.predict_noise(x, 500, text), model.predict_noise(x, 500, text))
    both, *single = (erase(model, which).fingerprint for which in ((CHURCH, VAN_GOGH), (CHURCH,), (VAN_GOGH,)))
    assert both not in single


def test_stopped_it_goes_on_to_the_same_weights(model, erased, gone_on_with):
    assert gone_on_with(partial(erase, model)).fingerprint == erased.fingerprint


def pictures(model):
    (picture,) = model.draw([Attempt(prompt="a church", seed=0)], Sampling(steps=2))
    return picture.tobytes()


def test_a_run_that_is_gone_on_with_finds_its_adapters_again(tmp_path, monkeypatch):
    planned = audit(erasers=[Receler(**SETTINGS | {"lr": 0.5})], attacks=[Seeds()])
    run(tmp_path / "whole", planned)
    run(tmp_path / "again", planned)
    (tmp_path / "again" / "trials.jsonl").unlink()
    monkeypatch.setattr(Receler, "stages", pytest.fail)
    run(tmp_path / "again", planned)
    found = trials(tmp_path / "again")
    assert found == trials(tmp_path / "whole")
    assert len({trial.victim.fingerprint for trial in found} - {tiny_model().fingerprint}) == 1


def test_its_changed_weights_make_it_again(model, erased):
    changed = difference(erased, model)
    assert len(changed) == 4 * sum(name.endswith("up.weight") for name in changed) > 0
    again = model.with_weights(changed)
    assert again.fingerprint == erased.fingerprint != model.fingerprint
    assert pictures(again) == pictures(erased) != pictures(model)
    assert again.feed_forwards() == model.feed_forwards()
    assert again.with_weights({UP: torch.zeros_like(changed[UP])}).fingerprint != again.fingerprint


@pytest.mark.parametrize("prefix", ["unet.", ""])
@pytest.mark.parametrize("partial", [True, False])
def test_a_file_of_adapters_is_read_back(model, erased, tmp_path, prefix, partial):
    changed = {prefix + key.removeprefix("unet."): weight for key, weight in difference(erased, model).items()}
    save_file(changed, tmp_path / "x.safetensors")
    eraser = Checkpoint(path=str(tmp_path / "x.safetensors"), partial=partial)
    assert eraser.erase(model, [], random=torch.Generator()).fingerprint == erased.fingerprint


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop(UP), r"expected a whole adapter at .*attn2, got none of its up\.weight"),
        (lambda state: state.update({UP: torch.zeros(3, 8)}), r"up\.weight \(expected shape \(16, 8\), got \(3, 8\)"),
        (lambda state: state.update({UP: state[UP] / 0}), r"up\.weight \(\d+ of 128 numbers are NaN or infinite"),
        (lambda state: state.update({UP.replace("down", "side"): state[UP].clone()}), "no such weight"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(model, erased, tmp_path, change, told):
    state = difference(erased, model)
    change(state)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(BadCheckpoint, match=told):
        Checkpoint(path=str(tmp_path / "x.safetensors")).erase(model, [], random=torch.Generator())


def test_a_plain_folder_cannot_hold_them(erased, tmp_path):
    with pytest.raises(BadModel, match="a plain diffusers folder holds none; save the changed weights"):
        erased.save(tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_the_command_saves_adapters_to_a_file_and_refuses_a_folder(tmp_path):
    tiny_pipeline(tmp_path / "base")
    spec = "receler:iterations=1,steps=2,attack_steps=1,soft=2,hidden=4"
    flags = ["erase", "--base", str(tmp_path / "base"), "--concept", "church", "--eraser", spec, "--out"]
    made = CliRunner().invoke(app, [*flags, str(tmp_path / "x.safetensors")])
    assert made.exit_code == 0, made.output
    assert all(".to_out.1." in key for key in load_file(tmp_path / "x.safetensors"))
    refused = CliRunner().invoke(app, [*flags, str(tmp_path / "folder")])
    assert isinstance(refused.exception, BadModel)
    assert not (tmp_path / "folder").exists()


def test_refuses_soft_tokens_that_do_not_fit(model):
    with pytest.raises(BadSetting, match="expected room for 16 soft tokens behind 'church', got 14"):
        erase(model, soft=16)


def test_refuses_a_concept_without_a_token(model):
    with pytest.raises(BadSetting, match="receler: expected a concept whose name has a token, got ''"):
        erase(model, (concept(""),))


@pytest.mark.parametrize("setting", ["iterations", "hidden", "batch", "steps", "soft"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        Receler(**{setting: 0})
