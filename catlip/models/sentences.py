"""A frozen sentence encoder as the text side: captions -> vectors that no gradient changes, centred and whitened.

The encoder itself runs once over the captions (data/sentences.py keeps what it said) and again when somebody asks by
words; a training step only reads. Whitening: sentence embeddings lie in a narrow cone, where all cosines are alike;
with mean 0 and covariance 1 every direction counts.
"""

import hashlib
import json
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from catlip.config import configure
from catlip.data.cache import cache_folder
from catlip.data.dataset import Dataset
from catlip.data.open import open_dataset
from catlip.data.sentences import (
    CARD,
    Encode,
    SentenceConfig,
    SentenceStore,
    fill,
    keys_of,
    text_of,
    unit_vectors,
    whitening,
)
from catlip.errors import UsageError, first_line
from catlip.models.model_folders import HUB, download
from catlip.notices import say

FILES = ("*.json", "*.txt", "*.safetensors", "*/config.json", "*/*.safetensors")  # of a model; no pickles, no code
PROBE = ["a photo of a dog", "two people in front of a house", "the sea at night"]  # tells functions apart


class Sentences:
    """Captions -> float32 [n, width], unit vectors of a frozen encoder. What is kept is read, the rest is computed."""

    def __init__(self, encoder: Any, device: str = "cpu") -> None:
        """encoder: as `SentenceConfig.sentence_encoder`. Nothing is loaded yet. Raises UsageError."""
        if not encoder:
            raise UsageError("`sentence_encoder` is missing: a folder, an installed package or the name of a model")
        self.encoder, self.device = encoder, device
        self.store: SentenceStore | None = None
        self.mean, self.matrix = np.zeros(0, np.float32), np.zeros((0, 0), np.float32)  # of the whitening
        self._encode: Encode | None = None
        if isinstance(encoder, str | Path) and (Path(encoder) / CARD).is_file():
            self.store = SentenceStore(Path(encoder))
            self.name, self.fingerprint = self.store.encoder, self.store.fingerprint
        elif isinstance(encoder, str | Path):
            self.name = str(encoder)
            self.fingerprint = _fingerprint(model_folder(self.name))
        else:
            function = getattr(encoder, "encode", encoder)
            if not callable(function):
                raise UsageError(
                    f"`sentence_encoder` {encoder!r:.60} is neither a path, a name nor a function of texts"
                )
            self._encode = function
            named = getattr(encoder, "name", None) or getattr(encoder, "__qualname__", type(encoder).__qualname__)
            self.name = str(named)
            said = unit_vectors(function(PROBE), len(PROBE)).round(2) + 0.0  # no minus zeros
            self.fingerprint = hashlib.sha256(f"{self.name} {said.shape}".encode() + said.tobytes()).hexdigest()[:16]

    @classmethod
    def of_card(cls, card: dict[str, Any], encoder: Any = None) -> "Sentences":
        """The encoder that a run was trained with. encoder: where it is, if not where it was.

        Raises UsageError if it is not there, or another one.
        """
        kept = (Path(card["folder"]) / CARD).is_file()
        found = cls(encoder or (card["folder"] if kept else card["encoder"]))
        if found.fingerprint != card["fingerprint"]:
            raise UsageError(f"`sentence_encoder` {found.name} is not the one of this run, {card['encoder']}")
        return found

    @property
    def card(self) -> dict[str, Any]:
        """What `of_card` finds it again by."""
        folder = "" if self.store is None else str(self.store.folder.absolute())
        return {"encoder": self.name, "fingerprint": self.fingerprint, "folder": folder}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sentences":
        return self  # frozen: the same for the running average of the weights

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 [n, width] by the encoder itself. Raises UsageError where it cannot be loaded."""
        if self._encode is None:
            folder = model_folder(self.name)
            if _fingerprint(folder) != self.fingerprint:
                raise UsageError(
                    f"`sentence_encoder` {folder} is not the {self.name} that the captions were embedded by"
                )
            self._encode = load_encoder(folder, self.device)
        return unit_vectors(self._encode(texts), len(texts))

    def __call__(self, captions: list[str]) -> np.ndarray:
        """float32 [n, width]; an empty caption has zeros."""
        texts = [text_of(caption) for caption in captions]
        vectors, known = (None, np.zeros(len(texts), bool)) if self.store is None else self.store.find(keys_of(texts))
        asked = [i for i, text in enumerate(texts) if text and not known[i]]
        new = self.encode([texts[i] for i in asked]) if asked else None
        if vectors is None:
            vectors = np.zeros((len(texts), len(self.mean) if new is None else new.shape[1]), np.float32)
        if new is not None:
            vectors[asked] = new
        return vectors

    def keep(self, dataset: Dataset, folder: Path | None = None) -> SentenceStore:
        """Embed all captions of a dataset that are not kept yet. folder: where; default: in the cache."""
        if self.store is None:
            folder = folder or cache_folder() / "sentences" / self.fingerprint
            if not (folder / CARD).is_file():
                SentenceStore.create(folder, self.name, self.fingerprint, self.encode(PROBE[:1]).shape[1])
            found = SentenceStore(folder)
            if found.fingerprint != self.fingerprint:
                raise UsageError(f"{folder} holds embeddings of another encoder, {found.encoder}")
            self.store = found
        if made := fill(self.store, dataset.captions(), self.encode):
            say(f"{self.store.folder}: {len(self.store):,} captions, {made:,} of them new, by {self.name}")
        return self.store

    @classmethod
    def of_run(cls, cfg: SentenceConfig, dataset: Dataset, device: str) -> "Prepared":
        """Embed what is missing, and estimate the whitening. Raises UsageError."""
        found = cls(cfg.sentence_encoder, device)
        if cfg.whiten < 0:
            raise UsageError(f"`whiten` {cfg.whiten}: how many components are kept, or 0 for no whitening")
        store = found.keep(dataset)
        return Prepared(store.folder, *whitening(store, dataset.captions(), len(dataset), cfg))


@dataclass(frozen=True, slots=True)
class Prepared:
    """What the first process tells the others."""

    folder: Path
    mean: np.ndarray
    matrix: np.ndarray

    def opened(self, encoder: Any) -> Sentences:
        """The sentences of a run on this process. Raises UsageError where the folder cannot be seen from here."""
        found = Sentences(encoder) if not isinstance(encoder, str | Path) else Sentences(self.folder)
        found.store, found.mean, found.matrix = SentenceStore(self.folder), self.mean, self.matrix
        return found


class FrozenText(nn.Module):
    """Embeddings float32 [B, E] -> [B, K], centred and whitened; a row of zeros, which is no caption, stays."""

    def __init__(self, mean: Tensor, matrix: Tensor) -> None:
        """mean [E], matrix [E, K]."""
        super().__init__()
        self.mean: Tensor
        self.matrix: Tensor
        self.register_buffer("mean", mean.clone())
        self.register_buffer("matrix", matrix.clone())
        self.width = matrix.shape[1]

    def forward(self, sentences: Tensor) -> Tensor:
        with torch.autocast(sentences.device.type, enabled=False):
            return ((sentences.float() - self.mean) @ self.matrix) * sentences.any(1, keepdim=True)


def model_folder(name: str) -> Path:
    """Where a sentence encoder lies: a folder, one inside an installed package, or the Hub's. Raises UsageError."""
    if Path(name).is_dir():
        return Path(name)
    module = name.replace("-", "_").replace(".", "_")
    found = find_spec(module) if module.isidentifier() else None
    for place in found.submodule_search_locations or [] if found else []:
        for folder in (Path(place), *sorted(path for path in Path(place).iterdir() if path.is_dir())):
            if (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file():
                return folder
    if name.startswith(("/", ".", "~")) or name.count("/") > 1 or not name:
        raise UsageError(f"`sentence_encoder` {name}: no such folder")
    repo = name.removeprefix(HUB)
    return download(f"{HUB}{repo if '/' in repo else f'sentence-transformers/{repo}'}", FILES)


def _fingerprint(folder: Path) -> str:
    """Of everything that decides an embedding: weights, tokenizer, pooling."""
    found = hashlib.sha256()
    for path in sorted(path for pattern in FILES for path in folder.glob(pattern)):
        if path.name not in ("README.md", "data_config.json"):
            with path.open("rb") as file:
                found.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    return found.hexdigest()[:16]


def load_encoder(folder: Path, device: str = "cpu") -> Encode:
    """The encoder of a folder as a function of texts. Code and pickles that the folder may hold are not run.

    Raises UsageError for a folder that is none, or without sentence-transformers.
    """
    if (modules := folder / "modules.json").is_file():
        try:
            kinds = [str(module["type"]) for module in json.loads(modules.read_text(encoding="utf-8"))]
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UsageError(f"{modules} cannot be read: {first_line(error)}") from None
        if strange := [kind for kind in kinds if not kind.startswith("sentence_transformers.")]:
            raise UsageError(f"`sentence_encoder` {folder} wants code of its own, {strange[0]}, which is not run")
    try:
        from sentence_transformers import SentenceTransformer  # pyright: ignore[reportMissingImports]
        from transformers.utils import logging  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UsageError(
            "`sentence_encoder`: sentence-transformers loads the model: pip install 'catlip[sentences]', or give a "
            "folder that `catlip sentences` made"
        ) from None
    logging.disable_progress_bar()
    try:
        model = SentenceTransformer(
            str(folder), device=device, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except Exception as error:  # whatever transformers makes of a stranger's files
        raise UsageError(f"`sentence_encoder` {folder} cannot be loaded: {first_line(error)}") from None

    def encode(texts: list[str]) -> Any:
        return model.encode(texts, batch_size=64, show_progress_bar=False, convert_to_numpy=True)

    return encode


@dataclass(kw_only=True, slots=True)
class SentencesConfig:
    """Settings of `catlip sentences`."""

    data: str  # captioned pictures, as `catlip pretrain` takes them
    out: str  # folder for the embeddings; the same command again goes on, other data adds to it
    sentence_encoder: str  # a folder in Hugging Face's layout, an installed package that carries one, a Hub name
    image_col: str | None = None
    text_col: str | None = None
    device: str = "auto"


def sentences(
    data: Any = None, out: str | Path | None = None, *, config: SentencesConfig | None = None, **settings: Any
) -> Path:
    """Embed all captions of a dataset into a folder, which `sentence_encoder` then takes; the folder.

    What is there already is not made again. Raises UsageError for an encoder that cannot be loaded, and for a folder
    that another one has written.
    """
    cfg = configure(SentencesConfig, config, data=data, out=None if out is None else str(out), **settings)
    dataset = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
    device = cfg.device if cfg.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return Sentences(cfg.sentence_encoder, device).keep(dataset, Path(cfg.out)).folder
