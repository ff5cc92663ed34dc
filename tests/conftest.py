"""Pictures and shards that tests make for themselves, and the shared data where there is some."""

import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from catlip import machine

if TYPE_CHECKING:
    from torch import Tensor

    from catlip.data.crops import Box

# Before torch is loaded. A thread each, since pytest runs as many processes as there are cores: bits of the weights are
# compared, and depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
machine.prepare()

SHARED = Path(__file__).parents[2] / "shared" / "data"
COLOURS = {"apple": (200, 30, 30), "lake": (30, 60, 200), "lawn": (30, 160, 40), "lemon": (230, 210, 40)}


def jpeg(colour: tuple[int, int, int] = (120, 60, 30), size: tuple[int, int] = (48, 40), seed: int = 0) -> bytes:
    """A noisy picture of one colour, as JPEG."""
    noise = np.random.default_rng(seed).integers(-25, 25, (size[1], size[0], 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def decode_center(data: bytes, size: int) -> "Tensor":
    """The central square of a picture, as the loader's workers decode and resize a crop: uint8 [3, size, size]."""
    from catlip.data.crops import decode_part, empty

    out = empty(size)

    def choose(width: int, height: int) -> "tuple[Box, Tensor]":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side), out

    decode_part(data, choose)
    return out


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@contextmanager
def cut_short(samples: int = 0) -> Iterator[None]:
    """A run within is interrupted right after the first checkpoint that so many samples are behind."""
    from catlip.training import checkpoint

    save = checkpoint.save

    def interrupted(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if state["samples"] >= samples:
            raise KeyboardInterrupt

    checkpoint.save = interrupted
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        checkpoint.save = save


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees what an earlier run kept, nor leaves anything behind in the home folder."""
    monkeypatch.setenv("CATLIP_CACHE", str(tmp_path_factory.mktemp("cache")))


def write_coloured(folder: Path, samples: int = 120, shards: int = 3, name: str = "train", cls: bool = False) -> str:
    """Shards of pictures whose colour is the noun of their caption: something that can be learned in seconds."""
    for shard in range(shards):
        members: dict[str, bytes] = {}
        for i in range(shard, samples, shards):
            noun, colour = list(COLOURS.items())[i % len(COLOURS)]
            members[f"{i:06d}.jpg"] = jpeg(colour, seed=zlib.crc32(f"{name} {i}".encode()))
            members[f"{i:06d}.txt"] = f"one {noun} and nothing else\nthe {noun}, again".encode()
            if cls:
                members[f"{i:06d}.cls"] = str(i % len(COLOURS)).encode()
        write_tar(folder / f"{name}-{shard}.tar", members)
    return str(folder / f"{name}-{{0..{shards - 1}}}.tar")


@pytest.fixture
def coloured_shards(tmp_path: Path) -> Callable[..., str]:
    """write_coloured into the test's own folder."""
    return partial(write_coloured, tmp_path)


@pytest.fixture(scope="session")
def flow(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(120 coloured pictures, their vocabulary), made once."""
    from catlip.data.corpus import build_vocabulary

    folder = tmp_path_factory.mktemp("flow")
    data = write_coloured(folder)
    build_vocabulary(data, out=str(folder / "vocab.tsv"), min_count=5)
    return data, folder / "vocab.tsv"
