"""Pictures of which only the pictures are wanted: a folder, a file, tars, or a table of paths."""

from collections.abc import Iterator
from pathlib import Path

from catlip.data.paths import NO_CAPTIONS
from catlip.data.shards import IMAGE_EXTENSIONS
from catlip.data.sources import open_source
from catlip.errors import UsageError


def open_pictures(where: str) -> Iterator[tuple[str, bytes]]:
    """(key, encoded picture) of a folder (recursively), one picture, or tars and tables as `--data` takes them.

    Raises UsageError for a path that holds none.
    """
    path = Path(where)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if is_picture(file))
        if not found:
            raise UsageError(f"{where} holds no pictures")
        return ((str(file.relative_to(path)), file.read_bytes()) for file in found)
    if is_picture(path):
        if not path.is_file():
            raise UsageError(f"no such picture: {where}")
        return iter([(path.name, path.read_bytes())])
    source = open_source(where, text_col=NO_CAPTIONS)
    records = (source.read(number) for number in range(len(source)))
    return ((record.key, record.image) for record in records)


def is_picture(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS
