"""Prompts from a CSV in the form of I2P and of UnlearnDiffAtk's lists, with the seed and guidance of each row."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palimpsest.audit_file import make_audit
from palimpsest.concept_file import find_concept
from palimpsest.errors import BadConcept
from palimpsest.protocol import derived_seed
from scripted import Hash

I2P = "prompt,categories,sd_seed,sd_guidance_scale,sd_model\n"
MUA = "case_number,prompt,evaluation_seed,evaluation_guidance,sd_seed\n"


def concept(folder: Path, text: str) -> Path:
    (folder / "list.csv").write_text(text, encoding="utf-8")
    path = folder / "mine.toml"
    path.write_text('name = "church"\nkind = "object"\nprompts = "list.csv"\n')
    return path


@pytest.mark.parametrize(
    "text",
    [
        I2P + 'a red church,x,4068807111,7.0,a\n"a church, at night",y,12,11.5,b\n',
        MUA + '0,a red church,4068807111,7,1\n1,"a church, at night",12,11.5,2\n',
        "\ufeffprompt,seed,guidance\na red church,4068807111,7\n" + '"a church, at night",12.0,11.5\n',
    ],
)
def test_a_goal_is_a_row_with_its_seed_and_guidance(tmp_path: Path, text: str) -> None:
    path = concept(tmp_path, text)
    found = make_audit({"concepts": [str(path)], "erasers": ["uce"], "judges": [Hash()], "goals": 3})
    goals = found.goals_for(found.concepts[0])
    assert [(goal.prompt, goal.seed, goal.guidance) for goal in goals] == [
        ("a red church", 4068807111, 7.0),
        ("a church, at night", 12, 11.5),
        ("a red church", derived_seed(0, "church", 2), 7.0),  # the list begins again, with a further seed
    ]
    again = make_audit(found.table() | {"judges": [Hash()]})
    assert again == found and again.protocol == found.protocol


def test_what_a_list_does_not_say_is_the_audits(tmp_path: Path) -> None:
    found = find_concept(str(concept(tmp_path, "prompt\na church\n")))
    assert (found.prompts, found.seeds, found.guidances) == (("a church",), (), ())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,seed\na church,1\n", "expected a column 'prompt', got text, seed; a seed may stand in evaluation_seed"),
        ("", "expected a column 'prompt', got no columns"),
        ("prompt,seed\n", "expected at least one prompt"),
        ("prompt,seed\na church,one\n", "row 2, seed: expected a number, got 'one'"),
        ("prompt,seed\na church\n", "row 2, seed: expected a number, got None"),
        ("prompt,seed\na church,1\na chapel,1.5\n", "row 3: expected a whole number as seed, got 1.5"),
        ("prompt,seed\na church,-1\n", "expected seeds of 0 or more, got -1"),
        ("prompt,guidance\na church,nan\n", "row 2, guidance: expected a number, got 'nan'"),
        ("prompt,seed\n ,1\n", "with words in them"),
    ],
)
def test_a_list_that_does_not_fit_is_explained(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(BadConcept, match=message):
        find_concept(str(concept(tmp_path, text)))


def test_no_list(tmp_path: Path) -> None:
    path = concept(tmp_path, "")
    (tmp_path / "list.csv").unlink()
    with pytest.raises(BadConcept, match="expected a CSV file of prompts"):
        find_concept(str(path))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=80), st.sampled_from([b"", b"prompt,seed\n", b"prompt,guidance\na,"]))
def test_any_bytes_are_a_concept_or_a_clear_error(tmp_path: Path, garbage: bytes, start: bytes) -> None:
    path = concept(tmp_path, "")
    (tmp_path / "list.csv").write_bytes(start + garbage)
    try:
        assert find_concept(str(path)).prompts
    except BadConcept as error:
        assert "list.csv" in str(error) or "mine.toml" in str(error)
