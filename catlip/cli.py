"""One verb per arrow. The only file that imports tyro; `catlip --help` imports neither tyro nor torch.

A verb is a dataclass of settings and a function of it. What stands right after the verb, without a flag, are the
settings that the table below names, so `catlip vocab DATA` and `catlip vocab --data DATA` are the same.
"""

import contextlib
import json
import math
import os
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from inspect import signature
from itertools import takewhile
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from catlip import machine, notices
from catlip.config import plain
from catlip.errors import UsageError, near, refusal, torch_needed
from catlip.recipes import RECIPES, check_recipe, load_recipe


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb's function is, and what its first arguments without a flag are."""

    says: str
    module: str
    function: str
    first: tuple[str, ...]
    page: str = ""  # module:function that writes a page of the result, if the verb has one

    def opened(self) -> tuple[Any, Any]:
        """Its function, and the class of its settings, which is what the function calls `config`."""
        function = getattr(import_module(self.module), self.function)
        asked = signature(function).parameters["config"].annotation
        return function, next(kind for kind in (*get_args(asked), asked) if kind is not NoneType)


BESIDE = "catlip.evaluation.result:beside_encoder"
RUN = "catlip.report.run_report:of_run"
OUT = "catlip.evaluation.result:in_run_folder"
VERBS = {
    "demo": Verb("everything once, on pictures that come with catlip", "catlip.demo.demo", "demo", ("out",)),
    "explain": Verb("a caption's labels, word by word", "catlip.labels.labeler", "explain", ("caption",)),
    "vocab": Verb("captions -> vocab.tsv", "catlip.data.corpus", "build_vocabulary", ("data",)),
    "sentences": Verb("captions -> frozen sentence embeddings", "catlip.models.sentences", "sentences", ("data",)),
    "label": Verb("captions -> Parquet with synsets", "catlip.data.corpus", "write_labels", ("data",)),
    "balance": Verb("captions -> fewer, rare labels' fair share", "catlip.data.corpus", "balance", ("data",)),
    "report": Verb("a look at a run or a corpus: HTML", "catlip.report.label_report", "report", ("data",)),
    "pack": Verb("pictures and captions -> tar shards", "catlip.data.pack", "pack", ("data",)),
    "bench data": Verb("reading, decoding, cropping: pictures/s", "catlip.data.bench", "bench_data", ("data",)),
    "plan": Verb("memory, hours and cost of a recipe, before", "catlip.recipes.plan", "plan", ("recipe",)),
    "doctor": Verb("this installation, this machine, what is slow", "catlip.recipes.doctor", "doctor", ()),
    "slurm": Verb("an sbatch file that requeues itself", "catlip.recipes.slurm", "slurm", ("command",)),
    "pretrain": Verb("shards + vocabulary -> encoder", "catlip.tasks.pretrain", "pretrain", ("recipe",), RUN),
    "head": Verb("a classifier of your nouns on a frozen encoder", "catlip.tasks.head", "head", ("run",)),
    "adapt": Verb("an encoder you have, better at your pictures", "catlip.tasks.adapt", "adapt", ("run",), OUT),
    "probe": Verb("linear probe and kNN on frozen features", "catlip.evaluation.probe", "probe", ("run",), BESIDE),
    "compare": Verb("objectives side by side: HTML", "catlip.recipes.compare", "compare", ("out",)),
    "finetune": Verb("encoder + labelled pictures -> classifier", "catlip.recipes.curves", "finetune", ("run",), OUT),
    "align": Verb("text tower onto a frozen encoder", "catlip.tasks.align", "align", ("run",)),
    "zeroshot": Verb("classify by class names alone", "catlip.evaluation.zero_shot", "zero_shot", ("run", "data")),
    "retrieve": Verb("captions find pictures, and back", "catlip.evaluation.retrieval", "retrieve", ("run",)),
    "ground": Verb("where in the picture is it? HTML", "catlip.evaluation.grounding", "ground", ("run",), BESIDE),
    "segment": Verb("a class for every pixel: fine-tune, mIoU", "catlip.tasks.segment", "segment", ("run",), OUT),
    "bias": Verb("a concept's direction, and without it", "catlip.evaluation.bias", "bias", ("run",)),
    "detect": Verb("boxes and masks: Mask R-CNN. HTML", "catlip.tasks.detect", "detect", ("run",), OUT),
    "convert": Verb("official checkpoint -> run folder", "catlip.export.convert", "convert", ("checkpoint",)),
    "export": Verb("run -> timm, open_clip, ONNX, ...", "catlip.export.export", "export", ("run",)),
    "embed": Verb("pictures -> Parquet with vectors", "catlip.export.embed", "embed", ("run", "images")),
    "atlas": Verb("pictures on a map by their features: HTML", "catlip.report.atlas", "atlas", ("run", "images")),
    "predict": Verb("a picture's labels, drawn", "catlip.export.predict", "predict", ("run", "photo")),
    "push": Verb("run -> Hugging Face Hub, with a card", "catlip.export.hub", "push", ("run", "repo")),
}
# What a verb cannot do without, where its settings stand in a module that imports torch: told before that.
NEEDS = {
    "sentences": "data out sentence_encoder",
    "plan": "recipe",
    "pretrain": "data out",
    "head": "data out",
    "adapt": "data out",
    "probe": "run train test",
    "compare": "out data train test",
    "finetune": "run train test out",
    "align": "run data out",
    "zeroshot": "run data",
    "retrieve": "run data",
    "ground": "run images",
    "segment": "run train test out",
    "bias": "run data",
    "detect": "run images boxes test_images test_boxes out",
    "convert": "checkpoint out",
    "export": "run",
    "embed": "run images",
    "atlas": "run images",
    "predict": "run photo",
    "push": "run repo",
}
PATHS = {"run", "train", "test", "data", "images", "boxes", "test_images", "test_boxes"}  # those of them that are there
PEERS = ("zeroshot", "retrieve", "probe")  # whose results CLIP_benchmark has, too
HELP = """catlip: captioned pictures in, a vision encoder out

{verbs}

`catlip VERB --help` lists the settings of a verb. Each also takes --json (the result as JSON on standard output, what
is told on the way on standard error) and --quiet (results and warnings only); zeroshot, retrieve and probe also take
--format clip-benchmark, JSON as CLIP_benchmark writes it. On your own data:
  catlip vocab    'shards/*.tar' --min-count 8 --out vocab.tsv
  catlip pretrain flickr8k_cpu --data 'shards/*.tar' --vocab vocab.tsv --out runs/mine
  catlip probe    runs/mine --train train.tar --test test.tar
"""


def main() -> None:
    """Entry point: exit code 0, or 2 with one line for a mistake the user can mend and for what the system refuses."""
    machine.prepare()
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
    except Exception as error:
        why = refusal(error)
        if not why:
            raise
        sys.stderr.write(f"catlip: {why}\n")
        sys.exit(2)


def run(args: list[str]) -> Any:
    """Carry out a command line; what the verb's function returns."""
    flags = [] if "--" in args else [flag for flag in ("--json", "--quiet") if flag in args]
    args = [argument for argument in args if argument not in flags]
    if args[:1] and args[0] in PEERS:
        form, args = _take("--format", args)
        if form not in (None, "clip-benchmark"):
            raise UsageError(f"--format {form}: there is clip-benchmark alone; --json is catlip's own")
        flags += ["--json", "--format"] if form else []
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {name:<{width}}  {verb.says}" for name, verb in VERBS.items())))
        return None
    if args[0] == "--version":
        print(import_module("catlip").__version__)
        return None
    if args[0] == "--completion":
        from catlip.completion import script, settings_of

        settings = settings_of(VERBS)
        settings["pretrain"] = settings["pretrain"] and load_recipe(next(iter(RECIPES["pretrain"])), "pretrain")
        print(script(args[1:], settings, RECIPES))
        return None
    name, *rest = [" ".join(args[:2]), *args[2:]] if " ".join(args[:2]) in VERBS else args
    if name not in VERBS:
        raise UsageError(f"there is no verb {name!r}{near(name, VERBS)}; `catlip --help` lists them")
    with torch_needed(f"catlip {name}"):
        return _carry_out(name, rest, flags)


def _carry_out(name: str, rest: list[str], asked: list[str]) -> Any:
    verb = VERBS[name]
    if name == "slurm" and "--" in rest:  # the command to run, as it is
        at = rest.index("--")
        command = rest[at + 1 :][rest[at + 1 : at + 2] == ["catlip"] :]
        if command and not {command[0], " ".join(command[:2])} & set(VERBS):
            raise UsageError(f"after --: there is no verb {command[0]!r}{near(command[0], VERBS)}")
        rest = [*rest[:at], "--command", shlex.join(command)]
    plain = list(takewhile(lambda argument: not argument.startswith("-"), rest[: len(verb.first)]))
    flags = [part for setting, argument in zip(verb.first, plain, strict=False) for part in (f"--{setting}", argument)]
    rest = [*flags, *rest[len(plain) :]]
    start: dict[str, Any] = {}
    recipe, rest = _take("--recipe", rest) if name in RECIPES else (None, rest)
    if not {"--help", "-h"} & set(rest):
        _look(name, recipe, rest)
    if recipe or name == "pretrain":
        start["default"], rest = _recipe(recipe or next(iter(RECIPES[name])), rest, name)
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    import tyro

    function, kind = verb.opened()
    settings = tyro.cli(
        kind,
        prog=f"catlip {name}",
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
        **start,
    )
    where = "nowhere" if "--quiet" in asked else "stderr" if "--json" in asked else "stdout"
    with flags_of(settings), notices.told(where):
        result = function(config=settings)
        text = notices.translate(as_text(result))
    if notices.is_rank_0():
        if "--json" not in asked and not getattr(result, "stopped", "") and text:
            print(text, flush=True)
        page = _page(verb, result, settings)
        if page and not asked:
            notices.say(f"{page}: the page")
        if "--json" in asked:
            shown = result.to_clip_benchmark() if result and "--format" in asked else result
            print(json.dumps(as_json(shown), ensure_ascii=False), flush=True)
    return result


def as_text(result: Any) -> str:
    """What is printed of a result: a dataclass in its own words, text as it is; files were told of when written."""
    return result.rstrip("\n") if isinstance(result, str) else str(result) if is_dataclass(result) else ""


def as_json(result: Any) -> Any:
    """A result as JSON has it: what it says of itself, or its fields; a number that is none is null."""
    if hasattr(result, "to_json"):
        return as_json(result.to_json())
    if is_dataclass(result) and not isinstance(result, type):
        return {field.name: as_json(getattr(result, field.name)) for field in fields(result)}
    if isinstance(result, dict):
        return {str(name): as_json(value) for name, value in result.items()}
    if isinstance(result, list | tuple):
        return list(map(as_json, result))
    return None if isinstance(result, float) and not math.isfinite(result) else plain(result)


def _page(verb: Verb, result: Any, settings: Any) -> Path | None:
    """The page of a result, written; None for a verb that has none."""
    if not verb.page or result is None:
        return None
    module, function = verb.page.split(":")
    return getattr(import_module(module), function)(result, settings)


@contextlib.contextmanager
def flags_of(settings: Any) -> Iterator[None]:
    """The package's messages name fields (`image_size`); whoever gave flags reads of flags (--image-size)."""
    known = set(_fields(settings))

    def flag(match: re.Match[str]) -> str:
        return f"--{match[1].replace('_', '-')}" if match[1].removeprefix("no_") in known else match[0]

    def translate(text: str) -> str:
        return re.sub(r"`(\w+)`", flag, text)

    before, notices.translate = notices.translate, translate
    try:
        yield
    except UsageError as error:
        raise UsageError(translate(str(error))) from error.__cause__
    finally:
        notices.translate = before


def _fields(settings: Any) -> Iterator[str]:
    for field in fields(settings):
        yield field.name
        if is_dataclass(value := getattr(settings, field.name)):
            yield from _fields(value)


def _take(option: str, args: list[str]) -> tuple[str | None, list[str]]:
    """(value of an option, the other arguments): `--option value` or `--option=value`. Raises UsageError."""
    found = [at for at, argument in enumerate(args) if argument.split("=")[0] == option]
    if not found:
        return None, args
    if len(found) > 1:
        raise UsageError(f"{option} is given {len(found)} times, and once is enough")
    at, (_, equals, value) = found[0], args[found[0]].partition("=")
    if not equals:
        value = "".join(takewhile(lambda argument: not argument.startswith("-"), args[at + 1 : at + 2]))
    if not value:
        raise UsageError(f"{option} needs a name behind it")
    return value, args[:at] + args[at + (1 if equals else 2) :]


def _look(name: str, recipe: str | None, args: list[str]) -> None:
    """Raises UsageError for what can be told without torch, whose import takes seconds: settings and files that are
    not there. What is no plain local path is left to the verb."""
    if recipe:
        check_recipe(recipe, name)
    elif name == "pretrain":
        raise UsageError(f"name a recipe: catlip pretrain RECIPE ...; there are {', '.join(RECIPES[name])}")
    ends = [*args, "--"][1:]
    given = {
        argument[2:].partition("=")[0].replace("-", "_"): argument.partition("=")[2] or after
        for argument, after in zip(args, ends, strict=True)
        if argument.startswith("--")
    }
    needs = NEEDS.get(name, "").split()
    # A recipe of one's own may bring data and folder along.
    if missing := [need for need in needs if need not in given and (recipe is None or recipe in RECIPES[name])]:
        raise UsageError(f"--{missing[0].replace('_', '-')} is missing")
    if name == "plan":
        check_recipe(given["recipe"])
    if "vocab" in given and name != "convert":
        import_module("catlip.labels.vocabulary").Vocabulary.load(given["vocab"])
    for need in needs:
        value = given.get(need, "")
        if need in PATHS and not set(value) & set("*?[]{}:@+~") and not Path(value).exists():
            what = f"--{need.replace('_', '-')}: no such file: {value}"
            raise UsageError(what if need != "run" else f"{value} is no run and no model folder: it does not exist")


def _recipe(name: str, args: list[str], verb: str) -> tuple[Any, list[str]]:
    """(settings that a recipe starts from, the other arguments). A recipe: a name, or path/to/file.py:function."""
    recipe = load_recipe(name, verb)
    if verb == "pretrain":
        objective, args = _take("--objective", args)
        if objective:
            recipe.objective = import_module("catlip.recipes.objectives").objective_named(objective)
    if any(argument.split("=")[0] in ("--samples", "--epochs", "--hours") for argument in args):
        recipe.samples, recipe.epochs, recipe.hours = 0, 0.0, 0.0  # the budget that is given takes the recipe's place
    given = {argument.split("=")[0] for argument in args}
    if "--start" in given and "--backbone" not in given:
        recipe.backbone = ""  # the weights say what they are of
    return recipe, args


if __name__ == "__main__":
    main()
