"""Pictures as evaluation sees them: their central squares, decoded by several threads, some at a time."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from catlip.data.crops import decode_center
from catlip.data.images import Unreadable, UnreadableImageError
from catlip.data.records import Record, Source


def centres(
    source: Source, numbers: Sequence[int], size: int, unreadable: Unreadable, *, share: float = 1.0,
    batch_size: int = 256,
) -> Iterator[tuple[list[int], list[Record], Tensor]]:  # fmt: skip
    """(numbers, records, uint8 [b, 3, size, size]) of those samples that can be read, in order.

    share: of the shorter side that the square takes. The others are added to `unreadable`, which the caller checks.
    """

    def decode(number: int) -> tuple[int, Record, Tensor] | None:
        record = source.read(number)
        try:
            return number, record, decode_center(record.image, size, share)
        except UnreadableImageError as error:
            unreadable.add(record.key, str(error))
            return None

    with ThreadPoolExecutor() as pool:
        for start in range(0, len(numbers), batch_size):
            good = [one for one in pool.map(decode, numbers[start : start + batch_size]) if one is not None]
            if good:
                some, records, pixels = zip(*good, strict=True)
                yield list(some), list(records), torch.stack(pixels)
