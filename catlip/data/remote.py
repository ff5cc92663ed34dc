"""Files that lie elsewhere (s3://, gs://, https://, hf:// and whatever else fsspec opens), fetched whole when needed.

Fetched files live in a bounded folder that all processes of a machine share; the least recently used go first. Locks
are flock(2) locks: the kernel takes them back when a process dies, so a kill leaves neither a half file under a final
name nor a lock that someone waits for. Nothing in this file needs torch.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from catlip.data.cache import cache_folder
from catlip.data.files import OpenFile, sha256_of
from catlip.errors import UsageError
from catlip.notices import warn

TRIES = 3
BACKOFF = 1.0  # seconds before the second try; doubles
FETCHERS = 4  # threads a process
PACKAGES = {
    "s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp",
    "hf": "huggingface_hub", "az": "adlfs", "abfs": "adlfs",
}  # fmt: skip

T = TypeVar("T")


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path in it). Raises UsageError, naming the package, for a protocol without one."""
    import fsspec

    protocol = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if protocol in ("http", "https"):
            import aiohttp

            # aiohttp gives up after five minutes in all, which a large shard may need; silence is the sign of trouble.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options = {"client_kwargs": {"timeout": timeout}}
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        package = PACKAGES.get(protocol, f"the fsspec package for {protocol}://")
        raise UsageError(f"{url}: {protocol}:// needs {package}: pip install {package} ({error})") from None
    except ValueError as error:
        raise UsageError(f"{url}: {error}") from None


def persistently(what: str, do: Callable[[], T]) -> T:
    """Try three times. Raises UsageError naming `what` and the cause; at once where a file is not there."""
    for attempt in range(TRIES):
        try:
            return do()
        except UsageError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise UsageError(f"{what}: {type(error).__name__}: {error}") from None
        except Exception as error:  # every protocol has errors of its own
            if attempt + 1 == TRIES:
                cause = f"{type(error).__name__}: {error}".splitlines()[0]
                raise UsageError(f"{what} cannot be fetched, tried {TRIES} times: {cause}") from None
            time.sleep(BACKOFF * 2**attempt)
    raise AssertionError


def url_glob(url: str) -> list[str]:
    fs, path = filesystem(url)
    return sorted(fs.unstrip_protocol(found) for found in persistently(url, lambda: fs.glob(path)))


def remote_identity(url: str) -> list[Any]:
    """[url, bytes, ...]: what changes when the file is another one."""
    fs, path = filesystem(url)
    info = persistently(url, lambda: fs.info(path))
    changed = [str(info.get(fact)) for fact in ("ETag", "etag", "LastModified", "mtime", "created")]
    return [url, int(info.get("size") or 0), *changed]


def content_if_any(url: str) -> bytes:
    """A small file; b"" if it is not there. Raises UsageError if that cannot be told."""
    fs, path = filesystem(url)

    def get() -> bytes:
        try:
            return fs.cat_file(path)
        except FileNotFoundError:
            return b""
        except Exception as error:  # every protocol has errors of its own
            status = getattr(error, "status", 0)
            if isinstance(error, PermissionError) or (400 <= status < 500 and status not in (408, 429)):
                # Some stores say so of what is not there.
                warn(f"{url} is refused ({error}): the shards are fetched to index them")
                return b""
            raise

    return persistently(url, get)


def open_remote(url: str) -> Any:
    """A file to read parts of, without fetching it."""
    fs, path = filesystem(url)
    return persistently(url, lambda: fs.open(path, "rb"))


class Cache:
    """A folder of fetched files of at most so many bytes; a file that some process holds open is never removed."""

    def __init__(self, gigabytes: float) -> None:
        self.limit = int(gigabytes * 1e9)
        self.folder = cache_folder() / "shards"

    def open(self, url: str, version: str = "", digest: str = "") -> OpenFile:
        """The file, fetched if it is not here. Another version of it is another file. digest: its SHA-256, if known.

        Raises UsageError.
        """
        path = self._path(url, version)
        while True:
            file = self._open_here(path)
            if file is not None:
                return file
            self._fetch(url, path, digest)

    def has(self, url: str, version: str = "") -> bool:
        return self._path(url, version).exists()

    def _path(self, url: str, version: str = "") -> Path:
        return (
            self.folder / f"{hashlib.sha256((url + version).encode()).hexdigest()[:24]}-{url.rpartition('/')[2][-80:]}"
        )

    def _open_here(self, path: Path) -> OpenFile | None:
        try:
            file = OpenFile(os.open(path, os.O_RDONLY))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read ({error.strerror}); set CATLIP_CACHE to a folder of yours"
            ) from None
        fcntl.flock(file.descriptor, fcntl.LOCK_SH)  # as long as it is open: `_make_room` leaves it alone
        if os.fstat(file.descriptor).st_nlink == 0:  # removed between the two lines above
            return None
        with suppress(OSError):  # of another user
            os.utime(path)
        return file

    def _fetch(self, url: str, path: Path, digest: str) -> None:
        """Fetch one file; whoever else wants it meanwhile waits for this one."""
        with self._lock(f"{path.name}.lock"):
            if path.exists():
                return
            part = path.with_name(path.name + ".part")
            fs, inside = filesystem(url)

            def get() -> None:
                fs.get_file(inside, str(part))
                there, here = fs.info(inside).get("size"), part.stat().st_size
                if there is not None and there != here:
                    raise OSError(f"{here:,} of {there:,} bytes arrived")

            try:
                persistently(url, get)
                if digest and digest != sha256_of(part):
                    said = f"{part.stat().st_size:,} bytes whose SHA-256 is another one; other bytes were expected"
                    raise UsageError(f"{url} has {said}: is the index.json beside it another's?")
                with self._lock("room.lock"):
                    self._make_room(part.stat().st_size)
                    part.replace(path)
            finally:
                part.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise UsageError(
                f"{self.folder} cannot be written ({error.strerror}), and remote shards are kept there: "
                f"set CATLIP_CACHE to a folder with space"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing is not enough if a fork meanwhile copied the descriptor
            os.close(descriptor)  # the empty file stays, or two could hold "the" lock

    def _make_room(self, size: int) -> None:
        files = [
            (e.stat().st_mtime, e.stat().st_size, e.path)
            for e in os.scandir(self.folder)
            if not e.name.endswith((".lock", ".part"))
        ]
        total = size + sum(bytes_ for _, bytes_, _ in files)
        for _, bytes_, path in sorted(files):
            if total <= self.limit:
                return
            with suppress(OSError), open(path, "r+b") as file:  # NFS gives exclusive locks to writers only
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an error: someone reads it
                os.unlink(path)
                total -= bytes_


class Ahead:
    """Threads that fetch what will be needed; the latest wish replaces what of the former was not begun."""

    def __init__(self, cache: Cache) -> None:
        self._cache, self._wanted, self._running = cache, deque[tuple[str, str, str]](), 0
        self._lock = threading.Lock()

    def want(self, urls: list[tuple[str, str, str]]) -> None:
        with self._lock:
            self._wanted = deque(urls)
            missing = min(FETCHERS, len(urls)) - self._running
            self._running += max(0, missing)
        for _ in range(missing):  # daemons: the end of a program does not wait for a download
            threading.Thread(target=self._work, daemon=True, name="fetch").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._running -= 1
                    return
                url, version, digest = self._wanted.popleft()
            try:
                if not self._cache.has(url, version):
                    self._cache.open(url, version, digest)
            except UsageError:
                pass  # whoever reads the file tries again and says so
            except Exception as error:  # a thread that dies would stay counted as running
                warn(f"{url} was not fetched ahead: {error}")
