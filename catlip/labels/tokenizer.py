"""Captions -> token ids, byte-pair encoded; for the objectives that read the caption itself. Needs no torch.

Two sources of merges, one way of applying them: CLIP's own, where open_clip is installed, so that text towers can be
exchanged with it, or merges trained on the user's captions, the default: a small corpus has no use for 49,408 tokens,
and nothing has to be downloaded. What follows from CLIP (arXiv 2103.00020, section 2.4) holds for both: text is
repaired, lower-cased and split as there, the padding is 0, BOS is the last id but one and EOS the last, so that EOS is
at `tokens.argmax(1)`.

A trained vocabulary has no token 0 but the padding. In CLIP's, 0 is also "!" inside a run of punctuation; whoever
takes every 0 for padding, as open_clip does, loses that.
"""

import gzip
import html
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ftfy
import numpy as np

from catlip.atomic import write_text
from catlip.errors import UsageError
from catlip.labels.cleaning import MAX_CHARACTERS, as_text

FILE = "tokenizer.json"  # its name in a run folder
PAD, BOS, EOS = "<pad>", "<start_of_text>", "<end_of_text>"
END_OF_WORD = "</w>"
# Contractions, runs of letters, single digits, runs of anything else; white space only separates.
_PIECES = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
_CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
_CLIP_SIZE = 49408
_PLAIN = re.compile(r"[ -%'-~]*")  # printable ASCII without "&": nothing that ftfy or html.unescape would touch


@dataclass(kw_only=True, slots=True)
class TokenizerConfig:
    """Settings of the tokenizer, for objectives that read captions themselves."""

    tokenizer: str = "train"  # train: merges from these captions; clip: CLIP's own; or the path of a tokenizer.json
    tokens: int = 16384  # how many to train; fewer if the captions have no more pairs that occur twice
    context: int = 77  # longest caption in tokens, with BOS and EOS; of a longer one the end falls away


def make_tokenizer(cfg: TokenizerConfig, captions: Iterable[str]) -> "Tokenizer":
    """captions: read only to train. Raises UsageError as Tokenizer's three ways of making one do."""
    if cfg.tokenizer == "train":
        return Tokenizer.train(captions, cfg.tokens, cfg.context)
    if cfg.tokenizer == "clip":
        return Tokenizer.clip(cfg.context)
    return Tokenizer.load(Path(cfg.tokenizer), cfg.context)


class Tokenizer:
    """tokenizer(captions) -> int64 [B, context], padded with 0. Made by `train`, `clip` or `load`.

    >>> tokenizer = Tokenizer.train(["a dog", "a dog and a cat"], size=520, context=8)
    >>> tokenizer(["a dog", ""]).shape
    (2, 8)
    >>> tokenizer.decode(tokenizer(["A  dog"])[0])
    'a dog'

    size: number of tokens. bos, eos: ids of the two marks.
    """

    def __init__(self, bpe: Any, context: int = 77) -> None:
        """bpe: a tokenizers.Tokenizer. Raises UsageError for a context that has no room for a word."""
        if context < 3:
            raise UsageError(f"`context` {context}: BOS, EOS and one word need 3")
        self._bpe, self.context = bpe, context
        self.size: int = bpe.get_vocab_size()
        self.bos, self.eos = self.size - 2, self.size - 1
        if (bpe.token_to_id(BOS), bpe.token_to_id(EOS)) != (self.bos, self.eos):
            raise UsageError(f"this tokenizer does not end with {BOS} and {EOS}, so it is none of catlip's")

    def __call__(self, captions: Sequence[str]) -> np.ndarray:
        """An empty caption is BOS and EOS alone; of one that is too long the end falls away, but not EOS."""
        tokens = np.zeros((len(captions), self.context), np.int64)
        for row, caption in zip(tokens, captions, strict=True):
            ids = self.encode(caption)[: self.context - 2]
            row[: len(ids) + 2] = [self.bos, *ids, self.eos]
        return tokens

    def encode(self, caption: str) -> list[int]:
        """All tokens of a caption, without BOS and EOS, which it cannot contain: they are split like any other text."""
        return self._bpe.encode(clean(caption), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of tokens, without BOS, EOS and padding; words are separated by one space."""
        kept = [i for i in ids if i < self.bos and self._bpe.id_to_token(i) != PAD]
        return self._bpe.decode(kept).replace(END_OF_WORD, " ").strip()

    def save(self, path: Path) -> None:
        """Write tokenizer.json, in the format of Hugging Face's tokenizers; it expects text as `clean` returns it."""
        write_text(path, self._bpe.to_str(pretty=True))

    @classmethod
    def load(cls, path: Path, context: int = 77) -> "Tokenizer":
        """Raises UsageError for a file that is missing or no tokenizer."""
        from tokenizers import Tokenizer as Bpe

        if not path.is_file():
            raise UsageError(f"no such tokenizer: {path}")
        try:
            bpe = Bpe.from_file(str(path))
        except Exception as error:  # the Rust side raises plain Exception
            raise UsageError(f"{path} is no tokenizer: {error}") from None
        return cls(bpe, context)

    @classmethod
    def train(cls, captions: Iterable[str], size: int = 16384, context: int = 77) -> "Tokenizer":
        """Merges from captions, the most frequent pair first; the same captions in any order give the same merges.

        size: tokens in all; fewer if the captions have no more pairs that occur twice. Raises UsageError for less
        than bytes, BOS and EOS need.
        """
        from tokenizers import Tokenizer as Bpe
        from tokenizers import models, pre_tokenizers, trainers

        least = 1 + 2 * 256 + 2  # padding, bytes, bytes that end a word, BOS and EOS
        if size < least:
            raise UsageError(f"`tokens` {size}: padding, bytes, BOS and EOS alone are {least}")
        bpe = _pipeline(Bpe(models.BPE(end_of_word_suffix=END_OF_WORD)))
        trainer = trainers.BpeTrainer(
            vocab_size=size - least + 2 * 256,
            min_frequency=2,
            show_progress=False,
            end_of_word_suffix=END_OF_WORD,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        bpe.train_from_iterator(map(clean, captions), trainer)
        # The trainer knows only the endings that occurred and puts BOS and EOS first; so its merges alone are kept.
        learned = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
        return cls(_assemble([PAD], learned[: size - least]), context)

    @classmethod
    def clip(cls, context: int = 77) -> "Tokenizer":
        """CLIP's 49,408 tokens. Raises UsageError where open_clip, which brings the merges, is not installed."""
        found = find_spec("open_clip")
        path = Path(found.origin).parent / _CLIP_MERGES if found and found.origin else None
        if path is None or not path.is_file():
            raise UsageError("CLIP's tokens come with open_clip: pip install open_clip_torch, or train a tokenizer")
        # A comment, the merges, and then some that CLIP never used.
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
        merges = [tuple(line.split()) for line in lines[1 : _CLIP_SIZE - 2 * 256 - 2 + 1]]
        return cls(_assemble([], merges), context)


def clean(caption: Any) -> str:
    """Text as CLIP's tokenizer reads it: repaired, without HTML entities, one space between words, lower case."""
    text = as_text(caption)[:MAX_CHARACTERS]
    if not _PLAIN.fullmatch(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


def _assemble(padding: list[str], merges: Sequence[tuple[str, ...]]) -> Any:
    """Ids in the order of CLIP's: bytes in the order of GPT-2's table, bytes that end a word, merges, BOS, EOS."""
    from tokenizers import Tokenizer as Bpe
    from tokenizers import models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = (byte + END_OF_WORD for byte in alphabet)
    joined = dict.fromkeys("".join(pair) for pair in merges)  # two merges may make the same token
    ids = {token: i for i, token in enumerate([*padding, *alphabet, *endings, *joined, BOS, EOS])}
    return _pipeline(Bpe(models.BPE(ids, list(merges), end_of_word_suffix=END_OF_WORD)))  # type: ignore[arg-type]


def _pipeline(bpe: Any) -> Any:
    from tokenizers import Regex, decoders, pre_tokenizers

    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    return bpe
