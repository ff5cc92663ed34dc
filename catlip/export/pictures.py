"""Pictures for comparing exports, and what an encoder takes of any picture."""

import gzip
import io
import tarfile
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from catlip.data.image_files import is_picture
from catlip.data.images import read_image
from catlip.models.encoder import Encoder


def sample_pictures(number: int) -> list[bytes]:
    """Drawings that come with catlip, for comparing where the user has named no pictures."""
    packed = resources.files("catlip.demo").joinpath("sample", "noto.tar.gz").read_bytes()
    found: list[bytes] = []
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed))) as tar:
        for member in tar:
            file = tar.extractfile(member) if is_picture(Path(member.name)) else None
            if file is not None:
                found.append(file.read())
            if len(found) == number:
                break
    return found


def to_input(encoder: Encoder, image: bytes, size: int | None = None) -> Tensor:
    """An encoded picture as the encoder's input [3, H, W]; `size` overrides the encoder's own.

    Raises UnreadableImageError.
    """
    picture = read_image(image)
    if size is None:
        return encoder.transform(picture)
    square = torch.frombuffer(bytearray(picture.resize((size, size)).tobytes()), dtype=torch.uint8)
    return encoder.normalize(square.view(1, size, size, 3).permute(0, 3, 1, 2))[0]
