"""A model card from what a run has recorded, and the verb `push` that puts model and card on the Hugging Face Hub."""

import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from catlip.atomic import read_jsonl
from catlip.config import configure
from catlip.errors import UsageError, first_line
from catlip.labels.vocabulary import Vocabulary
from catlip.models.dual_encoder import TEXT_FOLDER
from catlip.models.encoder import Encoder
from catlip.models.model_folders import TIMM_FILES, model_folder, read_json
from catlip.models.weights import load, origin

# Bookkeeping of results.jsonl, not measurements.
NOT_MEASURED = {"task", "encoder", "data", "seconds", "penalty", "classes", "train", "test", "image_size", "seed"}


@dataclass(kw_only=True, slots=True)
class PushConfig:
    """Settings of `catlip push`."""

    run: str  # run folder; in Python also a Run, or an Encoder that was loaded from one
    repo: str  # org/name on the Hugging Face Hub
    license: str = "other"  # of the weights, which is yours to choose: apache-2.0, cc-by-4.0, ...
    private: bool = False
    dry_run: bool = False  # print the card and the list of files; nothing leaves the machine


@dataclass(kw_only=True, slots=True)
class PushResult:
    """What is on the Hub now, or would be."""

    repo: str
    card: str  # README.md, Markdown
    files: list[str]
    size: int  # bytes, without the card
    uploaded: bool
    left: list[str]  # files of the run that stay here

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        where = f"https://huggingface.co/{self.repo}: {', '.join(self.files)}"
        if self.uploaded:
            return where + "".join(f"; {name} stays here" for name in self.left)
        return (
            f"{self.card}\nNothing was uploaded. Without `dry_run` this card, as README.md, and {self.size:,} bytes go "
            f"to\n{where}"
        )


def push(
    encoder: Any = None, repo: str | None = None, *, config: PushConfig | None = None, **settings: Any
) -> PushResult:
    """Write README.md into the run's encoder folder and upload that folder. settings: fields of PushConfig.

    encoder: a run folder, a Run, or an Encoder that was loaded from one. repo: "org/name". Raises UsageError for a run
    that cannot be read and whatever the Hub refuses.
    """
    cfg = configure(PushConfig, config, run=encoder, repo=repo, **settings)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", cfg.repo):
        raise UsageError(f"{cfg.repo!r} is no name of a repository: expected org/name")
    if not re.fullmatch(r"[\w.-]+", cfg.license):
        raise UsageError(f"`license` {cfg.license!r}: expected an identifier such as apache-2.0 or other")
    if not (name := origin(cfg.run)):
        raise UsageError("`run`: this encoder lies in no folder; save it first, and push the folder")
    run, folder = Path(name), model_folder(name)
    card = model_card(run, cfg.repo, cfg.license)
    files = {name: folder / name for name in (*TIMM_FILES, "README.md")}
    files |= {f"{TEXT_FOLDER}/{file.name}": file for file in sorted((run / TEXT_FOLDER).glob("*.*"))}
    with TemporaryDirectory() as extra:
        if (run / "vocab.tsv").is_file():
            vocabulary = Vocabulary.load(run / "vocab.tsv")
            files["vocab.tsv"] = Path(extra) / "vocab.tsv"
            replace(vocabulary, source=_file_name(vocabulary.source)).save(files["vocab.tsv"])
        size = sum(file.stat().st_size for name, file in files.items() if name != "README.md")
        if not cfg.dry_run:
            files["README.md"].write_text(card, encoding="utf-8")
            _upload(cfg, files)
    left = [file.name for file in sorted(run.glob("*.safetensors"))]
    return PushResult(repo=cfg.repo, card=card, files=list(files), size=size, uploaded=not cfg.dry_run, left=left)


def _upload(cfg: PushConfig, files: dict[str, Path]) -> None:
    """files: name in the repository -> file."""
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        api.create_repo(cfg.repo, private=cfg.private, exist_ok=True)
        for name, file in files.items():
            api.upload_file(path_or_fileobj=file, path_in_repo=name, repo_id=cfg.repo)
    except Exception as error:  # the hub's, the net's and the token's errors have no common base
        raise UsageError(f"{cfg.repo}: {first_line(error)}") from None


def model_card(run: Path, repo: str, license: str) -> str:
    """Markdown with the Hub's header. What the run has not recorded is called so."""
    encoder = load(run)
    record = read_json(run / "config.json") if (run / "config.json").is_file() else {}
    config = record.get("config") or {}
    results = _results(run)
    parts = [
        _header(license, encoder.in_timm),
        f"# {repo.split('/')[1]}\n\n{_what(encoder, config, results)}",
        f"## Use\n\n{_use(repo, encoder, (run / TEXT_FOLDER).is_dir())}",
        f"## Data\n\n{_data(config, record.get('facts') or {})}",
        f"## Vocabulary\n\n{_vocabulary(run, encoder)}",
        f"## Recipe\n\n{_recipe(config, record.get('versions') or {})}",
        f"## Measured\n\n{_measured(results)}",
        f"## Licence\n\n{_licence(license)}",
    ]
    return "\n\n".join(parts) + "\n"


def _header(license: str, in_timm: bool) -> str:
    tags = ["image-classification", "image-feature-extraction", "catlip", *(["timm"] if in_timm else [])]
    lines = [
        f"library_name: {'timm' if in_timm else 'catlip'}",
        f"license: {license}",
        "pipeline_tag: image-classification",
    ]
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _what(encoder: Encoder, config: dict[str, Any], results: list[dict[str, Any]]) -> str:
    numbers = sum(p.numel() for p in encoder.parameters())
    if "checkpoint" in config:
        how = f"converted from the official CatLIP checkpoint `{_inline(Path(config['checkpoint']).name)}`"
    elif "run" in config:
        kept = next((result["kept"] for result in reversed(results) if "kept" in result), None)  # of an adaptation
        what = "fine-tuned"
        if "steps" in config:
            what = "as it was, with a text tower beside it"
        elif kept == "start" or ("min_count" in config and kept is None):
            what = "as it was, with a classifier of the captions' nouns"
        how = f"that of `{_inline(_file_name(config['run']))}`, {what} by catlip"
    elif encoder.labels:
        how = "pre-trained by naming the nouns of captions ([CatLIP](https://arxiv.org/abs/2404.15653)) with catlip"
    else:
        how = "pre-trained on captioned pictures with catlip"
    return (
        f"A `{encoder.architecture}` image encoder, {numbers:,} parameters, {how}. "
        f"Input: RGB, {encoder.image_size} px, on a scale of 0 to 1 mean {_numbers(encoder.mean)}, "
        f"std {_numbers(encoder.std)}."
    )


def _use(repo: str, encoder: Encoder, has_text: bool) -> str:
    plain = [
        "import timm",
        f'model = timm.create_model("hf-hub:{repo}", pretrained=True)',
        "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))",
    ]
    ours = [
        "import catlip",
        f'encoder = catlip.load("hf-hub:{repo}")',
        "encoder.pooled(encoder.transform(picture)[None])" + ("  # also .tokens, .logits" if encoder.labels else ""),
    ]
    text = [
        "from catlip.models.dual_encoder import load_dual  # the text tower, in text/",
        f'dual = load_dual("hf-hub:{repo}")',
        'dual.embed_texts(["a dog"])  # beside dual.embed_images',
    ]
    parts = [*[plain] * encoder.in_timm, ours, *[text] * has_text]
    note = "" if encoder.in_timm else "\n\nPlain timm has no such architecture; catlip brings it."
    return "```python\n" + "\n\n".join("\n".join(lines) for lines in parts) + "\n```" + note


def _data(config: dict[str, Any], facts: dict[str, Any]) -> str:
    if "checkpoint" in config:
        return "That of the official checkpoint: DataComp-1.3B, and the set its name tells if it is fine-tuned."
    data = next((config[name] for name in ("data", "train", "boxes") if config.get(name)), "")
    if not data:
        return "Not recorded."
    seen = facts.get("budget")
    return f"`{_inline(_file_name(data))}`" + (f", {seen:,} pictures seen with repetitions." if seen else ".")


def _vocabulary(run: Path, encoder: Encoder) -> str:
    if not encoder.labels:
        return "None: an encoder without classifier."
    path = run / "vocab.tsv"
    if not path.is_file():
        return f"{len(encoder.labels):,} classes: {_some(encoder.names)}. `config.json` lists them."
    vocabulary = Vocabulary.load(path)
    return (
        f"{len(vocabulary):,} WordNet 3.0 synsets, rule `{_inline(vocabulary.rule)}`, hash `{vocabulary.hash}`, "
        f"counted on {vocabulary.captions:,} captions of {vocabulary.samples:,} pictures. The most frequent: "
        f"{_some(vocabulary.names)}. `config.json` lists all (`label_names` are wnids, `label_descriptions` lemmas)."
    )


def _recipe(config: dict[str, Any], versions: dict[str, Any]) -> str:
    if not config:
        return "Not recorded."
    flat: dict[str, Any] = {}
    for name, value in {**config, **versions}.items():
        flat |= {f"{name}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    # of the machine, or told above
    hidden = {"out", "data", "vocab", "labels", "start", "workers", "device", "threads", "checkpoint"}
    shown = {name: _bare(value) for name, value in flat.items() if name not in hidden}
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in shown.items()]
    return "\n".join(["| setting | value |", "|---|---|", *rows])


def _results(run: Path) -> list[dict[str, Any]]:
    path = run / "results.jsonl"
    return read_jsonl(path) if path.is_file() else []


def _measured(results: list[dict[str, Any]]) -> str:
    rows = []
    for result in results:
        data = result.get("data")
        where = ", ".join(_file_name(name) for name in (data if isinstance(data, list) else [data] if data else []))
        rows += [
            f"| {_cell(result.get('task', ''))} | {_cell(name.replace('_', ' '))} | {value:g} | {_cell(where)} |"
            for name, value in result.items()
            if name not in NOT_MEASURED and isinstance(value, int | float) and not isinstance(value, bool)
        ]
    return "\n".join(["| task | measure | value | data |", "|---|---|---|---|", *rows]) if rows else "Nothing yet."


def _licence(license: str) -> str:
    known = {"other": "Set by whoever trained these weights; ask them."}
    return known.get(license, f"Weights: {license}.") + " WordNet 3.0, from which the labels come, has its own licence."


def _some(names: list[str]) -> str:
    return ", ".join(_inline(name.replace("_", " ")) for name in names[:20]) + (", ..." if len(names) > 20 else "")


def _file_name(path: object) -> str:
    """What a card may tell of a path: folders are its owner's business."""
    return str(path).rstrip("/").replace("\\", "/").rsplit("/", 1)[-1]


def _bare(value: Any) -> Any:
    return _file_name(value) if isinstance(value, str) and Path(value).is_absolute() else value


def _inline(text: object) -> str:
    return re.sub(r"[`\n\r<>]", " ", str(text))


def _cell(text: object) -> str:
    return _inline(text).replace("|", "\\|")


def _numbers(values: Any) -> str:
    return "/".join(f"{value:.4g}" for value in values.flatten().tolist())
