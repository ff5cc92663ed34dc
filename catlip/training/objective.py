"""From settings to an objective: its class, the tokenizer that it needs, what it leaves in the run folder."""

from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from catlip.data.dataset import Dataset
from catlip.errors import UsageError
from catlip.labels.tokenizer import FILE, Tokenizer, TokenizerConfig, make_tokenizer
from catlip.labels.vocabulary import Vocabulary
from catlip.models.dual import DualEncoder
from catlip.models.encoder import Encoder
from catlip.models.text import TextConfig
from catlip.models.weights import ENCODER_FOLDER
from catlip.objectives.clip import Clip, ClipObjective
from catlip.objectives.clip_lite import ClipLite, ClipLiteObjective
from catlip.objectives.hybrid import Hybrid, HybridObjective
from catlip.objectives.siglip import SigLip, SigLipObjective
from catlip.objectives.subwords import SubwordObjective, Subwords
from catlip.objectives.synsets import SynsetObjective, Synsets

Settings = Synsets | Subwords | Clip | SigLip | ClipLite | Hybrid
# Names for `--objective NAME`, each with the published settings.
PARTS: dict[str, Any] = {
    "synsets": Synsets, "synsets_softmax": partial(Synsets, loss="softmax", idf=True),
    "synsets_asymmetric": partial(Synsets, loss="asymmetric"), "subwords": Subwords, "clip": Clip, "siglip": SigLip,
    "clip_lite": ClipLite,
}  # fmt: skip


def settings_of(name: str) -> Settings:
    """Default settings of an objective by its name; `clip+subwords` (SuperCLIP) is the sum of two.

    Raises UsageError for a name that does not exist.
    """
    names = tuple(name.split("+"))
    unknown = [part for part in names if part not in PARTS]
    if unknown:
        raise UsageError(
            f"`objective` {name}: there is no {unknown[0]!r}; there are {', '.join(PARTS)}, and sums (a+b)"
        )
    return PARTS[name]() if len(names) == 1 else Hybrid(parts=names, weights=(1.0,) * len(names))


def reads_captions(cfg: Settings) -> bool:
    """Whether the objective needs a tokenizer."""
    return any(not isinstance(part, Synsets) for part in _parts(cfg))


def reads_labels(cfg: Settings) -> bool:
    """Whether the objective needs a vocabulary of synsets."""
    return any(isinstance(part, Synsets) for part in _parts(cfg))


def _parts(cfg: Settings) -> list[Settings]:
    return [settings_of(name) for name in cfg.parts] if isinstance(cfg, Hybrid) else [cfg]


def open_tokenizer(cfg: Settings, tokens: TokenizerConfig, source: Dataset, out: Path | None) -> Tokenizer | None:
    """The run's tokenizer: the one it began with, or a new one, trained on the captions if so asked. out: None: no run
    of its own, whose folder could have one."""
    if not reads_captions(cfg):
        return None
    if out is not None and (out / FILE).is_file():
        return Tokenizer.load(out / FILE, tokens.context)
    return make_tokenizer(tokens, (caption for captions in source.captions() for caption in captions))


def make_objective(
    cfg: Settings, encoder: Encoder, vocabulary: Vocabulary, tokenizer: Tokenizer | None, text: TextConfig
) -> Any:
    """The objective with its initial weights. text: the size of a text tower, for those that have one."""
    if isinstance(cfg, Synsets):
        return SynsetObjective(encoder, vocabulary.counts, vocabulary.samples, cfg)
    if isinstance(cfg, Hybrid):
        parts = {name: make_objective(settings_of(name), encoder, vocabulary, tokenizer, text) for name in cfg.parts}
        return HybridObjective(parts, cfg)
    assert tokenizer is not None
    if isinstance(cfg, Subwords):
        return SubwordObjective(encoder, tokenizer, cfg)
    towers: dict[type, Any] = {Clip: ClipObjective, SigLip: SigLipObjective, ClipLite: ClipLiteObjective}
    return towers[type(cfg)](encoder, tokenizer, cfg, text)


def synset_part(objective: Any) -> SynsetObjective | None:
    """The part that has a head of synsets, if there is one."""
    return next((part for part in _parts_of(objective) if isinstance(part, SynsetObjective)), None)


def _parts_of(objective: Any) -> list[Any]:
    return list(objective.parts.values()) if isinstance(objective, HybridObjective) else [objective]


def save_objective(out: Path, objective: Any, vocabulary: Vocabulary, tokenizer: Tokenizer | None) -> None:
    """Write what is to be used: the encoder, with its classifier if it has one; the text side; all other weights."""
    synsets = synset_part(objective)
    card: dict[str, Any] = {}
    if synsets is not None:
        pairs = zip(vocabulary.synsets, vocabulary.names, strict=True)
        lemmas = {synset: name.replace("_", " ") for synset, name in pairs}
        card = {"label_names": vocabulary.synsets, "label_descriptions": lemmas}
    objective.encoder.save(out / ENCODER_FOLDER, synsets.head if synsets is not None else None, **card)
    for part in _parts_of(objective):
        dual = part.dual() if isinstance(part, ClipLiteObjective) else part
        if isinstance(dual, DualEncoder) and tokenizer is not None:
            dual.save_text(out, tokenizer)
    weights = {name: value for name, value in objective.state_dict().items() if not name.startswith("encoder.")}
    save_file({n: v.detach().cpu().contiguous() for n, v in weights.items()}, out / "objective.safetensors")
