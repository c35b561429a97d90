"""The miniature's world: the same facts give the same pixels and words, and what is held out stays out."""

from dataclasses import replace
from importlib import resources

import numpy as np
import pytest

from palimpsest.concept_file import shipped_concepts
from palimpsest.errors import UnknownName
from palimpsest.miniature.captions import caption, filler, plain, world_words
from palimpsest.miniature.facts import (
    COLOURS,
    CONTENT,
    FIXED,
    HEADS,
    IDENTITIES,
    IMPLICATIONS,
    OBJECTS,
    SCENES,
    STYLES,
    Facts,
    answers,
    concepts,
    held_out,
    imagine,
    kind_of,
)
from palimpsest.miniature.goals import PROMPTS, concept_record, synonym_prompts
from palimpsest.miniature.render import render
from palimpsest.miniature.vocabulary import CONTEXT, encode_text, learn_merges, meaningless, new_tokenizer, scattered

CHURCH = Facts(subject="church", colour="red", scene="snow", seed=3)
EVERY = [name for names in concepts().values() for name in names]


def test_the_world_is_as_large_as_promised() -> None:
    assert len(OBJECTS) >= 12 and all(2 <= len(synonyms) <= 4 for synonyms in OBJECTS.values())
    assert len(COLOURS) == 10 and len(SCENES) == 6
    assert len(STYLES) >= 6 and len(IDENTITIES) >= 8 and len(CONTENT) == 1
    assert set(FIXED) <= set(EVERY)


def test_a_picture_is_the_same_every_time_and_another_with_another_seed() -> None:
    first, again, other = render(CHURCH), render(CHURCH), render(replace(CHURCH, seed=4))
    assert first.shape == (64, 64, 3) and first.dtype == np.uint8
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    "changed",
    [{"subject": "house"}, {"colour": "blue"}, {"scene": None}, {"style": "mosaic"}, {"subject": None, "colour": None}],
)
def test_every_fact_changes_the_picture(changed: dict[str, str | None]) -> None:
    before, after = render(CHURCH).astype(float), render(replace(CHURCH, **changed)).astype(float)
    assert np.abs(before - after).mean() > 3


@pytest.mark.parametrize("style", STYLES)
def test_every_subject_can_be_drawn_in_every_style(style: str) -> None:
    for subject in (*OBJECTS, *IDENTITIES, *CONTENT):
        facts = Facts(subject=subject, colour="red" if subject in OBJECTS else None, style=style, scene="night")
        without = replace(facts, subject=None, colour=None)
        assert np.abs(render(facts).astype(float) - render(without)).max() > 60


def test_what_is_held_out_is_never_imagined() -> None:
    random = np.random.default_rng(0)
    seen = [imagine(random) for _ in range(3_000)]
    assert not any(held_out(one.subject, one.style, one.colour) for one in seen)
    share = np.mean([held_out(o, s, c) for o in OBJECTS for s in STYLES for c in COLOURS])
    assert 0.03 < share < 0.09


def test_the_twin_never_sees_the_six() -> None:
    random = np.random.default_rng(0)
    seen = [imagine(random, without=frozenset(FIXED)) for _ in range(2_000)]
    assert not {one.subject for one in seen} & set(FIXED)
    assert not {one.style for one in seen} & set(FIXED)
    # While the whole world has them all.
    whole = [imagine(random) for _ in range(2_000)]
    assert set(FIXED) <= {one.subject for one in whole} | {one.style for one in whole}


def test_answers_are_among_the_choices() -> None:
    random = np.random.default_rng(1)
    for _ in range(500):
        told = answers(imagine(random))
        assert all(told[head] in choices for head, choices in HEADS.items())
    assert answers(replace(CHURCH, style="pencil sketch"))["colour"] == "none"


def test_captions_name_what_is_there_in_many_ways() -> None:
    random = np.random.default_rng(2)
    texts = {caption(CHURCH, random) for _ in range(300)}
    assert len(texts) > 100
    names = ("church", *OBJECTS["church"])
    assert all(any(name in text for name in names) for text in texts)
    assert all(any(name in text for text in texts) for name in names)
    assert plain(CHURCH) == "a photo of a red church in the snow"


def test_the_sign_is_also_implied_and_then_never_named() -> None:
    random = np.random.default_rng(3)
    facts = Facts(subject="radiation sign", scene="sea")
    texts = [caption(facts, random) for _ in range(200)]
    implied = [text for text in texts if any(phrase in text for phrase in IMPLICATIONS)]
    assert 50 < len(implied) < 150
    names = ("radiation", "trefoil", "radioactive", "sign")
    assert not any(name in text.split() for text in implied for name in names)


def test_filler_says_nothing_of_the_world() -> None:
    assert not set(filler()) & world_words()
    assert len(filler()) > 1_000


@pytest.mark.parametrize("name", EVERY)
def test_every_concept_is_shipped_as_the_world_describes_it(name: str) -> None:
    record = concept_record(name)
    assert shipped_concepts()[name] == record
    assert len(record.prompts) == PROMPTS and record.neighbours and record.kind == kind_of(name)
    assert all(name in asked and name not in without for asked, without in record.pairs)
    if record.kind != "style":  # something else stands in its place, and the rest is as it was
        for asked, without in record.pairs:
            assert without in {asked.replace(name, other) for other in record.neighbours}


def test_synonyms_take_the_place_of_the_name() -> None:
    told = synonym_prompts("church")
    assert set(told) == set(OBJECTS["church"])
    assert all("chapel" in prompt and "church" not in prompt for prompt in told["chapel"])


def test_an_unknown_concept_is_named() -> None:
    with pytest.raises(UnknownName, match="no concept called 'zebra'; there are: .*church"):
        concept_record("zebra")


def test_the_tokenizer_keeps_every_word_of_the_world_whole() -> None:
    tokenizer = new_tokenizer()
    assert all(len(ids) == 3 for ids in tokenizer(sorted(world_words())).input_ids)
    text = "a photo of a red church at night"
    ids = encode_text(tokenizer, [text])
    assert ids.shape == (1, CONTEXT)
    assert tokenizer.decode(ids[0], skip_special_tokens=True).strip() == text


def test_the_merges_can_be_learnt_again() -> None:
    # Ties are broken by chance, so a few differ.
    kept = set(resources.files("palimpsest.miniature").joinpath("merges.txt").read_text().splitlines())
    learnt = set(learn_merges(21))
    assert len(kept & learnt) > 0.97 * len(kept)


def test_scattered_tokens_keep_the_words_and_the_frame() -> None:
    tokenizer = new_tokenizer()
    ids = encode_text(tokenizer, ["a red church"] * 64)
    tokens = meaningless(tokenizer)
    made = scattered(ids, tokens, np.random.default_rng(0), share=0.5, end=tokenizer.eos_token_id)
    words = ids[0, 1:4].tolist()
    changed = [row for row, before in zip(made.tolist(), ids.tolist(), strict=True) if row != before]
    assert 20 < len(changed) < 45
    for row in changed:
        inner = row[1 : row.index(tokenizer.eos_token_id)]
        assert words in (inner[:3], inner[-3:]) and len(inner) > 3
        assert row[0] == tokenizer.bos_token_id and set(row[1 + len(inner) :]) == {tokenizer.eos_token_id}
