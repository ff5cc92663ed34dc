"""Captions -> synsets: a table of cases, properties that hold for any text, and agreement of the ways to ask."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.captions.labeler import Labeler
from catlip.errors import UsageError

LABELER = Labeler()


def names(caption: str, labeler: Labeler = LABELER) -> set[str]:
    return {labeler.name(synset) for synset in labeler([caption])[0]}


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a man riding a bike past a fire hydrant", {"man", "bicycle", "fireplug"}),
        ("two men eating hot dogs", {"man", "hotdog"}),
        ("A golden retriever and three golden retrievers", {"golden_retriever"}),
        ("photo of a tv", {"photograph", "television_receiver"}),
        ("T-shirt, tee shirt, t shirt and tshirt", {"jersey"}),
        ("children with knives", {"child", "knife"}),
        ("the boy's CAFÉ", {"male_child", "cafe"}),
        ("a man in a truck", {"man", "truck"}),
        ("two kids on a couch with a phone", {"child", "sofa", "telephone"}),
        ("ice-cream and ice cream", {"ice_cream"}),
        ("a skate board", {"skateboard"}),
        ("a dog watches a watch", {"dog", "watch"}),
        ("women wearing glasses drink from glasses of wine", {"woman", "glass", "wine"}),
        ("hot, dog", {"dog"}),  # no phrase across punctuation
    ],
)
def test_labels(caption: str, wanted: set[str]) -> None:
    assert names(caption) == wanted


@pytest.mark.parametrize(
    "caption",
    ["a", "in", "are", "while", "playing", "He is at it", "no will can do must", "white black red", "standing, sitting",
     "don't", "I'll", "one two three", "while they are walking", "http://dog.com/cat.jpg", "<img alt='dog'>",
     "www.horse.org", "IMG_dog.jpg", "&lt;&gt;", "", "   ", "!!!", "12 34", "#dog @cat"],
)  # fmt: skip
def test_no_label(caption: str) -> None:
    assert names(caption) == set()


def test_homonyms_look_for_cues() -> None:
    assert LABELER(["a baseball player swings a bat"]) != LABELER(["a bat hangs in a cave"])
    assert "n02139199" in LABELER(["a bat hangs in a cave"])[0]
    assert "n02799175" in LABELER(["a baseball player swings a bat"])[0]
    assert "n03793489" in LABELER(["a wireless mouse and a keyboard"])[0]


def test_a_word_of_two_meanings_alone_keeps_both() -> None:
    assert {"n03126707", "n02012849"} <= set(LABELER(["a photo of a crane"])[0])


def test_sorted_unique_and_one_list_a_caption() -> None:
    found = LABELER(["dog dog cat dog", "", None, float("nan"), "a cat"])
    assert len(found) == 5
    assert found[0] == sorted(set(found[0]))
    assert found[1:4] == [[], [], []]
    assert LABELER([]) == []


def test_several_captions_of_one_picture_are_united() -> None:
    rows = np.array([0, 0, 2])
    indices, offsets = LABELER.sparse(["a dog", "a cat and a dog", "a horse"], rows)
    assert offsets.tolist() == [0, 2, 2, 3]
    assert [LABELER.synsets[i] for i in indices[:2]] == ["n02084071", "n02121620"]


def test_ancestors_are_added() -> None:
    assert "n02083346" in Labeler(ancestors=1)(["a dog"])[0]  # canine
    assert set(LABELER(["a dog"])[0]) < set(Labeler(ancestors=3)(["a dog"])[0])


def test_own_terms_win(tmp_path) -> None:
    file = tmp_path / "terms.tsv"
    file.write_text("# chest X-rays\npleural effusion\tRID34539\ncxr\tRID10345\tn02084071\ndog\tK9\n")
    own = Labeler(lexicon=file)
    assert own(["Pleural effusions in a CXR", "a dog"]) == [["RID10345", "RID34539", "n02084071"], ["K9"]]
    assert own.name("RID34539") == "RID34539"


@pytest.mark.parametrize("text", ["", "only a phrase\n", "\tlabel\n"])
def test_bad_terms_are_refused(tmp_path, text: str) -> None:
    file = tmp_path / "terms.tsv"
    file.write_text(text)
    with pytest.raises(UsageError, match="terms"):
        Labeler(lexicon=file)


def test_usage_errors() -> None:
    with pytest.raises(UsageError, match="rule"):
        Labeler("verbs")
    with pytest.raises(UsageError, match="not one caption"):
        LABELER("a dog")
    with pytest.raises(UsageError, match="int"):
        LABELER([3])
    with pytest.raises(UsageError, match="ancestors"):
        Labeler(ancestors=-1)


def test_a_pickled_labeler_labels_alike() -> None:
    again = pickle.loads(pickle.dumps(Labeler(ancestors=1)))
    assert again(["a dog"]) == Labeler(ancestors=1)(["a dog"])


def test_explain_agrees_with_the_labels() -> None:
    caption = "A man's T-shirt, hot dogs, and a photo of white kites near a fire hydrant"
    told = LABELER.explain(caption)
    assert sorted({label for word in told for label in word.labels}) == LABELER([caption])[0]
    assert all(word.why for word in told)


TEXT = st.text(max_size=80)
WORDS = st.lists(
    st.sampled_from(
        [
            "a",
            "the",
            "dog",
            "cat",
            "men",
            "hot",
            "fire",
            "hydrant",
            "photo",
            "of",
            "crane",
            "bat",
            ",",
            ".",
            "'",
            "<b>",
            "</b>",
            "http://x.y",
            "&amp;",
            "é",
            "\x00",
            "狗",
        ]
    ),
    max_size=14,
).map(" ".join)


@given(st.lists(TEXT | WORDS | st.none(), max_size=6))
@settings(max_examples=300, deadline=None)
def test_a_caption_is_labelled_alike_in_any_company(captions: list[str | None]) -> None:
    together = LABELER(captions)
    assert together == [LABELER([caption])[0] for caption in captions]
    assert all(labels == sorted(set(labels)) for labels in together)


@given(TEXT | WORDS)
@settings(max_examples=200, deadline=None)
def test_explain_agrees_for_any_text(caption: str) -> None:
    told = LABELER.explain(caption)
    assert sorted({label for word in told for label in word.labels}) == LABELER([caption])[0]


@given(TEXT)
@settings(max_examples=100, deadline=None)
def test_no_label_from_markup(text: str) -> None:
    inside = text.replace("<", "").replace(">", "")
    assert LABELER([f"<img alt='dog {inside}'>"]) == [[]]


def test_a_megabyte_and_odd_scripts() -> None:
    assert LABELER(["dog " * 250_000])[0] == ["n02084071"]
    assert LABELER(["كلب a dog كلب", "\x00\x1b[31m dog \u202e", "ｄｏｇ"]) == [["n02084071"]] * 3


def test_labels_do_not_depend_on_what_was_seen_before(monkeypatch) -> None:
    """Words that nothing knows are forgotten when there are many; that must not change a label, nor a later word."""
    from catlip.captions import phrases, wordtable

    monkeypatch.setattr(wordtable, "MAX_CACHED", 60)
    monkeypatch.setattr(phrases, "MAX_CACHED", 5)
    words = (
        "qwxz7 flurbly zorping 17 42nd tshirts dogs hot golden retrievers bike suzuki eighty watches kites bouvier des"
    )
    captions = [f"a {a} {b} near zz{i} no. {i}" for i, a in enumerate(words.split()) for b in words.split()]
    forgetful = Labeler()
    assert forgetful(captions) == LABELER(captions)
    assert forgetful(captions[::-1])[::-1] == LABELER(captions)
    assert len(forgetful._rule._words.reading) < 100


def test_foreign_captions_are_noticed() -> None:
    german = ["ein brauner Hund läuft über die grüne Wiese", "zwei Kinder spielen am Strand mit einem Ball"]
    assert LABELER.foreign(german) == 2
    assert LABELER.foreign(["a brown dog runs over the green grass", "dog", ""]) == 0
