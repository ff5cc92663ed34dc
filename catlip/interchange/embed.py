"""Pictures -> vectors in a Parquet file. The verb `embed`."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from catlip.data.images import Unreadable, UnreadableImageError
from catlip.data.pictures import open_pictures
from catlip.errors import UsageError
from catlip.interchange.pictures import to_input
from catlip.models.encoder import Encoder, load
from catlip.training.distributed import pick_device


@dataclass(kw_only=True, slots=True)
class Embed:
    """Settings of `catlip embed`."""

    run: str  # run folder, model folder, or timm:NAME
    images: str  # a folder, a picture, tars, or a table of paths
    out: str = "emb.parquet"  # new file
    tokens: bool = False  # patch tokens, float16 [N, D] a picture, instead of one float32 [D]
    batch_size: int = 64
    device: str = "auto"


def embed(cfg: Embed) -> Path:
    """Write the columns key and embedding; what the numbers are stands in the file's metadata.

    Unreadable pictures are left out, counted and named. Raises UsageError if they are more than 1 %.
    """
    out = Path(cfg.out)
    if out.exists():
        raise UsageError(f"--out {out} exists already; choose another file")
    if cfg.batch_size < 1:
        raise UsageError("--batch-size is a positive number")
    encoder, device = load(cfg.run), pick_device(cfg.device)
    pictures = open_pictures(cfg.images)
    encoder.to(device).eval()
    unreadable, part, writer, written, shape = Unreadable(), out.with_name(out.name + ".part"), None, 0, ()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for keys, x in _batches(encoder, pictures, cfg.batch_size, unreadable):
            found = _vectors(encoder, x.to(device), cfg.tokens)
            table = _table(keys, found, _facts(cfg, encoder))
            writer = writer or pq.ParquetWriter(part, table.schema, compression="zstd")
            writer.write_table(table)
            written, shape = written + len(keys), found.shape[1:]
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise UsageError(f"{cfg.images}: no picture can be read: {unreadable.some() or 'there is none'}")
    try:
        unreadable.check(written + len(unreadable.reasons))
    except UsageError:
        part.unlink()
        raise
    part.replace(out)
    left = f"; left out: {unreadable.some()}" if unreadable.reasons else ""
    print(f"{out}: {written:,} pictures, {' x '.join(map(str, shape))} numbers each{left}")
    return out


def _batches(
    encoder: Encoder, pictures: Iterator[tuple[str, bytes]], size: int, unreadable: Unreadable
) -> Iterator[tuple[list[str], Tensor]]:
    def prepare(picture: tuple[str, bytes]) -> tuple[str, Tensor] | None:
        try:
            return picture[0], to_input(encoder, picture[1])
        except UnreadableImageError as error:
            unreadable.add(picture[0], str(error))
            return None

    with ThreadPoolExecutor() as pool:
        while taken := list(islice(pictures, size)):
            good = [found for found in pool.map(prepare, taken) if found is not None]
            if good:
                yield [key for key, _ in good], torch.stack([x for _, x in good])


@torch.no_grad()
def _vectors(encoder: Encoder, x: Tensor, tokens: bool) -> np.ndarray[Any, Any]:
    return encoder.tokens(x).half().cpu().numpy() if tokens else encoder.pooled(x).float().cpu().numpy()


def _table(keys: list[str], vectors: np.ndarray[Any, Any], facts: dict[str, str]) -> pa.Table:
    """The vectors [B, ..., D] as nested lists of fixed size, which readers hand back as arrays of that shape."""
    column: Any = pa.array(vectors.reshape(-1))
    for length in reversed(vectors.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return pa.table({"key": keys, "embedding": column}).replace_schema_metadata(facts)


def _facts(cfg: Embed, encoder: Encoder) -> dict[str, str]:
    return {
        "encoder": cfg.run, "architecture": encoder.architecture, "kind": "tokens" if cfg.tokens else "pooled",
        "image_size": str(encoder.image_size), "mean": json.dumps(encoder.mean.flatten().tolist()),
        "std": json.dumps(encoder.std.flatten().tolist()),
    }  # fmt: skip
