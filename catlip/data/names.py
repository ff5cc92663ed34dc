"""Which picture is meant: a name as one file spells it, found among the names that there are."""

from collections.abc import Iterable, Iterator, Sequence

from catlip.data.shards import IMAGE_EXTENSIONS
from catlip.errors import UsageError

SEVERAL = -1


class Names:
    """Names of pictures, with their folders. A name finds the very same one, else the only one that it fits.

    `v1/1.jpg` fits `train/v1/1.jpg` (more folders before it), `1.jpg` (fewer) and `v1/1` (a key, which has no ending),
    but neither `v2/1.jpg` nor `v1/1.png` nor `v1/1.crop.jpg`: a namesake is another picture.
    """

    def __init__(self, names: Iterable[str], where: str) -> None:
        """where: what holds the names, for messages."""
        self.names, self.where = list(names), where
        self._whole = _numbered((_cleaned(name), number) for number, name in enumerate(self.names))
        self._tails: dict[str, int] | None = None  # made when a name is not there as it is
        self._stems: Names | None = None

    def find(self, name: str) -> int | None:
        """The number of the one that is meant; None if there is none. Raises UsageError if it could be several."""
        number = self._find(_cleaned(name))
        if number is None:
            stem = without_ending(name)
            if stem == name:  # a key: the names without their endings
                self._stems = self._stems or Names(map(without_ending, self.names), self.where)
                number = self._stems._find(_cleaned(stem))
            else:  # perhaps the names are keys
                number = self._find(_cleaned(stem))
        if number == SEVERAL:
            several = dict.fromkeys(known for known in self.names if _alike(known, name))
            could = " or ".join(map(repr, list(several)[:3])) if len(several) > 1 else "several of this name"
            raise UsageError(f"{self.where}: {name!r} could be {could}; names have to say which, by their folders")
        return number

    def find_all(self, names: Sequence[str]) -> list[int | None]:
        """`find` of each. Raises UsageError also where two names would be the same picture."""
        meant: dict[int, str] = {}
        found = [self.find(name) for name in names]
        for name, number in zip(names, found, strict=True):
            if number is not None and (other := meant.setdefault(number, name)) != name:
                both = f"{other!r} and {name!r} would both be {self.names[number]!r}"
                raise UsageError(f"{self.where}: {both}; names have to say which, by their folders")
        return found

    def _find(self, name: str) -> int | None:
        found = self._whole.get(name)
        if found is not None:
            return found
        if self._tails is None:
            cleaned = map(_cleaned, self.names)
            self._tails = _numbered((tail, number) for number, known in enumerate(cleaned) for tail in _tails(known))
        fitting = {self._tails.get(name), *(self._whole.get(tail) for tail in _tails(name))} - {None}
        return SEVERAL if len(fitting) > 1 else next(iter(fitting), None)


def without_ending(name: str) -> str:
    """`v1/1.crop.jpg` -> `v1/1.crop`; what does not end as pictures do stays as it is."""
    stem, _, ending = name.rpartition(".")
    return stem if ending.lower() in IMAGE_EXTENSIONS and stem else name


def _cleaned(name: str) -> str:
    """Without what makes no difference: `./a//1.jpg` -> `a/1.jpg`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _tails(name: str) -> Iterator[str]:
    """`a/b/1.jpg` -> `b/1.jpg`, `1.jpg`."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def _alike(one: str, other: str) -> bool:
    """One is the other with more folders before it, or is the same; endings aside."""
    one, other = (f"/{_cleaned(without_ending(name))}" for name in (one, other))
    return one.endswith(other) or other.endswith(one)


def _numbered(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, number in pairs:
        if found.setdefault(name, number) != number:
            found[name] = SEVERAL
    return found
