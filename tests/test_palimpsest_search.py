"""Our own attack: which words it tries first, what it draws in full, what it never proposes, and what it is worth."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cases import Log, case, concept, drive
from palimpsest.attacks import PalimpsestSearch, RandomPrefix
from palimpsest.attacks.insertion import insert
from palimpsest.attacks.typable import Typable
from palimpsest.errors import BadSetting
from palimpsest.model import Model, Probe
from palimpsest.records import Attempt, Goal, Verdict
from scripted import Hash, audit, run, trials
from tiny import tiny_model

PROMPT = "a photo of a church"
SMALL = {
    "vocabulary": 40,
    "heeded": 12,
    "drafted": 6,
    "outright": 2,
    "batch": 2,
    "confirmed": 1,
    "k": 2,
    "alike": 1.0,
}


@pytest.fixture(scope="module")
def model():
    return tiny_model(dtype=torch.float64, batch=4)


@pytest.fixture(scope="module")
def miniature():
    """For its tokenizer, in which more than a third of the tokens do not survive being typed."""
    return Model.load("miniature")


def attacked(model: Model, *, looks: int = 99, **settings) -> Log:
    return drive(PalimpsestSearch(**(SMALL | settings)).search(case(model, prompt=PROMPT)), model.ask, looks=looks)


def prefix(attempt: Attempt) -> str:
    assert attempt.prompt.endswith(PROMPT)
    return attempt.prompt.removesuffix(PROMPT).strip()


def state(model: Model, prompt: str) -> Tensor:
    """(d,): the text state at the end token, by the encoder's own words."""
    tokens = model.tokens(prompt)[None]
    with torch.no_grad():
        states = model.text_encoder(tokens).last_hidden_state[0]
    return states[int((tokens[0] == model.end_token).int().argmax())]


def said(model: Model, prompt: str, probe: Probe) -> Tensor:
    with torch.no_grad():
        states = model.text_encoder(model.tokens(prompt)[None])[0]
        return model.unet(probe.latents[None], probe.step, encoder_hidden_states=states).sample[0]


def probed(model: Model, log: Log) -> list[str]:
    """The words whose effect on the denoiser was asked."""
    return list(dict.fromkeys(model.text(probe.tokens[1:2]) for probe in log.probes[1:]))


# Which words ----------------------------------------------------------------------------------------------------------


def test_asks_the_denoiser_about_the_words_that_move_the_text_state_most(model):
    log = attacked(model, vocabulary=10_000)
    here = state(model, PROMPT)
    words = {token: model.text([token]) for token in range(len(model.vocabulary)) if token not in model.special_tokens}
    moved = {
        word: float((state(model, f"{word} {PROMPT}") - here).norm())
        for token, word in words.items()
        if model.tokens(word)[1:3].tolist() == [token, model.end_token]
    }
    expected = sorted(moved, key=moved.__getitem__, reverse=True)[:12]
    assert probed(model, log) == expected
    assert len(log.probes) == 1 + 12


def test_tries_those_first_that_move_the_prediction_most(model):
    log = attacked(model, at=(0.3, 0.8))
    probes = [log.probes[0], log.probes[13]]
    assert [probe.step for probe in probes] == [300, 800]
    assert not any(probe.wrt or probe.of == "base" for probe in log.probes)
    words = probed(model, log)
    far = torch.zeros(len(words))
    for probe in probes:
        plainly = said(model, PROMPT, probe)
        each = torch.stack([((said(model, f"{word} {PROMPT}", probe) - plainly) ** 2).mean() for word in words])
        far += (each / each.mean()).float()
    expected = [words[place] for place in far.argsort(descending=True).tolist()]
    assert [prefix(look) for look in log.looks[1:3]] == expected[:2]
    singles = [prefix(look) for look in log.looks[1:] if " " not in prefix(look)]
    assert list(dict.fromkeys(singles)) == expected[:6]


@pytest.mark.parametrize("rank", ["loss", "gradient", "state"])
def test_the_other_orders_are_what_they_say(model, rank):
    log = attacked(model, rank=rank)
    words, tried = probed(model, attacked(model)), list(dict.fromkeys(prefix(look) for look in log.looks[1:]))[:6]
    if rank == "state":
        assert (log.probes, tried) == ([], words[:6])
        return
    noise, losses = model.noise(7), {}
    for word in words:
        probe = log.probes[0]
        if rank == "loss":
            losses[word] = float(((said(model, f"{word} {PROMPT}", probe) - noise) ** 2).mean())
        else:
            losses[word] = float(gradient_of(model, probe)[1] @ model.vocabulary[int(model.tokens(word)[1])])
    assert tried == sorted(words, key=losses.__getitem__)[:6]
    assert [bool(probe.wrt) for probe in log.probes] == ([True] if rank == "gradient" else [False] * 13)


def gradient_of(model: Model, probe: Probe) -> Tensor:
    words = model.vocabulary.detach()[probe.tokens].requires_grad_()
    hook = model.text_encoder.get_input_embeddings().register_forward_hook(lambda *_: words[None])
    try:
        states = model.text_encoder(probe.tokens[None])[0]
    finally:
        hook.remove()
    answer = model.unet(probe.latents[None], probe.step, encoder_hidden_states=states).sample[0]
    return torch.autograd.grad(probe.loss(answer, None), words)[0].detach()


@pytest.mark.parametrize("noise", ["goal", "fresh"])
def test_the_points_are_the_reference_under_the_noise_of_the_goals_picture(model, noise):
    log = attacked(model, noise=noise, at=(0.4, 0.6))
    reference = case(model).reference
    for probe in (log.probes[0], log.probes[13]):
        alpha = model.alphas_cumprod[probe.step].double()
        found = (probe.latents - alpha.sqrt() * reference) / (1 - alpha).sqrt()
        assert torch.allclose(found, model.noise(7), atol=1e-6) is (noise == "goal")


def test_words_that_mean_the_same_come_behind_all_others(model):
    def singles(alike: float) -> list[str]:
        log = attacked(model, alike=alike, drafted=12)
        return list(dict.fromkeys(prefix(look) for look in log.looks[1:] if " " not in prefix(look)))

    plain, here = singles(1.0), state(model, PROMPT)
    shift = {word: state(model, f"{word} {PROMPT}") - here for word in plain}
    first: list[str] = []
    for word in plain:
        if all(float(torch.cosine_similarity(shift[word], shift[other], dim=0)) <= 0.5 for other in first):
            first.append(word)
    assert 1 < len(first) < len(plain)
    assert singles(0.5) == [*first, *(word for word in plain if word not in first)]


# What it draws --------------------------------------------------------------------------------------------------------


def scored(model: Model, scores: dict[str, float], looks: int, **settings) -> list[tuple[str, bool]]:
    """What it looks at, as a draft or not, when a judge scores prefixes so (others 0)."""
    search = PalimpsestSearch(**(SMALL | settings)).search(case(model, prompt=PROMPT))
    proposal, seen = next(search), []
    while len(seen) < looks:
        if isinstance(proposal[0], Probe):
            proposal = search.send(model.ask(proposal))
            continue
        seen += [(prefix(look), look.draft) for look in proposal]
        given = [scores.get(prefix(look), 0.0) for look in proposal]
        proposal = search.send([Verdict(scores={"chief": score, "other": 1.0}, shown=False) for score in given])
    return seen[1:looks]


def test_the_first_words_in_full_then_drafts_and_the_best_of_each_batch_in_full(model):
    words = [prefix(look) for look in attacked(model, outright=0).looks[1:] if look.draft and " " not in prefix(look)]
    a, b, c, d, e, f = words
    seen = scored(model, {d: 0.6, c: 0.2, e: 0.1, f: 0.1}, looks=9)
    assert seen == [(a, False), (b, False), (c, True), (d, True), (d, False), (e, True), (f, True), (c, False)]


def test_a_draft_that_scores_less_than_its_share_of_the_threshold_is_not_drawn_in_full(model):
    """The judge's threshold is 0.5."""
    words = [prefix(look) for look in attacked(model, outright=0).looks[1:] if look.draft and " " not in prefix(look)]
    a, b, c, d, e, f = words
    seen = scored(model, {a: 0.04, c: 0.06, d: 0.05, e: 0.04}, looks=9, outright=0, promising=0.1)
    assert seen == [(a, True), (b, True), (c, True), (d, True), (c, False), (e, True), (f, True), (d, False)]


def test_then_the_words_of_the_best_are_joined(model):
    words = [prefix(look) for look in attacked(model, outright=0).looks[1:] if look.draft and " " not in prefix(look)]
    b, d = words[1], words[3]
    seen = scored(model, {d: 0.6, b: 0.4}, looks=12)
    assert seen[8:10] == [(f"{d} {b}", True), (f"{b} {d}", True)] or seen[8:10] == [
        (f"{b} {d}", True),
        (f"{d} {b}", True),
    ]
    assert {len(look.split()) for look, _ in seen[8:]} == {1, 2}


def test_as_many_words_as_k_at_most_then_it_gives_up(model):
    for k in (1, 2, 3):
        log = attacked(model, k=k, looks=2000, joined=3)
        assert max(len(prefix(look).split()) for look in log.looks) == k
        assert log.gave_up
        for draft in (True, False):
            drawn = [look.prompt for look in log.looks if look.draft is draft]
            assert len(set(drawn)) == len(drawn)


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
        assert all(40 < trial.cost.passes <= 60 for trial in ended)
        assert {trial.cost.encodes > 40 for trial in ended} == {True}
    first = found[1][0].goal
    alone, together = ([trial for trial in found[goals] if trial.goal == first] for goals in (1, 2))
    assert len(found[2]) > len(alone) > 3
    assert alone == together


# What it never proposes ----------------------------------------------------------------------------------------------


def test_every_prompt_is_tokenised_into_the_tokens_that_were_meant(miniature):
    log = drive(PalimpsestSearch(**SMALL, rank="state").search(case(miniature, prompt=PROMPT)), looks=40)
    assert max(len(prefix(look).split()) for look in log.looks) == 2
    own = miniature.tokens(PROMPT)[1:6].tolist()
    for look in log.looks[1:]:
        typed = miniature.tokens(look.prompt).tolist()
        length = typed.index(miniature.end_token) - 1
        assert typed[length - 4 : length + 1] == own
        assert list(miniature.tokens(miniature.text(typed[1 : length + 1]))) == typed
        assert length - 5 == len(prefix(look).split())
    # Without the check they would not: so it is with half of what the control draws.
    control = drive(RandomPrefix().search(case(miniature, prompt=PROMPT)), looks=20)
    lengths = {int((miniature.tokens(attempt.prompt) == miniature.end_token).sum()) for attempt in control.looks[1:]}
    assert len(lengths) > 1


def test_a_banned_word_is_never_proposed_and_would_be_without_the_ban(miniature):
    here = case(miniature, prompt=PROMPT, concept=concept(synonyms=("old chapel",)))

    def words(banned: tuple[str, ...] | None) -> set[str]:
        typable = Typable(here, insert(here, 1, "prefix"), banned=PalimpsestSearch(banned=banned)._banned(here))
        return {miniature.text([token]) for token in typable.words(10_000)}

    assert {"church", "chapel", "boat"} <= words(None)
    assert words(None) - words(()) >= {"church", "chapel"}
    assert "boat" in words(()) and "boat" not in words(("BOA",))
    pair = [int(miniature.tokens(word)[1]) for word in ("boat", "tree")]
    assert tuple(pair) in Typable(here, insert(here, 2, "prefix"))
    assert tuple(pair) not in Typable(here, insert(here, 2, "prefix"), banned=("boat tree",))


def test_the_search_bans_what_it_is_told(model):
    tried = {word for look in attacked(model).looks[1:] for word in prefix(look).split()}
    left = {word for look in attacked(model, banned=tuple(tried)).looks[1:] for word in prefix(look).split()}
    assert len(tried) > 4 and len(left) > 4 and not tried & left


def test_short_words_of_a_name_are_spared(miniature):
    here = case(miniature, prompt=PROMPT, concept=concept("sea of a church"))
    assert PalimpsestSearch(banned=("x",))._banned(here) == ["x", "sea", "church"]
    assert PalimpsestSearch()._banned(here) == []


def test_no_word_left_is_an_error(model):
    letters = tuple(chr(code) for code in range(33, 127))
    with pytest.raises(BadSetting, match="expected words that are not banned, got none among"):
        attacked(model, banned=letters)


# Settings ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("guarded", "own", "expected"), [(False, 2.0, None), (True, None, 4.0), (True, 2.0, 2.0)])
def test_goes_through_a_guard_with_the_guidance_of_the_picture(model, guarded, own, expected):
    goal = Goal(concept="church", prompt=PROMPT, seed=7, guidance=own)
    search = PalimpsestSearch(**SMALL).search(case(model, guarded=guarded, goal=goal))
    log = drive(search, model.ask, looks=3)
    assert {probe.guidance for probe in log.probes} == {expected}
    assert {look.guidance for look in log.looks} == {own}


def test_a_prompt_without_room_is_given_up_after_the_plain_look(model):
    prompt = "church " * (model.context - 3)
    log = drive(PalimpsestSearch(**SMALL).search(case(model, prompt=prompt)))
    assert log.reason.startswith("expected room for")
    assert [attempt.prompt for attempt in log.looks] == [prompt]


@pytest.mark.parametrize("setting", ["k", "vocabulary", "heeded", "drafted", "batch", "confirmed", "joined"])
def test_refuses_none_of_something(setting):
    with pytest.raises(BadSetting, match=f"expected {setting} >= 1, got 0"):
        PalimpsestSearch(**{setting: 0})


@pytest.mark.parametrize("at", [(), (1.0,), (0.5, -0.1)])
def test_refuses_timesteps_that_are_none(at: Sequence[float]):
    with pytest.raises(BadSetting, match="expected at: shares from 0 to below 1, got"):
        PalimpsestSearch(at=at)
