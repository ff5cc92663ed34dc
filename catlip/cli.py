"""One verb per arrow. The only file that imports tyro; `catlip --help` imports neither tyro nor torch.

A verb is a dataclass of settings and a function of it. What stands right after the verb, without a flag, are the
settings that the table below names, so `catlip vocab DATA` and `catlip vocab --data DATA` are the same.
"""

import os
import shlex
import sys
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from typing import Any

from catlip.errors import UsageError, near, refusal
from catlip.recipes import RECIPES, load_recipe


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
    "report": Verb("a look at a run or a corpus: HTML", "catlip.report.corpus", "Report", "report", ("data",)),
    "pack": Verb("pictures and captions -> tar shards", "catlip.data.pack", "Pack", "pack", ("data",)),
    "bench data": Verb(
        "reading, decoding, cropping: pictures/s", "catlip.data.bench", "BenchData", "bench_data", ("data",)
    ),
    "plan": Verb("memory, hours and cost of a recipe, before", "catlip.recipes.plan", "Plan", "plan", ("recipe",)),
    "slurm": Verb("an sbatch file that requeues itself", "catlip.recipes.slurm", "Slurm", "slurm", ("command",)),
    "pretrain": Verb("shards + vocabulary -> encoder", "catlip.training.pretrain", "Pretrain", "pretrain", ("recipe",)),
    "probe": Verb("linear probe and kNN on frozen features", "catlip.report.efficiency", "Probe", "probe", ("run",)),
    "compare": Verb("objectives side by side: HTML", "catlip.recipes.compare", "Compare", "compare", ("out",)),
    "finetune": Verb(
        "encoder + labelled pictures -> classifier", "catlip.report.efficiency", "Finetune", "finetune", ("run",)
    ),
    "align": Verb("text tower onto a frozen encoder", "catlip.transfer.align", "Align", "align", ("run",)),
    "zeroshot": Verb(
        "classify by class names alone", "catlip.transfer.zero_shot", "ZeroShot", "zero_shot", ("run", "data")
    ),
    "retrieve": Verb("captions find pictures, and back", "catlip.transfer.retrieve", "Retrieve", "retrieve", ("run",)),
    "ground": Verb("where in the picture is it? HTML", "catlip.report.grounding", "Ground", "ground", ("run",)),
    "segment": Verb(
        "a class for every pixel: fine-tune, mIoU", "catlip.report.segmentation", "Segment", "segment", ("run",)
    ),
    "bias": Verb("a concept's direction, and without it", "catlip.transfer.bias", "Bias", "bias", ("run",)),
    "detect": Verb("boxes and masks: Mask R-CNN. HTML", "catlip.report.detections", "Detect", "detect", ("run",)),
    "convert": Verb(
        "official checkpoint -> run folder", "catlip.interchange.corenet", "Convert", "convert", ("checkpoint",)
    ),
    "export": Verb("run -> timm, open_clip, ONNX, ...", "catlip.interchange.export", "Export", "export", ("run",)),
    "embed": Verb("pictures -> Parquet with vectors", "catlip.interchange.embed", "Embed", "embed", ("run", "images")),
    "predict": Verb("a picture's labels, drawn", "catlip.interchange.predict", "Predict", "predict", ("run", "photo")),
    "push": Verb("run -> Hugging Face Hub, with a card", "catlip.interchange.card", "Push", "push", ("run", "repo")),
}
HELP = """catlip: captioned pictures in, a vision encoder out

{verbs}

`catlip VERB --help` lists the settings of a verb. On your own data:
  catlip vocab    'shards/*.tar' --min-count 8 --out vocab.tsv
  catlip pretrain flickr8k_cpu --data 'shards/*.tar' --vocab vocab.tsv --out runs/mine
  catlip probe    runs/mine --train train.tar --test test.tar
"""


def main() -> None:
    """Entry point: exit code 0, or 2 with one line for a mistake the user can mend and for what the system refuses."""
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
    if not args or args[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        print(HELP.format(verbs="\n".join(f"  {name:<{width}}  {verb.says}" for name, verb in VERBS.items())))
        return None
    if args[0] == "--version":
        print(import_module("catlip").__version__)
        return None
    name, *rest = [" ".join(args[:2]), *args[2:]] if " ".join(args[:2]) in VERBS else args
    if name not in VERBS:
        raise UsageError(f"there is no verb {name!r}{near(name, VERBS)}; `catlip --help` lists them")
    verb = VERBS[name]
    if name == "slurm" and "--" in rest:  # the command to run, as it is
        at = rest.index("--")
        rest = [*rest[:at], "--command", shlex.join(rest[at + 1 :])]
    plain = list(takewhile(lambda argument: not argument.startswith("-"), rest[: len(verb.first)]))
    flags = [part for setting, argument in zip(verb.first, plain, strict=False) for part in (f"--{setting}", argument)]
    rest = [*flags, *rest[len(plain) :]]
    import tyro

    start: dict[str, Any] = {}
    if name == "pretrain" or (name in RECIPES and "--recipe" in rest):
        start["default"], rest = _recipe(rest, name)
    module = import_module(verb.module)
    settings = tyro.cli(
        getattr(module, verb.settings),
        prog=f"catlip {name}",
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
        **start,
    )
    result = getattr(module, verb.function)(settings)
    if name == "pretrain" and os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
        print(f"{import_module('catlip.report.run').write_report(result)}: curves, labels, pictures")
    return result


def _recipe(args: list[str], verb: str) -> tuple[Any, list[str]]:
    """(settings that a recipe starts from, the other arguments). A recipe: a name, or path/to/file.py:function."""
    if "--recipe" not in args:
        if "--help" in args or "-h" in args:
            return load_recipe(next(iter(RECIPES[verb])), verb), args
        raise UsageError(f"name a recipe: catlip pretrain RECIPE ...; there are {', '.join(RECIPES[verb])}")
    at = args.index("--recipe")
    name = args[at + 1] if at + 1 < len(args) else ""
    recipe, rest = load_recipe(name, verb), args[:at] + args[at + 2 :]
    if "--objective" in rest and verb == "pretrain":
        at = rest.index("--objective")
        recipe.objective = import_module("catlip.training.objective").settings_of("".join(rest[at + 1 : at + 2]))
        rest = rest[:at] + rest[at + 2 :]
    if any(argument.split("=")[0] in ("--samples", "--epochs", "--hours") for argument in rest):
        recipe.samples, recipe.epochs = 0, 0.0  # the budget that is given takes the recipe's place
        if hasattr(recipe, "hours"):
            recipe.hours = 0.0
    return recipe, rest


if __name__ == "__main__":
    main()
