"""Pictures as an encoder sees them, decoded by several threads, some at a time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from catlip import machine
from catlip.data.images import Unreadable, UnreadableImageError, read_image
from catlip.data.records import Dataset


def decoded(
    source: Dataset,
    numbers: Sequence[int],
    pixels: Callable[[Any], Tensor],
    unreadable: Unreadable,
    *,
    batch_size: int = 256,
) -> Iterator[tuple[list[int], list[Any], Tensor]]:
    """(numbers, records, uint8 [b, 3, H, W]) of those samples that can be read, in order.

    pixels: picture -> uint8 [3, H, W], mostly `Encoder.pixels`. The others are added to `unreadable`. Raises UsageError
    at the end if these are more than 1 %.
    """

    def decode(number: int) -> tuple[int, Any, Tensor] | None:
        record = source.read(number)
        try:
            return number, record, pixels(read_image(record.image))
        except UnreadableImageError as error:
            unreadable.add(record.key, str(error))
            return None

    with ThreadPoolExecutor(machine.cores()) as pool:
        for start in range(0, len(numbers), batch_size):
            good = [one for one in pool.map(decode, numbers[start : start + batch_size]) if one is not None]
            if good:
                some, records, images = zip(*good, strict=True)
                yield list(some), list(records), torch.stack(images)
    unreadable.check(len(numbers))
