"""Pictures -> vectors in a Parquet file. The verb `embed`."""

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from catlip.data.images import Unreadable, left_out
from catlip.data.open import open_images
from catlip.errors import UsageError
from catlip.evaluation.features import decoded
from catlip.models.encoder import Encoder
from catlip.models.weights import load
from catlip.notices import say
from catlip.training.distributed import one_device


@dataclass(kw_only=True, slots=True)
class EmbedConfig:
    """Settings of `catlip embed`."""

    run: str  # run folder, model folder, or timm:NAME
    images: str  # a folder, a picture, tars, or a table of paths
    out: str = "emb.parquet"  # new file
    tokens: bool = False  # patch tokens, float16 [N, D] a picture, instead of one float32 [D]
    batch_size: int = 64
    device: str = "auto"


def embed(cfg: EmbedConfig) -> Path:
    """Write the columns key and embedding; what the numbers are stands in the file's metadata.

    Unreadable pictures are left out, counted and named. Raises UsageError if they are more than 1 %.
    """
    out = Path(cfg.out)
    if out.exists():
        raise UsageError(f"`out` {out} exists already; choose another file")
    if cfg.batch_size < 1:
        raise UsageError("`batch_size` is a positive number")
    encoder, device = load(cfg.run), one_device(cfg.device)
    source, unreadable = open_images(cfg.images), Unreadable()
    encoder.to(device).eval()
    part, written, shape = out.with_name(out.name + ".part"), 0, ()
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            writer: Any = None
            for _, records, pixels in decoded(
                source, range(len(source)), encoder.pixels, unreadable, batch_size=cfg.batch_size
            ):
                found = _vectors(encoder, encoder.normalize(pixels.to(device)), cfg.tokens)
                table = _table([record.key for record in records], found, _facts(cfg, encoder))
                if writer is None:
                    writer = stack.enter_context(pq.ParquetWriter(part, table.schema, compression="zstd"))
                writer.write_table(table)
                written, shape = written + len(records), found.shape[1:]
        part.replace(out)
    except BaseException:  # nothing half-written stays
        part.unlink(missing_ok=True)
        raise
    left_out(images=unreadable)
    say(f"{out}: {written:,} pictures, {' x '.join(map(str, shape))} numbers each")
    return out


@torch.no_grad()
def _vectors(encoder: Encoder, x: Tensor, tokens: bool) -> np.ndarray[Any, Any]:
    return encoder.tokens(x).half().cpu().numpy() if tokens else encoder.pooled(x).float().cpu().numpy()


def _table(keys: list[str], vectors: np.ndarray[Any, Any], facts: dict[str, str]) -> pa.Table:
    """The vectors [B, ..., D] as nested lists of fixed size, which readers hand back as arrays of that shape."""
    column: Any = pa.array(vectors.reshape(-1))
    for length in reversed(vectors.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return pa.table({"key": keys, "embedding": column}).replace_schema_metadata(facts)


def _facts(cfg: EmbedConfig, encoder: Encoder) -> dict[str, str]:
    return {
        "encoder": cfg.run,
        "architecture": encoder.architecture,
        "kind": "tokens" if cfg.tokens else "pooled",
        "image_size": str(encoder.image_size),
        "mean": json.dumps(encoder.mean.flatten().tolist()),
        "std": json.dumps(encoder.std.flatten().tolist()),
        **{name: str(encoder.view[name]) for name in ("crop_pct", "crop_mode", "interpolation")},
    }
