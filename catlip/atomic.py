"""Files that appear whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place when all went well; else nothing is left of it.

    An OSError on the way names `path` if it names nothing. Where nothing is written, nothing appears.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        if part.exists():
            part.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Whoever reads sees the old text or the new one. Raises OSError."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")
