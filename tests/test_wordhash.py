"""Words of a text -> numbers: as a dict would give them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.labels.wordhash import WordNumbers

WORDS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters=" "), min_size=1, max_size=9), max_size=40)


class Dict:
    """The naive way."""

    def __init__(self, limit: int) -> None:
        self.limit, self.known = limit, {}

    def judge(self, word: str) -> tuple[int, bool]:
        assert word not in self.known, "a word is judged once"
        if len(self.known) >= self.limit:
            return -7, False
        self.known[word] = len(self.known)
        return self.known[word], True


@given(st.lists(WORDS, max_size=4))
@settings(max_examples=200, deadline=None)
def test_numbers_are_those_of_a_dict(texts: list[list[str]]) -> None:
    naive = Dict(10**9)
    numbers = WordNumbers(naive.judge)
    for words in texts:
        found = numbers.of("  ".join(words) + " ")
        assert found.tolist() == [naive.known[word] for word in words]


def test_neighbouring_words_do_not_collide_and_the_table_grows() -> None:
    words = [a + b + c for a in "abcdefghijklmnopqrstuvwxyz" for b in "aeiou" for c in "bcdfghjklmnpqrstvwxyz "]
    words = [f"{word.strip()}{i % 40}" for i in range(60) for word in words]
    naive = Dict(10**9)
    numbers = WordNumbers(naive.judge)
    for _ in range(2):
        assert numbers.of(" ".join(words)).tolist() == [naive.known[word] for word in words]
    assert len(naive.known) == len(set(words)) > 1 << 16


def test_words_that_are_not_remembered() -> None:
    naive = Dict(2)
    assert WordNumbers(naive.judge).of("a b c a c").tolist() == [0, 1, -7, 0, -7]
