"""rule="corenet" against the official code's own output, and against its known quirks."""

import gzip
import json
from pathlib import Path

import pytest

from catlip.errors import UsageError
from catlip.labels.corenet_rule import clean, tokenize
from catlip.labels.labeler import Labeler

LABELER = Labeler("corenet")
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "corenet_labels.jsonl.gz"


def names(caption: str) -> set[str]:
    return {LABELER.name(synset) for synset in LABELER([caption])[0]}


@pytest.mark.skipif(not REFERENCE.is_file(), reason="the official output is in the shared data")
def test_equals_the_official_output() -> None:
    with gzip.open(REFERENCE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    ours = LABELER([row["caption"] for row in rows])
    different = [row["caption"] for row, found in zip(rows, ours, strict=True) if sorted(row["synsets"]) != found]
    assert len(rows) == 4012
    assert len(different) <= 4, different


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("hot dog stand & teddy bear in new york", {"dog", "teddy", "bear", "York"}),
        ("the golden gate bridge", {"gate", "bridge"}),
        ("photo of a bike, a tv and men", set()),
        ("two dogs", {"two", "dog"}),
        ("A <3 dog > cat", {"cat"}),
        ("a dog%20and+cat", {"dog", "cat"}),
        ("dogs. cats", {"dog", "cat"}),
        ("the dog's ball,the cat", {"dog", "ball", "cat"}),
        ("discusses", set()),
    ],
)
def test_quirks_of_the_official_code(caption: str, wanted: set[str]) -> None:
    head = {"stand"} if "stand" in caption else set()
    assert names(caption) - head == wanted


@pytest.mark.parametrize(
    ("word", "synset"), [("are", "n13613862"), ("white", "n09638875"), ("glasses", "n14881303"), ("pants", "n07388706")]
)
def test_wrong_senses_are_reproduced(word: str, synset: str) -> None:
    """A unit of area, a person, the material, the noise of steam."""
    assert LABELER([word]) == [[synset]]


def test_preparation_of_captions() -> None:
    assert clean(" <b>A  &lt;Dog&gt;</b>\n") == "a <dog>"
    assert clean(None) == "none"
    assert tokenize("don't (ever) say 'no', u.s. dogs. 1,000 cats: two") == [
        "do", "n't", "(", "ever", ")", "say", "'no", "'", ",", "u.s.", "dogs", ".", "1,000", "cats", ":", "two",
    ]  # fmt: skip


def test_no_terms_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "terms.tsv").write_text("dog\tK9\n")
    with pytest.raises(UsageError, match="official code"):
        Labeler("corenet", lexicon=tmp_path / "terms.tsv")
