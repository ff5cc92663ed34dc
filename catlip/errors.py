"""The one exception that means: the user can mend this. And what the system refuses, in one line."""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

# What the distribution catlip-labels leaves out; pyproject.toml has the same line between them.
TORCH_SIDE = frozenset("torch torchvision timm safetensors tokenizers huggingface_hub tensorboard".split())


class UsageError(ValueError):
    """A user's mistake. Its message names the option, what was found and the fix; the CLI exits with 2."""


@contextmanager
def torch_needed(what: str) -> Iterator[None]:
    """Raises UsageError, with what to install, where `what` imports something that catlip-labels leaves out."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (absent := (error.name or "").partition(".")[0]) not in TORCH_SIDE:
            raise
        raise UsageError(
            f"{what} needs {absent}, which is not installed: `pip install catlip` brings everything; "
            f"catlip-labels is the part for captions and data"
        ) from error


def refusal(error: Exception) -> str:
    """One line for what the system refused: no space, no permission, a file where a folder should be; else ""."""
    if isinstance(error, OSError):
        why = error.strerror or str(error).partition("\n")[0] or type(error).__name__
        return f"{error.filename}: {why}" if error.filename else why
    found = re.search(r"([^:\n]+) \(os error \d+\)", str(error))  # as libraries written in Rust say it
    return found[1].strip() if found else ""


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def near(word: str, words: Iterable[str]) -> str:
    """A piece of a message: ", did you mean 'x'?", or nothing."""
    from difflib import get_close_matches

    found = get_close_matches(word, list(words), n=1)
    return f", did you mean {found[0]!r}?" if found else ""
