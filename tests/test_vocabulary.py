"""Counting, pruning, saving; and the official pickle, which comes from strangers."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.vocabulary import Vocabulary

LABELER = Labeler()
DOG, CAT, HORSE = "n02084071", "n02121620", "n02374451"


def vocabulary(**counts: int) -> Vocabulary:
    synsets = {"dog": DOG, "cat": CAT, "horse": HORSE}
    return Vocabulary.from_counts(
        {synsets[k]: n for k, n in counts.items()}, LABELER, samples=100, captions=200, source="some/{0..1}.tar b=c"
    )


def test_a_corpus_is_labelled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    animals = vocabulary(dog=3, cat=2)
    samples = [["a dog", "a cat and a dog"], [], ["a horse"], ["a cat"], ["nothing"]]
    for at_once in (1, 2, 3, 5, 100):
        monkeypatch.setattr("catlip.labels.vocabulary.AT_ONCE", at_once)
        labels, offsets = animals.sparse(iter(samples))
        assert labels.tolist() == [0, 1, 1]
        assert offsets.tolist() == [0, 2, 2, 2, 3, 3]
    assert [found.tolist() for found in animals.sparse([])] == [[], [0]]


def test_order_is_by_count_then_synset() -> None:
    assert vocabulary(horse=3, cat=7, dog=7).synsets == [DOG, CAT, HORSE]


def test_save_and_load_give_the_same(tmp_path: Path) -> None:
    one = vocabulary(dog=9, cat=4)
    one.save(tmp_path / "v.tsv")
    assert Vocabulary.load(tmp_path / "v.tsv") == one
    assert (tmp_path / "v.tsv").read_text().splitlines()[1] == f"0\t{DOG}\tdog\t9"


def test_weights_are_a_column_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "v.tsv"
    vocabulary(dog=9, cat=4, horse=2).save(path)
    plain = Vocabulary.load(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], f"{lines[2]}\t2.5", *lines[3:]]) + "\n")
    weighted = Vocabulary.load(path)
    assert (plain.weights, weighted.weights) == ([], [1, 2.5, 1])
    assert weighted.hash != plain.hash
    assert weighted.prune(max_size=2).weights == [1, 2.5]
    weighted.save(path)
    assert Vocabulary.load(path) == weighted
    for wrong in ("-1", "nan", "1e9", "1001", "2\t3"):
        path.write_text("\n".join([*lines[:2], f"{lines[2]}\t{wrong}"]) + "\n")
        with pytest.raises(UsageError, match=r"line 3: expected .* a weight from 0 to 1000"):
            Vocabulary.load(path)


def test_pruning() -> None:
    assert vocabulary(dog=9, cat=4, horse=1).prune(min_count=4).synsets == [DOG, CAT]
    assert vocabulary(dog=9, cat=4, horse=1).prune(max_size=1).synsets == [DOG]
    with pytest.raises(UsageError, match=r"`min_count` 10.*most frequent occurs 9 times"):
        vocabulary(dog=9).prune(min_count=10)
    with pytest.raises(UsageError, match="most frequent occurs 0 times"):
        vocabulary()


@given(st.dictionaries(st.sampled_from([DOG, CAT, HORSE]), st.integers(1, 50)), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_pruning_keeps_exactly_the_frequent(counts: dict[str, int], min_count: int) -> None:
    wanted = {s for s, n in counts.items() if n >= min_count}
    if not wanted:
        return
    kept = Vocabulary.from_counts(counts, LABELER, samples=9, captions=9, source="", min_count=min_count)
    assert set(kept.synsets) == wanted
    assert kept.counts == sorted(kept.counts, reverse=True)


def test_merging_adds_up_and_minds_the_rule() -> None:
    both = Vocabulary.merge([vocabulary(dog=1, cat=5), vocabulary(dog=7, horse=2)])
    assert dict(zip(both.synsets, both.counts, strict=True)) == {DOG: 8, CAT: 5, HORSE: 2}
    assert (both.samples, both.captions) == (200, 400)
    other = vocabulary(dog=1)
    other.rule = "corenet"
    with pytest.raises(UsageError, match="different rule"):
        Vocabulary.merge([vocabulary(dog=1), other])


def test_comparing() -> None:
    found = vocabulary(dog=6, cat=4).compare(vocabulary(dog=1, horse=1))
    assert found == {"shared": [DOG], "only_here": [CAT], "only_there": [HORSE], "uses_shared": 0.6}


def test_encode() -> None:
    assert vocabulary(dog=9, cat=4).encode([CAT, HORSE, DOG, DOG]) == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is no vocabulary"),
        ("hello\n", "is no vocabulary"),
        ("# catlip vocabulary; rule=nouns\n", "holds no classes"),
        ("# catlip vocabulary; rule=nouns\n0\tn1\tx\n", "line 2"),
        ("# catlip vocabulary; rule=nouns\n1\tn1\tx\t3\n", "line 2"),
        ("# catlip vocabulary; rule=nouns\n0\tn1\tx\tmany\n", "line 2"),
        ("# catlip vocabulary; rule=nouns\n0\tn1\tx\t²\n", "line 2"),
        ("# catlip vocabulary; rule=nouns\n0\t\tx\t3\n", "line 2"),
        ("# catlip vocabulary; rule=nouns\n0\tn1\tx\t3\n\n", "line 3"),
        ("# catlip vocabulary; samples=many\n0\tn1\tx\t3\n", "line 1: 'samples=many' is no number"),
        ("# catlip vocabulary; rule=nouns ancest\n0\tn1\tx\t3\n", "line 1: unknown 'ancest'"),
        ("# catlip vocabulary; rule=nouns\n0\tn1\tx\t3\n1\tn1\tx\t3\n", "twice"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "v.tsv").write_text(text)
    with pytest.raises(UsageError, match=says):
        Vocabulary.load(tmp_path / "v.tsv")


def test_a_file_in_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "v.tsv").write_text("# catlip vocabulary; rule=nouns\n0\tn1\tcafé\t3\n", encoding="cp1252")
    with pytest.raises(UsageError, match="is not in UTF-8"):
        Vocabulary.load(tmp_path / "v.tsv")


def test_a_file_that_an_editor_saved_again(tmp_path: Path) -> None:
    one = vocabulary(dog=9, cat=4)
    one.save(tmp_path / "v.tsv")
    text = (tmp_path / "v.tsv").read_text()
    (tmp_path / "v.tsv").write_bytes(text.replace("\n", "\r\n").encode("utf-8-sig"))
    assert Vocabulary.load(tmp_path / "v.tsv") == one


def test_the_path_of_the_terms_survives(tmp_path: Path) -> None:
    for name in (
        "my terms.tsv",
        "a  b\tc\nd",
        " source=x terms_hash=y ",
        "50%25.tsv",
        "größe.tsv",
        "\udcff.tsv",
        "a=b",
    ):
        one = replace(vocabulary(dog=1), terms=name, terms_hash="0123456789ab", source="\udcff.csv")
        one.save(tmp_path / "v.tsv")
        again = Vocabulary.load(tmp_path / "v.tsv")
        assert (again.terms, again.terms_hash, again.hash) == (name, "0123456789ab", one.hash)


def test_edited_terms_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "my terms.tsv"
    file.write_text("dog\tK9\n")
    Vocabulary.from_counts({"K9": 3}, Labeler(lexicon=file), samples=3, captions=3, source="").save(tmp_path / "v.tsv")
    one = Vocabulary.load(tmp_path / "v.tsv")
    file.write_bytes(b"\xef\xbb\xbf# a comment\r\ndog\tK9\r\n")
    one.labeler()  # it says the same
    file.write_text("dog\tK9\ncat\tK8\n")
    with pytest.raises(UsageError, match=r"terms\.tsv, which now says others"):
        one.labeler()
    other = replace(one, terms_hash=Labeler(lexicon=file).terms_hash)
    assert one.hash != other.hash
    with pytest.raises(UsageError, match="different terms_hash"):
        Vocabulary.merge([one, other])


def test_older_files_still_load(tmp_path: Path) -> None:
    """The path as it is, and no hash of what the file said."""
    (tmp_path / "my terms.tsv").write_text("dog\tK9\n")
    head = f"# catlip vocabulary; rule=nouns ancestors=0 lexicon={LABELER.wordnet.hash} samples=3 captions=4"
    for terms in (str(tmp_path / "my terms.tsv"), ""):
        (tmp_path / "v.tsv").write_text(f"{head} terms={terms} source=a b.csv\n0\tK9\tK9\t3\n")
        old = Vocabulary.load(tmp_path / "v.tsv")
        assert (old.terms, old.terms_hash, old.source, old.captions) == (terms or None, "", "a b.csv", 4)
        assert old.hash == "f740a3699d08"
        assert (old.version, old.canonical, old.heads) == (1, False, False)
        with pytest.raises(UsageError, match="version 1 of the rule 'nouns'"):
            old.labeler()


def test_another_lexicon_is_refused() -> None:
    old = vocabulary(dog=1)
    old.lexicon = "0123456789ab"
    with pytest.raises(UsageError, match="lexicon 0123456789ab"):
        old.labeler()


def test_the_official_pickle(tmp_path: Path) -> None:
    file = tmp_path / "v.pkl"
    file.write_bytes(pickle.dumps({"n2084071": 900, "n5928118": 500, "n2121620": 7}))
    found = Vocabulary.load_corenet(file)
    assert found.synsets == [DOG, "n05928118", CAT]
    assert found.counts == [900, 500, 7]
    assert found.rule == "corenet"
    assert len(Vocabulary.load_corenet(file, max_size=2)) == 2


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for thing in (_Malicious(tmp_path / "owned"), {"n2084071": _Malicious(tmp_path / "owned")}):
            (tmp_path / "v.pkl").write_bytes(pickle.dumps(thing, protocol))
            with pytest.raises(UsageError, match="mkdir"):
                Vocabulary.load_corenet(tmp_path / "v.pkl")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("thing", [[1], {"n2084071": "many"}, {1: 2}, {}, {"n99999999": 3}, {"n2084071": 2.5}])
def test_other_pickles_are_refused(tmp_path: Path, thing: object) -> None:
    (tmp_path / "v.pkl").write_bytes(pickle.dumps(thing))
    with pytest.raises(UsageError):
        Vocabulary.load_corenet(tmp_path / "v.pkl")
    (tmp_path / "v.pkl").write_bytes(b"no pickle")
    with pytest.raises(UsageError, match="official vocabulary"):
        Vocabulary.load_corenet(tmp_path / "v.pkl")
