"""Pictures for embedding, predicting and comparing: a folder, a file, tars, or a table of paths."""

import gzip
import io
import tarfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from catlip.data.images import open_image, to_rgb
from catlip.data.shards import IMAGE_EXTENSIONS
from catlip.data.sources import open_source
from catlip.errors import UsageError
from catlip.models.encoder import Encoder


def open_pictures(where: str) -> Iterator[tuple[str, bytes]]:
    """(key, encoded picture) of a folder (recursively), one picture, or tars and tables as `--data` takes them.

    Raises UsageError for a path that holds none.
    """
    path = Path(where)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _is_picture(file))
        if not found:
            raise UsageError(f"{where} holds no pictures")
        return ((str(file.relative_to(path)), file.read_bytes()) for file in found)
    if _is_picture(path):
        if not path.is_file():
            raise UsageError(f"no such picture: {where}")
        return iter([(path.name, path.read_bytes())])
    source = open_source(where)
    records = (source.read(number) for number in range(len(source)))
    return ((record.key, record.image) for record in records)


def sample_pictures(number: int) -> list[bytes]:
    """Drawings that come with catlip, for comparing where the user has named no pictures."""
    packed = resources.files("catlip.demo").joinpath("sample", "noto.tar.gz").read_bytes()
    found: list[bytes] = []
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        for member in tar:
            file = tar.extractfile(member) if _is_picture(Path(member.name)) else None
            if file is not None:
                found.append(file.read())
            if len(found) == number:
                break
    return found


def to_input(encoder: Encoder, image: bytes, size: int | None = None) -> Tensor:
    """An encoded picture as the encoder's input [3, H, W]; `size` overrides the encoder's own.

    Raises UnreadableImageError.
    """
    picture = to_rgb(open_image(image))
    if size is None:
        return encoder.transform(picture)
    square = torch.frombuffer(bytearray(picture.resize((size, size)).tobytes()), dtype=torch.uint8)
    return encoder.normalize(square.view(1, size, size, 3).permute(0, 3, 1, 2))[0]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
