"""Where free tokens stand, whatever the attack."""

import pytest

from cases import case
from palimpsest.attacks.base import NoRoom
from palimpsest.attacks.insertion import Insertion, check_room, insert
from tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def shape(model, prompt: str, k: int, insertion: Insertion) -> str:
    """The prompt with a question mark for each free token."""
    words = {int(model.tokens(word)[1]): word for word in prompt.split()}
    template = insert(case(model, prompt=prompt), k, insertion)
    return " ".join("?" if token is None else words[token] for token in template)


@pytest.mark.parametrize(
    ("insertion", "k", "expected"),
    [
        ("prefix", 2, "? ? a photo of the red church"),
        ("suffix", 2, "a photo of the red church ? ?"),
        ("middle", 2, "a photo of ? ? the red church"),
        ("spread", 1, "a photo of ? the red church"),
        ("spread", 2, "a photo ? of the ? red church"),
        ("spread", 4, "a ? photo ? of ? the ? red church"),
        ("spread", 6, "? ? ? ? ? ? a photo of the red church"),
        ("every", 1, "? a photo of the red church"),
        ("every", 2, "? a photo of ? the red church"),
        ("every", 4, "? a photo of ? the red church ? ?"),
    ],
)
def test_as_in_the_framework(model, insertion, k, expected):
    assert shape(model, "a photo of the red church", k, insertion) == expected


@pytest.mark.parametrize("insertion", ["prefix", "suffix", "middle", "spread", "every"])
def test_a_prompt_without_words_is_the_free_tokens_alone(model, insertion):
    assert shape(model, "", 3, insertion) == "? ? ?"


@pytest.mark.parametrize("insertion", ["prefix", "suffix", "middle", "spread", "every"])
def test_room_is_what_the_context_leaves(model, insertion):
    """16 places, two of them for start and end, and five words."""
    here = case(model, prompt="a photo of a church")
    check_room(here, insert(here, 9, insertion))
    with pytest.raises(NoRoom, match="expected room for 10 tokens more, and the prompt's 5 leave 9"):
        check_room(here, insert(here, 10, insertion))
