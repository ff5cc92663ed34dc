"""The bundled lexicon: the right bytes, and facts of WordNet 3.0 that are easy to check by hand."""

import pytest

from catlip.labels.wordnet import LEXICON_FILE, Lexicon, open_lexicon

# Of the uncompressed text, so that another xz does not matter. tools/build_lexicon.py makes the file.
CONTENT = "b47f28f8345b"


@pytest.fixture(scope="module")
def lexicon() -> Lexicon:
    return open_lexicon()


def test_file_is_the_one_that_was_built(lexicon: Lexicon) -> None:
    assert lexicon.hash == CONTENT
    assert LEXICON_FILE.stat().st_size <= 2_500_000


def test_size_is_that_of_wordnet_3_0(lexicon: Lexicon) -> None:
    assert len(lexicon.wnids) == 82_115
    assert len(lexicon.lemmas) == 117_798


def test_senses_come_in_wordnets_order_with_counts(lexicon: Lexicon) -> None:
    dog = lexicon.senses("dog")
    assert (dog[0].synset, dog[0].count) == ("n02084071", 42)
    assert [s.synset for s in lexicon.senses("crane") if not s.capitalised] == ["n03126707", "n02012849"]
    assert lexicon.senses("no such word") == []


def test_synset_facts(lexicon: Lexicon) -> None:
    dog = lexicon.synset("n02084071")
    assert (dog.name, dog.lexfile, dog.pictured, dog.instance) == ("dog", "animal", True, False)
    assert set(dog.parents) == {"n02083346", "n01317541"}
    assert lexicon.synset("n08932568").instance  # Paris
    with pytest.raises(KeyError):
        lexicon.synset("n00000001")


def test_ancestors_stop_at_the_level_asked_for(lexicon: Lexicon) -> None:
    assert lexicon.ancestors("n02084071", 0) == set()
    assert lexicon.ancestors("n02084071", 1) == {"n02083346", "n01317541"}
    assert "n00001740" in lexicon.ancestors("n02084071", 20)  # entity, the root
    assert "n02084071" not in lexicon.ancestors("n02084071", 20)


@pytest.mark.parametrize(
    ("plural", "singular"),
    [("dogs", "dog"), ("men", "man"), ("children", "child"), ("dresses", "dress"), ("cherries", "cherry"),
     ("geese", "goose"), ("brushes", "brush"), ("knives", "knife"), ("firemen", "fireman")],
)  # fmt: skip
def test_singulars(lexicon: Lexicon, plural: str, singular: str) -> None:
    assert lexicon.singulars(plural)[0] == singular


def test_other_readings_count_every_part_of_speech(lexicon: Lexicon) -> None:
    assert lexicon.other_readings("are")["i"] > 1000  # a form of "be"
    assert lexicon.other_readings("dog") == {"b": 2}
    assert lexicon.other_readings("bicycle")["b"] >= 0


def test_the_table_of_words_names_synsets_that_exist(lexicon: Lexicon) -> None:
    from catlip.labels.nouns.words import word_lists

    lists = word_lists()
    sections = "never sense cue not-a-phrase carrier noun plural function negation language elsewhere before after name"
    assert set(lists) == {*sections.split(), "title"}
    for section in ("sense", "cue"):
        for word, (usual, *others) in lists[section].items():
            assert word not in lists["never"], word
            assert all(lexicon.has_synset(field.split(" ")[0]) for field in (usual, *others)), word
