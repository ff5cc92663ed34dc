"""One verb per arrow. The only file that imports tyro; `catlip --help` imports neither tyro nor torch.

A verb is a dataclass of settings and a function of it. What stands right after the verb, without a flag, are the
settings that the table below names, so `catlip vocab DATA` and `catlip vocab --data DATA` are the same.
"""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

from catlip.errors import UsageError


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb's settings and function are, and what its first arguments without a flag are."""

    says: str
    module: str
    settings: str
    function: str
    first: tuple[str, ...]


VERBS = {
    "demo": Verb("everything once, on pictures that come with catlip", "catlip.demo.demo", "Demo", "demo", ("out",)),
    "explain": Verb("a caption's labels, word by word", "catlip.captions.show", "Explain", "explain", ("caption",)),
    "vocab": Verb("captions -> vocab.tsv", "catlip.data.corpus", "BuildVocabulary", "build_vocabulary", ("data",)),
    "label": Verb("captions -> Parquet with synsets", "catlip.data.corpus", "WriteLabels", "write_labels", ("data",)),
    "report": Verb("a look at a corpus' labels: one HTML file", "catlip.report.corpus", "Report", "report", ("data",)),
    "pack": Verb("pictures and captions -> tar shards", "catlip.data.pack", "Pack", "pack", ("data",)),
    "pretrain": Verb("shards + vocabulary -> encoder", "catlip.training.pretrain", "Pretrain", "pretrain", ("recipe",)),
    "probe": Verb("linear probe and kNN on frozen features", "catlip.transfer.probe", "Probe", "probe", ("run",)),
    "convert": Verb(
        "official checkpoint -> run folder", "catlip.interchange.corenet", "Convert", "convert", ("checkpoint",)
    ),
    "export": Verb("run -> timm, open_clip, ONNX, ...", "catlip.interchange.export", "Export", "export", ("run",)),
    "embed": Verb("pictures -> Parquet with vectors", "catlip.interchange.embed", "Embed", "embed", ("run", "images")),
    "predict": Verb("a picture's labels, drawn", "catlip.interchange.predict", "Predict", "predict", ("run", "photo")),
    "push": Verb("run -> Hugging Face Hub, with a card", "catlip.interchange.card", "Push", "push", ("run", "repo")),
}
RECIPES = {"flickr8k_cpu": "catlip.recipes.flickr8k_cpu"}

HELP = """catlip: captioned pictures in, a vision encoder out

{verbs}

`catlip VERB --help` lists the settings of a verb. On your own data:
  catlip vocab    'shards/*.tar' --min-count 8 --out vocab.tsv
  catlip pretrain flickr8k_cpu --data 'shards/*.tar' --vocab vocab.tsv --out runs/mine
  catlip probe    runs/mine --train train.tar --test test.tar
"""


def main() -> None:
    """Entry point: exit code 0, or 2 with one line for a mistake the user can mend."""
    try:
        run(sys.argv[1:])
    except UsageError as error:
        sys.stderr.write(f"catlip: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\ncatlip: stopped; the same command goes on where a checkpoint was saved\n")
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output went away: `catlip explain ... | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(args: list[str]) -> Any:
    """Carry out a command line; what the verb's function returns."""
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {name:<{width}}  {verb.says}" for name, verb in VERBS.items())))
        return None
    if args[0] == "--version":
        print(import_module("catlip").__version__)
        return None
    name, *rest = args
    if name not in VERBS:
        raise UsageError(f"there is no verb {name!r}{_near(name, VERBS)}; `catlip --help` lists them")
    verb = VERBS[name]
    plain = list(takewhile(lambda argument: not argument.startswith("-"), rest[: len(verb.first)]))
    flags = [part for setting, argument in zip(verb.first, plain, strict=False) for part in (f"--{setting}", argument)]
    rest = [*flags, *rest[len(plain) :]]
    import tyro

    start: dict[str, Any] = {}
    if verb.first == ("recipe",):
        start["default"], rest = _recipe(rest)
    module = import_module(verb.module)
    settings = tyro.cli(
        getattr(module, verb.settings),
        prog=f"catlip {name}",
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
        **start,
    )
    return getattr(module, verb.function)(settings)


def _recipe(args: list[str]) -> tuple[Any, list[str]]:
    """(settings that a recipe starts from, the other arguments). A recipe: a name, or path/to/file.py:function."""
    if "--recipe" not in args:
        if "--help" in args or "-h" in args:
            return _load_recipe(next(iter(RECIPES))), args
        raise UsageError(f"name a recipe: catlip pretrain RECIPE ...; there are {', '.join(RECIPES)}")
    at = args.index("--recipe")
    name = args[at + 1] if at + 1 < len(args) else ""
    return _load_recipe(name), args[:at] + args[at + 2 :]


def _load_recipe(name: str) -> Any:
    file, _, function = name.rpartition(":")
    if file.endswith(".py"):
        if not Path(file).is_file():
            raise UsageError(f"no such recipe file: {file}")
        from runpy import run_path

        found = run_path(file).get(function)
        if found is None:
            raise UsageError(f"{file} has no function {function!r}")
        return found()
    if name not in RECIPES:
        raise UsageError(f"there is no recipe {name!r}{_near(name, RECIPES)}; there are {', '.join(RECIPES)}")
    return getattr(import_module(RECIPES[name]), name)()


def _near(word: str, words: Any) -> str:
    from difflib import get_close_matches

    near = get_close_matches(word, words, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


if __name__ == "__main__":
    main()
