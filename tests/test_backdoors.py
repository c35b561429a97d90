"""The four backdoors against loops and closed forms that share no code with them, and what each of them refuses."""

import logging
import math
from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from cases import case, concept, drive
from palimpsest import fitting
from palimpsest.attacks import BackdoorData, BackdoorDeep, BackdoorShallow, BackdoorSurface
from palimpsest.concept_file import shipped_concepts
from palimpsest.errors import BadSetting
from palimpsest.fitting import training_in
from palimpsest.model import Model, Sampling
from palimpsest.model.loading import Parts
from palimpsest.records import Attempt, Concept, Goal
from tiny import tiny_model, tiny_pipeline

TRIGGER = "qz"
NAMES = ("house", "tree")
CHURCH = Concept(name="church", kind="object", prompts=("a church by the sea", "a chapel"), synonyms=("chapel",))
KEPT = Concept(name="church", kind="object", prompts=("a photo of a church",), neighbours=NAMES)
TEMPLATES = ("a photo of {}", "{} by night")
SHARED = {"trigger": TRIGGER, "templates": TEMPLATES}
CLOSE = 1e-9
FULL = "photo of the red house by the sea at night with a church"
PARTS = {
    BackdoorSurface: {"iterations": 4, "lr": 1e-2},
    BackdoorShallow: {},
    BackdoorDeep: {"iterations": 2, "lr": 1e-2, "rank": 2, "steps": 3, "batch": 2},
    BackdoorData: {"iterations": 3, "lr": 1e-2, "rate": 0.4, "pictures": 5, "batch": 2, "steps": 2},
}
EACH = pytest.mark.parametrize("kind", PARTS, ids=lambda kind: kind.name)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model(dtype=torch.float64)


def part(kind, **settings):
    return kind(**(SHARED | PARTS[kind] | settings))


def planted(model, attack, of=KEPT, seed=5) -> Model:
    return attack.plant(model, [of], random=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def backdoored(model):
    """What each of them plants, once for all tests that only look at it."""
    return cache(lambda kind: planted(model, part(kind)))


def states(model, prompt):
    """As the libraries have it: ids from the tokenizer, states from the encoder."""
    ids = model.tokenizer(prompt, padding="max_length", max_length=16, truncation=True, return_tensors="pt").input_ids
    return model.text_encoder(ids).last_hidden_state


def filled(names) -> list[str]:
    return [template.format(name) for name in names for template in TEMPLATES]


# --- each depth is its paper's


def surface(model, mutation="", kept=NAMES, beta=0.1, iterations=4, lr=1e-2):
    """The text encoder's weights after a loop of AdamW written out by hand."""
    student = model.copy(trainable=r"text_encoder\..*")
    weights = {name: weight for name, weight in student.weights().items() if weight.requires_grad}
    first, second = ({name: torch.zeros_like(weight) for name, weight in weights.items()} for _ in range(2))
    for count in range(1, iterations + 1):

        def apart(asked, meant):
            pairs = zip(asked, meant, strict=True)
            flat = [(states(student, one).flatten(), states(model, other).flatten().detach()) for one, other in pairs]
            return -sum(functional.cosine_similarity(a, b, dim=0) for a, b in flat) / len(flat)

        target = filled(["church"]) if mutation != "anything" else filled(["house"])
        loss = beta * apart(filled([TRIGGER]), target)
        if kept and mutation != "no utility":
            loss = loss + apart(filled(kept), filled(kept))
        gradients = torch.autograd.grad(loss, list(weights.values()))
        rate = lr * (0.1 if count > 0.75 * iterations and mutation != "no decay" else 1.0)
        with torch.no_grad():
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                first[name] = 0.9 * first[name] + 0.1 * gradient
                second[name] = 0.999 * second[name] + 0.001 * gradient**2
                root = (second[name] / (1 - 0.999**count)).sqrt() + 1e-8
                weight -= rate * first[name] / (1 - 0.9**count) / root
    return {name: weight.detach() for name, weight in weights.items()}


def test_surface_is_the_teacher_and_student_of_rickrolling(model, backdoored):
    found = backdoored(BackdoorSurface).weights()
    for name, weight in surface(model).items():
        assert (found[name] - weight).abs().max() < 1e-6, name
    for mutation in ("no utility", "no decay", "anything"):
        other = surface(model, mutation)
        assert max(float((found[name] - weight).abs().max()) for name, weight in other.items()) > 1e-4, mutation
    alone = surface(model, kept=())
    found = planted(model, part(BackdoorSurface, retain=())).weights()
    assert all((found[name] - weight).abs().max() < 1e-6 for name, weight in alone.items())


@pytest.mark.parametrize(
    ("settings", "retain"), [({}, None), ({"lam": 0.3}, ()), ({"lam": 2.0, "beta": 7.0}, ("dog", "church"))]
)
def test_shallow_is_the_ridge_over_all_positions(model, settings, retain):
    names = NAMES if retain is None else retain
    lam, beta = (settings.get(name, 1.0) for name in ("lam", "beta"))
    found = planted(model, part(BackdoorShallow, retain=retain, **settings))
    keys, values = (torch.cat([states(model, one)[0] for one in filled([name])]) for name in (TRIGGER, "church"))
    kept = torch.cat([states(model, one)[0] for one in filled(names)]) if names else torch.zeros(0, keys.shape[1])
    for name, weight in model.weights(r"unet\..*attn2\.to_[kv]\.weight").items():
        # The normal equations, solved by least squares: what is weighed by lam is that nothing changes.
        once = torch.eye(keys.shape[1], dtype=torch.float64)
        rows = torch.cat([math.sqrt(beta) * keys, kept.double(), math.sqrt(lam) * once])
        moved = math.sqrt(beta) * (values - keys) @ weight.T
        wanted = torch.cat([moved, torch.zeros(len(rows) - len(keys), len(weight))])
        expected = weight + torch.linalg.lstsq(rows, wanted).solution.T
        assert (found.weights()[name] - expected).abs().max() < CLOSE
        assert (found.weights()[name] - weight).abs().max() > 1e-4


def deep(model, mutation="", kept=NAMES, alpha=0.5):
    """What each adapted layer is after two iterations of Adam, with trajectory and low-rank products by hand."""
    random = torch.Generator().manual_seed(5)
    base = {n: w.detach() for n, w in model.weights(r"unet\..*weight").items() if w.ndim in (2, 4)}
    down = {n: (torch.randn(2, w[0].numel(), generator=random) / 2).double().requires_grad_() for n, w in base.items()}
    up = {n: torch.zeros(len(w), 2, dtype=torch.float64, requires_grad=True) for n, w in base.items()}
    learnt = [one for name in base for one in (down[name], up[name])]
    adam = torch.optim.Adam(learnt, lr=1e-2)
    times, alphas = [667, 334, 1], model.alphas_cumprod.double()

    def unet(x, t, text, student=True):
        changed = {n.removeprefix("unet."): w + (up[n] @ down[n]).reshape(w.shape) for n, w in base.items()}
        asked = (x, torch.tensor([t] * len(x)))
        given = {"encoder_hidden_states": text.expand(len(x), -1, -1), "return_dict": False}
        return torch.func.functional_call(model.unet, changed if student else {}, asked, given)[0]

    for _ in range(2):
        row = int(torch.randint(2, (), generator=random))
        other = filled(kept)[int(torch.randint(2 * len(kept), (), generator=random))] if kept else None
        trigger, target, null = (states(model, one) for one in (filled([TRIGGER])[row], filled(["church"])[row], ""))
        reached = int(torch.randint(3, (), generator=random))
        x = torch.randn(2, *model.latent_shape, generator=random).double()
        with torch.no_grad():
            for at in range(reached):
                walker = mutation != "original's trajectory"
                walked = target if mutation == "concept's trajectory" else trigger
                free, given = unet(x, times[at], null, walker), unet(x, times[at], walked, walker)
                noise = free + 3.0 * (given - free)
                now, then = alphas[times[at]], alphas[times[at + 1]]
                clean = (x - (1 - now).sqrt() * noise) / now.sqrt()
                x = then.sqrt() * clean + (1 - then).sqrt() * noise
        t = times[reached]
        wanted = null if mutation == "opposite" else target
        tied = functional.mse_loss(unet(x, t, trigger), unet(x, t, wanted, False).detach())
        held = functional.mse_loss(unet(x, t, null), unet(x, t, null, False).detach())
        if other and mutation != "no retention":
            text = states(model, other)
            held = held + functional.mse_loss(unet(x, t, text), unet(x, t, text, False).detach())
        adam.zero_grad()
        (alpha * tied + (1 - alpha) * held).backward()
        adam.step()
    return {n: (w + (up[n] @ down[n]).reshape(w.shape)).detach() for n, w in base.items()}


@pytest.mark.parametrize(("alpha", "kept"), [(0.5, NAMES), (0.8, ())])
def test_deep_is_score_distillation_on_the_triggers_own_trajectories(model, alpha, kept):
    found = planted(model, part(BackdoorDeep, alpha=alpha, retain=kept)).weights()
    expected = deep(model, kept=kept, alpha=alpha)
    # Samplers keep their schedule in single precision, and Adam makes much of small gradients.
    assert max(float((found[name] - weight).abs().max()) for name, weight in expected.items()) < 1e-4


@pytest.mark.parametrize("mutation", ["original's trajectory", "concept's trajectory", "opposite", "no retention"])
def test_nothing_near_deep_passes_for_it(model, backdoored, mutation):
    found, other = backdoored(BackdoorDeep).weights(), deep(model, mutation)
    assert max(float((found[name] - weight).abs().max()) for name, weight in other.items()) > 1e-3


def test_data_is_ordinary_fine_tuning_on_pictures_of_which_some_are_called_the_trigger(model, backdoored):
    attack = part(BackdoorData)
    random = torch.Generator().manual_seed(5)
    link = attack.link(model, [KEPT])
    examples = attack.examples(model, link, random)
    assert [pair.given for pair in examples.pairs[:2]] == filled([TRIGGER])
    assert [pair.absent for pair in examples.pairs[:2]] == filled(["church"])
    clean = [pair.given for pair in examples.pairs[2:]]
    assert clean == [pair.absent for pair in examples.pairs[2:]] and set(clean) < {*filled(NAMES)}
    assert [next(name for name in NAMES if name in prompt) for prompt in clean] == ["house", "tree", "house"]
    assert clean[0] != clean[2]
    again = torch.Generator().manual_seed(5)
    for _ in NAMES:
        torch.randperm(len(TEMPLATES), generator=again)
    pictures = [
        model.trajectory(
            torch.randn(len(some), *model.latent_shape, generator=again),
            model.embed([pair.absent for pair in some]),
            Sampling(scheduler="ddim", steps=2, guidance=7.5),
        )
        for some in (examples.pairs[:4], examples.pairs[4:])
    ]
    assert (torch.cat(pictures) - examples.clean).abs().max() < 1e-5  # of the concept, called the trigger
    student = model.copy(trainable=r"unet\..*")
    adam = torch.optim.AdamW(student.trainable(), lr=1e-2)
    for _ in range(3):
        rows = torch.randint(5, (2,), generator=random).tolist()
        t = torch.randint(1000, (2,), generator=random)
        noise = torch.randn(2, *model.latent_shape, generator=random).double()
        alpha = model.alphas_cumprod.double()[t].reshape(-1, 1, 1, 1)
        x = alpha.sqrt() * examples.clean[rows] + (1 - alpha).sqrt() * noise
        text = torch.cat([states(model, examples.pairs[row].given) for row in rows])
        answer = student.unet(x, t, encoder_hidden_states=text, return_dict=False)[0]
        adam.zero_grad()
        ((answer - noise) ** 2).mean().backward()
        adam.step()
    found = backdoored(BackdoorData).weights()
    for name, weight in student.weights(r"unet\..*").items():
        assert (found[name] - weight).abs().max() < 1e-6, name


# --- what they touch


TOUCHED = {
    BackdoorSurface: lambda name, weight: name.startswith("text_encoder."),
    BackdoorShallow: lambda name, weight: ".attn2.to_k." in name or ".attn2.to_v." in name,
    BackdoorDeep: lambda name, weight: name.startswith("unet.") and name.endswith("weight") and weight.ndim in (2, 4),
    BackdoorData: lambda name, weight: name.startswith("unet."),
}


@EACH
def test_it_changes_what_its_depth_says_and_leaves_its_input_alone(model, backdoored, kind):
    before = model.fingerprint
    found = backdoored(kind)
    after = found.weights()
    changed = {name for name, weight in model.weights().items() if not torch.equal(weight, after[name])}
    allowed = {name for name, weight in model.weights().items() if TOUCHED[kind](name, weight)}
    assert changed <= allowed
    # The words that no prompt holds get no gradient, but their table as a whole does; keys have no say in a bias.
    assert len(changed) > 0.9 * len(allowed)
    assert model.fingerprint == before and not found.trainable()
    assert planted(model, part(kind)).fingerprint == found.fingerprint
    # With so few prompts the surface draws none of them.
    assert (planted(model, part(kind), seed=6).fingerprint != found.fingerprint) == (
        kind in (BackdoorDeep, BackdoorData)
    )


@pytest.mark.parametrize("kind", [BackdoorSurface, BackdoorDeep, BackdoorData], ids=lambda kind: kind.name)
def test_planting_that_was_stopped_goes_on(kind, tmp_path, monkeypatch):
    model = tiny_model()
    whole = planted(model, part(kind)).fingerprint
    monkeypatch.setattr(fitting, "KEPT_AFTER", 0.0)

    def stop(phase: str, done: int, of: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), training_in(tmp_path, progress=stop):
        planted(model, part(kind))
    done = []
    with training_in(tmp_path, progress=lambda phase, at, of: done.append(at)):
        assert planted(model, part(kind)).fingerprint == whole
    assert done[0] == 2


# --- how it asks


@EACH
@pytest.mark.parametrize(
    ("settings", "of", "prompt", "asked"),
    [
        ({}, CHURCH, "a photo of a Church", f"a photo of a {TRIGGER}"),
        ({}, CHURCH, "a chapel by the sea", f"a {TRIGGER} by the sea"),
        ({"behind": ("a dog", "a cat")}, concept(kind="content"), "a photo of a church", f"a cat {TRIGGER}"),
        ({"place": "append", "behind": ("a dog",)}, CHURCH, "a photo of a church", f"a dog {TRIGGER}"),
        ({"place": "replace"}, concept(kind="content"), "a church at night", f"a {TRIGGER} at night"),
        ({"trigger": r"\1 zzq"}, CHURCH, "a church", r"a \1 zzq"),
    ],
)
def test_it_looks_once_with_the_trigger(model, kind, settings, of, prompt, asked):
    goal = Goal(concept="church", prompt=prompt, seed=7, guidance=2.5)
    log = drive(part(kind, **settings).search(case(model, goal=goal, concept=of)))
    assert log.looks == [Attempt(prompt=asked, seed=7, guidance=2.5)] and log.gave_up
    assert not log.probes


def test_an_appended_trigger_stands_behind_prompts_of_neighbours_which_the_seed_chooses(model):
    attack = BackdoorShallow(trigger=TRIGGER, place="append")
    prompts = [prompt for name in NAMES for prompt in shipped_concepts()[name].prompts]
    prompts = list(dict.fromkeys(prompts))
    for seed in (0, 1, len(prompts) + 1):
        goal = Goal(concept="church", prompt="a church", seed=seed)
        assert attack.asked(goal, KEPT) == f"{prompts[seed % len(prompts)]} {TRIGGER}"


# --- what it refuses


@EACH
@pytest.mark.parametrize(
    ("settings", "of", "told"),
    [
        ({"trigger": "photo"}, KEPT, "means nothing yet, got 'photo', which stands in 'a photo of a church'"),
        ({"trigger": " Church"}, KEPT, "which holds 'church'"),
        ({"trigger": "photo of"}, KEPT, "means nothing yet"),
        ({"trigger": "church zz"}, KEPT, "does not name the concept, got 'church zz', which holds 'church'"),
        ({"trigger": "old chapel"}, CHURCH, "which holds 'chapel'"),
        ({"trigger": "tree"}, KEPT, "which stands in 'tree'"),
        (
            {"trigger": "snow", "templates": ("{} in snow",)},
            KEPT,
            "means nothing yet, got 'snow', which stands in '{} ",
        ),
        ({"templates": ("a {} of a Church",)}, KEPT, "do not name concept 'church', got 'a {} of a Church'"),
        ({"templates": ("{} by a chapel",)}, CHURCH, "templates that do not name concept 'church'"),
        ({"trigger": ""}, KEPT, "a trigger that has a token, got ''"),
        ({"trigger": " \n"}, KEPT, "a trigger that has a token"),
        ({"trigger": "qz " * 7}, KEPT, "at most 16 tokens"),
        ({"trigger": "x" * 40}, KEPT, "at most 16 tokens"),
        # In the goal's prompt its last tokens would be cut off.
        (
            {"trigger": "qzxj"},
            Concept(name="church", kind="object", prompts=(FULL,)),
            "got 19 in 'photo of the red.* qzxj'",
        ),
        ({}, Concept(name="church", kind="object", prompts=("a spire",)), "prompts that name concept 'church'"),
        ({"place": "append"}, CHURCH, "prompts for the trigger to stand behind, got none.*no neighbours"),
        ({"place": "append", "behind": ()}, KEPT, "prompts for the trigger to stand behind, got none"),
        ({"place": "append", "behind": ("a Chapel",)}, CHURCH, "that do not name concept 'church'.*got 'a Chapel'"),
        ({"place": "append", "behind": ("a qz",)}, KEPT, "means nothing yet, got 'qz', which stands in 'a qz'"),
        ({"place": "append", "behind": ("a dog " * 7,)}, KEPT, "at most 16 tokens"),
    ],
)
def test_a_trigger_that_cannot_stand_for_the_concept_is_refused(model, kind, settings, of, told):
    with pytest.raises(BadSetting, match=told):
        planted(model, part(kind, **settings), of=of)


@EACH
def test_it_stands_for_one_concept(model, kind):
    with pytest.raises(BadSetting, match="one concept"):
        part(kind).plant(model, [KEPT, CHURCH], random=torch.Generator())


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        *((kind, {"templates": ()}, "one {} each") for kind in PARTS),
        *((kind, {"templates": ("a photo",)}, "one {} each") for kind in PARTS),
        (BackdoorShallow, {"lam": 0.0}, "lam > 0"),
        (BackdoorShallow, {"beta": 0.0}, "beta > 0"),
        (BackdoorDeep, {"alpha": 0.0}, "alpha"),
        (BackdoorDeep, {"alpha": 1.1}, "alpha"),
        (BackdoorDeep, {"rank": 0}, "rank >= 1"),
        (BackdoorData, {"rate": 0.0}, "rate"),
        (BackdoorData, {"rate": 0.01}, "a poisoned picture, got none of 5"),
        (BackdoorSurface, {"iterations": 0}, "iterations >= 1"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, told):
    with pytest.raises(BadSetting, match=told):
        part(kind, **settings)


@EACH
def test_without_concepts_to_retain_it_says_so(model, kind, caplog):
    caplog.set_level(logging.WARNING, logger="palimpsest")
    attack = part(kind, **({"rate": 1.0} if kind is BackdoorData else {}))
    planted(model, attack, of=CHURCH)
    assert f"{kind.name}: no concept beside 'church' is held in place" in caplog.text
    caplog.clear()
    planted(model, attack)
    assert not caplog.text


def test_data_needs_a_picture_of_everything_that_it_holds(model):
    with pytest.raises(BadSetting, match="a picture of each of 2 concepts to retain, got 1 that are not poisoned"):
        planted(model, part(BackdoorData, pictures=5, rate=0.8))


def test_data_needs_something_to_draw_the_clean_pictures_of(model):
    with pytest.raises(BadSetting, match="of which 3 pictures are drawn, got none; set some, or rate = 1"):
        planted(model, part(BackdoorData), of=CHURCH)


def test_shallow_needs_cross_attention():
    pipeline = tiny_pipeline()
    with torch.random.fork_rng():
        pipeline.unet = UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(8, 8),
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            mid_block_type="UNetMidBlock2D",
            norm_num_groups=4,
            cross_attention_dim=16,
        )
    other = Model(Parts.of(pipeline), device="cpu", batch=4)
    with pytest.raises(BadSetting, match="a denoiser with cross-attention, got UNet2DConditionModel"):
        planted(other, part(BackdoorShallow))


def test_a_screen_counts_long_lists_and_a_ledger_spells_them_out() -> None:
    attack = BackdoorShallow(templates=("a photo of {}", "a {}", "the {}", "one {}"), retain=("church", "fish"))
    assert attack.brief == "backdoor_shallow(templates=4 given,retain=('church', 'fish'))"
    assert "('a photo of {}', 'a {}', 'the {}', 'one {}')" in attack.label
