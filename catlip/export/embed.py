"""Images -> vectors, in a Parquet file or in memory. The verb `embed`."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from catlip.atomic import whole
from catlip.config import configure
from catlip.data.images import Unreadable, left_out
from catlip.data.open import open_images
from catlip.errors import UsageError
from catlip.evaluation.features import decoded, open_encoder
from catlip.models.encoder import Encoder
from catlip.training.distributed import one_device


@dataclass(kw_only=True, slots=True)
class EmbedConfig:
    """Settings of `catlip embed`."""

    run: str  # run folder, model folder, or timm:NAME; in Python also an Encoder or a Run
    images: str  # a folder, a picture, tars, or a table of paths; in Python also any dataset or a list of images
    out: str = "emb.parquet"  # new file
    tokens: bool = False  # patch tokens, float16 [N, D] a picture, instead of one float32 [D]
    image_size: int = 0  # pixels; 0: the encoder's own
    batch_size: int = 64
    device: str = "auto"


@dataclass(kw_only=True, slots=True)
class EmbedResult:
    """What was written."""

    out: str  # Parquet file with the columns key and embedding
    images: int
    shape: tuple[int, ...]  # of an embedding: (D,), or (N, D) for patch tokens
    unreadable: int = 0  # images that were left out

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.out}: {self.images:,} pictures, {' x '.join(map(str, self.shape))} numbers each"


def embed(
    encoder: Any = None,
    images: Any = None,
    out: str | Path | None = None,
    *,
    config: EmbedConfig | None = None,
    **settings: Any,
) -> EmbedResult | pa.Table:
    """The columns key and embedding, as a new Parquet file `out`, or as a table in memory if there is no `out`.

    encoder: an Encoder, a Run, or where one lies. images: see `catlip.open`; also a list of paths, PIL images or uint8
    arrays [h, w, 3]. settings: fields of EmbedConfig. What the numbers are is said in the table's metadata.

    Unreadable images are left out, counted and named. Raises UsageError if they are more than 1 %.

    >>> encoder = Encoder.create("test_resnet", image_size=64)
    >>> table = embed(encoder, [np.zeros((80, 60, 3), np.uint8)])
    >>> len(table["embedding"][0]) == encoder.width
    True
    """
    in_memory = out is None and config is None
    cfg = configure(EmbedConfig, config, run=encoder, images=images, out=out, **settings)
    path = Path(cfg.out)
    if path.exists() and not in_memory:
        raise UsageError(f"`out` {path} exists already; choose another file")
    if cfg.batch_size < 1:
        raise UsageError("`batch_size` is a positive number")
    unreadable = Unreadable()
    tables = _tables(cfg, unreadable)
    if in_memory:
        table = pa.concat_tables(tables)
        left_out(images=unreadable)
        return table
    path.parent.mkdir(parents=True, exist_ok=True)
    first = next(tables)
    written = len(first)
    with whole(path) as part, pq.ParquetWriter(part, first.schema, compression="zstd") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
            written += len(table)
    left_out(images=unreadable)
    shape = json.loads(first.schema.metadata[b"shape"])
    return EmbedResult(out=str(path), images=written, shape=tuple(shape), unreadable=len(unreadable.reasons))


def _tables(cfg: EmbedConfig, unreadable: Unreadable) -> Iterator[pa.Table]:
    """A table for each batch. Raises UsageError at the end if more than 1 % cannot be read."""
    encoder, device = open_encoder(cfg.run, cfg.image_size), one_device(cfg.device)
    dataset = open_images(cfg.images)
    encoder.to(device).eval()
    everything = range(len(dataset))
    for _, samples, pixels in decoded(dataset, everything, encoder.pixels, unreadable, batch_size=cfg.batch_size):
        vectors = _vectors(encoder, encoder.normalize(pixels.to(device)), cfg.tokens)
        yield _table([sample.key for sample in samples], vectors, _facts(encoder, cfg.tokens, vectors.shape[1:]))


@torch.no_grad()
def _vectors(encoder: Encoder, x: Tensor, tokens: bool) -> np.ndarray[Any, Any]:
    return encoder.tokens(x).half().cpu().numpy() if tokens else encoder.pooled(x).float().cpu().numpy()


def _table(keys: list[str], vectors: np.ndarray[Any, Any], facts: dict[str, str]) -> pa.Table:
    """The vectors [B, ..., D] as nested lists of fixed size, which readers hand back as arrays of that shape."""
    column: Any = pa.array(vectors.reshape(-1))
    for length in reversed(vectors.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return pa.table({"key": keys, "embedding": column}).replace_schema_metadata(facts)


def _facts(encoder: Encoder, tokens: bool, shape: tuple[int, ...]) -> dict[str, str]:
    return {
        "encoder": encoder.name,
        "architecture": encoder.architecture,
        "kind": "tokens" if tokens else "pooled",
        "shape": json.dumps(shape),
        "image_size": str(encoder.image_size),
        "mean": json.dumps(encoder.mean.flatten().tolist()),
        "std": json.dumps(encoder.std.flatten().tolist()),
        **{name: str(encoder.view[name]) for name in ("crop_pct", "crop_mode", "interpolation")},
    }
