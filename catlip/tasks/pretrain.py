"""Pre-training: captioned images -> an encoder that learned from what the captions say."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from catlip.config import configure, opened, plain, required
from catlip.data.batches import Batches, CaptionBatches
from catlip.data.crops import CropConfig
from catlip.data.dataset import Dataset
from catlip.data.open import open_dataset
from catlip.data.order import Order
from catlip.data.sentences import SentenceConfig
from catlip.data.steps import CurriculumConfig, Steps
from catlip.data.subsets import thinned
from catlip.errors import UsageError
from catlip.labels.tokenizer import FILE, Tokenizer, TokenizerConfig, make_tokenizer
from catlip.labels.vocabulary import Vocabulary
from catlip.models.augment import AugmentConfig, built_augment
from catlip.models.encoder import Encoder
from catlip.models.model_folders import ENCODER_FOLDER
from catlip.models.text_tower import TextConfig
from catlip.models.weights import fingerprint, open_weights, start_from
from catlip.notices import say, warn
from catlip.objectives.base import Context, build_objective, needs_of
from catlip.objectives.synsets import Synsets
from catlip.training.distributed import World, from_rank_0, joined
from catlip.training.run import Run
from catlip.training.session import Session
from catlip.training.task import Evaluation, Task
from catlip.training.train import TrainConfig, train

if TYPE_CHECKING:
    from catlip.data.balance import Shares

DEFAULT = "vit_small_patch16_224"  # backbone
GENTLE = 5e-4  # learning rate above which given weights do not last


@dataclass(kw_only=True, slots=True)
class PretrainConfig(TrainConfig):
    """Settings of `catlip pretrain`. Recipes (catlip/recipes) return one of these."""

    data: str  # captioned images: tars, a table, a folder, COCO captions, a URL (docs/data.md); `a@2 + b` mixes
    vocab: str = ""  # vocab.tsv, made by `catlip vocab`; for objectives that name labels
    out: str  # run folder; the same command again goes on where it stopped
    backbone: str = ""  # any timm model; default: that of start, else vit_small_patch16_224
    image_size: int = 224  # pixels
    start: str = ""  # weights: a run or model folder, timm:NAME, hf-hub:ORG/NAME, open_clip:FOLDER, NAME=FILE
    image_col: str | None = None  # tables: column with the images or their paths
    text_col: str | None = None  # tables: column with the captions, or several: category,colour
    cache_gb: float = 100.0  # remote shards: bound of the local cache
    per_label: int = 0  # thin common labels to about so many samples an epoch (MetaCLIP), rare ones stay; 0: do not
    held_out: str = ""  # captioned images, as data: mean average precision of the labels in their captions
    held_out_limit: int = 2000  # images of it, drawn at random
    probe: str = ""  # labelled images (tars with KEY.cls, or a folder per class): kNN evaluation of a fifth of them
    crop: CropConfig = field(default_factory=CropConfig)
    curriculum: CurriculumConfig = field(default_factory=CurriculumConfig)
    augment: Any = field(default_factory=AugmentConfig)  # or a module on the batch, from Python
    objective: Any = field(default_factory=Synsets)  # a config of catlip.objectives, or a class of your own
    tokens: TokenizerConfig = field(default_factory=TokenizerConfig)
    text: TextConfig = field(default_factory=TextConfig)
    sentences: SentenceConfig = field(default_factory=SentenceConfig)


def pretrain(data: Any = None, vocab: Any = None, *, config: PretrainConfig | None = None, **settings: Any) -> Run:
    """Train an encoder on captioned images, or go on with the run that `out` holds.

    data: what `catlip.open` takes. vocab: a `Vocabulary`, or the path of its file; not needed for objectives without
    labels. settings: fields of `PretrainConfig`. Raises UsageError for a mistake, before anything is written.
    """
    cfg = with_backbone(configure(PretrainConfig, config, data=data, vocab=vocab, **settings))
    with joined(cfg.device) as world:
        task, dataset = prepare(cfg, world)
        return train(task, dataset, opened(cfg, data=dataset), cfg.out)


def with_backbone(cfg: PretrainConfig) -> PretrainConfig:
    """The config with the backbone that is meant where none is named. Raises UsageError."""
    if cfg.backbone:
        return cfg
    found = open_weights(cfg.start, untrained=True).architecture if cfg.start else DEFAULT
    if not found:
        raise UsageError(f"`start` {plain(cfg.start)} does not say of which architecture it is; name the `backbone`")
    return replace(cfg, backbone=found)


def prepare(cfg: PretrainConfig, world: World) -> tuple["PretrainTask", Dataset]:
    """What a run trains, and on what. Raises UsageError for a mistake in the configuration."""
    cfg = with_backbone(cfg)
    required(cfg, "data")
    dataset = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col, cache_gb=cfg.cache_gb)
    if "labels" in needs_of(cfg.objective) or cfg.per_label:
        required(cfg, "vocab")
    vocabulary = as_vocabulary(cfg.vocab)
    shares = None
    if cfg.per_label:  # one process reads the captions
        from catlip.data.balance import fair_shares

        shares = from_rank_0(lambda: fair_shares(dataset, vocabulary, cfg.per_label, cfg.out))
        dataset, vocabulary = thinned(dataset, shares.keep), shares.thinned(vocabulary)
    task = make_task(cfg, open_context(cfg, dataset, vocabulary, world.device))
    task.shares = shares
    return task, dataset


def open_context(cfg: Any, dataset: Dataset, vocabulary: Vocabulary, device: torch.device) -> Context:
    """What the objective needs of the captions: tokens, embeddings. cfg: of pre-training, or of what follows on it."""
    needs = needs_of(cfg.objective)
    # One process reads the captions: of remote data they are all that is fetched, and others would fetch it again.
    tokenizer = from_rank_0(lambda: open_tokenizer(cfg, dataset)) if "tokens" in needs else None
    sentences = None
    if "sentences" in needs:
        from catlip.models.sentences import Sentences

        prepared = from_rank_0(lambda: Sentences.of_run(cfg.sentences, dataset, str(device)))
        sentences = prepared.opened(cfg.sentences.sentence_encoder)
    return Context(vocabulary, tokenizer, cfg.text, device, sentences)


def as_vocabulary(vocab: Any) -> Vocabulary:
    """A vocabulary as it is, from its file, or an empty one. Raises UsageError."""
    if isinstance(vocab, Vocabulary):
        return vocab
    return Vocabulary.load(vocab) if vocab else Vocabulary(synsets=[], names=[], counts=[], samples=0)


def open_tokenizer(cfg: PretrainConfig, dataset: Dataset) -> Tokenizer:
    """The run's own tokenizer if it has one already, else a new one, trained on the captions if so configured."""
    if cfg.out and (Path(cfg.out) / FILE).is_file():
        return Tokenizer.load(Path(cfg.out) / FILE, cfg.tokens.context)
    return make_tokenizer(cfg.tokens, (caption for captions in dataset.captions() for caption in captions))


def make_task(cfg: PretrainConfig, context: Context) -> "PretrainTask":
    """Encoder, head and augmentation with their initial weights: a function of the settings alone."""
    torch.manual_seed(cfg.seed)
    curriculum = cfg.curriculum
    encoder = Encoder.create(
        cfg.backbone,
        image_size=cfg.image_size,
        any_size=bool(curriculum.scales or curriculum.low_res),
        drop_patches=curriculum.patch_keep < 1,
    )
    encoder.check_sizes(*curriculum.sizes)
    objective = build_objective(cfg.objective, encoder, context)
    if cfg.start:
        if cfg.optim.lr > GENTLE:
            warn(
                f"`lr` {cfg.optim.lr:g} is a rate for random weights: much of what `start` knows is likely to be lost. "
                "The verb `adapt` protects it"
            )
        say(start_from(cfg.start, encoder, getattr(objective, "classifier", None), context.vocabulary.synsets))
    return PretrainTask(cfg, encoder, objective, context)


class PretrainTask(Task):
    """Random crops of captioned images, with the labels, tokens or embeddings that the objective needs."""

    shares: "Shares | None" = None  # what the dataset was thinned to

    def __init__(self, cfg: PretrainConfig, encoder: Encoder, objective: nn.Module, context: Context) -> None:
        super().__init__(
            objective, built_augment(cfg.augment), encoder=encoder, image_size=cfg.image_size, curriculum=cfg.curriculum
        )
        self.cfg, self.context = cfg, context

    def batches(self, dataset: Dataset, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        return self.batches_of(CaptionBatches, self.cfg.crop, dataset, order, steps, rank, world)

    def batches_of(
        self,
        kind: type[CaptionBatches],
        crop: CropConfig,
        dataset: Dataset,
        order: Order,
        steps: Steps,
        rank: int,
        world: int,
    ) -> CaptionBatches:
        """Batches with what the objective reads of the captions."""
        vocabulary, sentences = self.context.vocabulary, self.context.sentences
        return kind(
            dataset,
            order,
            steps,
            vocabulary=vocabulary,
            labeler=vocabulary.labeler(),
            crop=crop,
            tokenizer=self.context.tokenizer,
            sentences=sentences.store if sentences is not None else None,
            mean=self.cfg.sentences.captions_used == "mean",
            rank=rank,
            world=world,
        )

    @property
    def described(self) -> str:
        return f"{len(self.context.vocabulary):,} classes; {self.cfg.backbone} at {self.image_size} px"

    @property
    def n_classes(self) -> int:
        return len(self.context.vocabulary)

    @property
    def start(self) -> Any:
        """Where the weights are from that the encoder began with; "" for random ones."""
        return self.cfg.start

    def fingerprint(self) -> dict[str, Any]:
        init = {"init": fingerprint(self.start)} if self.start else {}
        sentences = {"sentences": self.context.sentences.fingerprint} if self.context.sentences is not None else {}
        return {"vocabulary": self.context.vocabulary.hash, **init, **sentences}

    def begin(self, out: Path) -> None:
        self.context.vocabulary.save(out / "vocab.tsv")
        if self.shares is not None:
            self.shares.save(out)
        if self.context.tokenizer is not None:
            self.context.tokenizer.save(out / FILE)

    def evaluation(self, out: Path, world: World) -> Evaluation | None:
        """Held-out mAP of the labels, kNN evaluation on a labelled set."""
        cfg, parts = self.cfg, []
        # Imported where they are asked for: a run that measures nothing loads nothing of the evaluation room.
        if cfg.held_out and getattr(self.objective, "classifier", None) is None:
            say("`held_out`: this objective has no classifier of labels, so nothing is measured there")
        elif cfg.held_out:
            from catlip.evaluation.held_out import held_out_evaluation

            source = open_dataset(cfg.held_out, image_col=cfg.image_col, text_col=cfg.text_col)
            vocabulary, limit, record = self.context.vocabulary, cfg.held_out_limit, out if world.rank == 0 else None
            parts.append(held_out_evaluation(source, vocabulary, self.encoder.pixels, limit, world.device, record))
        if cfg.probe:
            from catlip.evaluation.knn import knn_evaluation

            parts.append(knn_evaluation(cfg.probe, world.device))
        if not parts:
            return None
        return lambda task: {name: value for part in parts for name, value in part(task).items()}

    def finish(self, out: Path, world: World) -> None:
        """Write the encoder with its classifier, the text side, and all other weights."""
        if world.rank:
            return
        vocabulary, objective = self.context.vocabulary, self.objective
        classifier, card = getattr(objective, "classifier", None), {}
        if classifier is not None:
            pairs = zip(vocabulary.synsets, vocabulary.names, strict=True)
            lemmas = {synset: name.replace("_", " ") for synset, name in pairs}
            compete = getattr(getattr(objective, "cfg", None), "loss", "") == "softmax"
            card = {"label_names": vocabulary.synsets, "label_descriptions": lemmas, "multi_label": not compete}
        self.encoder.save(out / ENCODER_FOLDER, classifier, **card)
        if hasattr(objective, "save"):
            objective.save(out)
        self.save_rest(out)


def speed_of(cfg: PretrainConfig, seconds: float) -> float:
    """Images a second that a run would make, measured for so long; nothing is written."""
    with joined(cfg.device) as world:
        return Session.of(*prepare(cfg, world), cfg, world).speed(seconds)
