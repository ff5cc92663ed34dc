"""Words of a text -> numbers: as a dict would give them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.labels.nouns.wordtable import WordNumbers

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=9), max_size=40)


class Dict:
    """The naive way."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}

    def add(self, word: str) -> int:
        assert word not in self.known, "a word is added once"
        self.known[word] = len(self.known)
        return self.known[word]


@given(st.lists(WORDS, max_size=4), st.sampled_from([1, 3, 18]))
@settings(max_examples=200, deadline=None)
def test_numbers_are_those_of_a_dict(texts: list[list[str]], bits: int) -> None:
    naive = Dict()
    numbers = WordNumbers(naive.add, bits)
    for words in texts:
        found = numbers.of("  ".join(words) + " ")
        assert found.tolist() == [naive.known[word] for word in words]


def test_neighbouring_words_do_not_collide_and_places_may_be_shared() -> None:
    words = [a + b + c for a in "abcdefghijklmnopqrstuvwxyz" for b in "aeiou" for c in "bcdfghjklmnpqrstvwxyz "]
    words = [f"{word.strip()}{i % 40}" for i in range(60) for word in words]
    naive = Dict()
    numbers = WordNumbers(naive.add)
    for _ in range(2):
        assert numbers.of(" ".join(words)).tolist() == [naive.known[word] for word in words]
    assert len(naive.known) == len(set(words)) > 1 << 16
