"""LiT: a text tower learns to describe what a frozen encoder sees (arXiv 2111.07991). The verb `align`.

The encoder does not change, so each picture goes through it once, as evaluation shows it, and the
text tower trains on the vectors: minutes, where the pictures themselves would take hours.
"""

import math
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from catlip.data.batches import Batch
from catlip.data.images import left_out
from catlip.data.open import open_dataset
from catlip.errors import UsageError
from catlip.evaluation.features import CaptionFeatures, caption_features
from catlip.labels.tokenizer import Tokenizer, TokenizerConfig, make_tokenizer
from catlip.models.text import TextConfig
from catlip.models.weights import ENCODER_FOLDER, load, model_folder
from catlip.notices import say
from catlip.objectives.align import Align as AlignSettings
from catlip.objectives.align import AlignObjective
from catlip.training.distributed import one_device
from catlip.training.log import append_json, duration
from catlip.training.optim import OptimConfig, learning_rate, make_optimizers
from catlip.training.runfolder import write_card


@dataclass(kw_only=True, slots=True)
class Align:
    """Settings of `catlip align`."""

    run: str  # run folder, model folder, or timm:NAME
    data: str  # captioned pictures, as `catlip pretrain` takes them
    out: str  # new run folder: the encoder as it is, and a text tower beside it
    image_col: str | None = None
    text_col: str | None = None
    steps: int = 1500
    batch_size: int = 256
    seed: int = 0
    device: str = "auto"
    tokens: TokenizerConfig = field(default_factory=lambda: TokenizerConfig(tokens=4096, context=32))
    # A small tower, and a projection of the picture beside it: for small corpora; sizes were not tuned.
    objective: AlignSettings = field(default_factory=lambda: AlignSettings(embed=256))
    text: TextConfig = field(default_factory=lambda: TextConfig(text_width=256, text_layers=3))
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=0.1))


def align(cfg: Align) -> Path:
    """Train a text tower on a frozen encoder's vectors; the new run folder.

    Raises UsageError for data without captions, a batch that is larger than the data, or an --out in use.
    """
    began = time.perf_counter()
    out = Path(cfg.out)
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"`out` {out} is not empty; choose another folder")
    if cfg.steps < 1 or cfg.batch_size < 2:
        raise UsageError("`steps` is 1 or more, `batch_size` 2 or more")
    encoder, device = load(cfg.run), one_device(cfg.device)
    source = open_dataset(cfg.data, image_col=cfg.image_col, text_col=cfg.text_col)
    data = with_captions(caption_features(encoder, source, device, said=_progress(len(source))), cfg.data)
    left_out(data=data.unreadable)
    if len(data) < cfg.batch_size:
        raise UsageError(f"`batch_size` {cfg.batch_size} for {len(data):,} pictures with captions; lower it")
    torch.manual_seed(cfg.seed)
    tokenizer = make_tokenizer(cfg.tokens, (caption for some in data.captions for caption in some))
    objective = AlignObjective(encoder, tokenizer, cfg.objective, cfg.text).to(device)
    say(f"{len(data):,} pictures with {sum(map(len, data.captions)):,} captions; {tokenizer.size:,} tokens")
    out.mkdir(parents=True, exist_ok=True)
    _fit(objective, data, tokenizer, cfg, out)
    _write(objective.eval(), tokenizer, cfg, out)
    say(
        f"{out}: text tower ready after {duration(time.perf_counter() - began)}. Next: catlip zeroshot {out}, "
        f"catlip retrieve {out}"
    )
    return out


def with_captions(data: CaptionFeatures, name: str) -> CaptionFeatures:
    """Without the pictures that have no caption. Raises UsageError if none has one."""
    kept = [i for i, captions in enumerate(data.captions) if captions]
    if not kept:
        raise UsageError(f"`data` {name}: not one picture has a caption")
    if len(kept) == len(data):
        return data
    return CaptionFeatures(
        [data.keys[i] for i in kept], [data.captions[i] for i in kept], data.pooled[kept], data.unreadable
    )


def _fit(objective: AlignObjective, data: CaptionFeatures, tokenizer: Tokenizer, cfg: Align, out: Path) -> None:
    """One caption of each picture a step, drawn anew; log.jsonl beside it."""
    device = objective.logit_scale.device
    tokens = torch.from_numpy(tokenizer([caption for some in data.captions for caption in some]))
    lengths = torch.tensor([len(some) for some in data.captions])
    first = lengths.cumsum(0) - lengths
    optimizers = make_optimizers(objective, cfg.optim)
    parameters = [p for p in objective.parameters() if p.requires_grad]
    budget, since = cfg.steps * cfg.batch_size, time.perf_counter()
    generator = torch.Generator().manual_seed(cfg.seed)
    objective.train()
    for step, rows in zip(range(cfg.steps), _draws(len(data), cfg.batch_size, generator), strict=False):
        picked = first[rows] + (torch.rand(len(rows), generator=generator) * lengths[rows]).long()
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate(step * cfg.batch_size, budget, cfg.optim)
        some = tokens[picked]
        some = some[:, : int(some.ne(0).sum(1).max())]  # no step pays for padding that none of its captions needs
        loss, metrics = objective.loss(data.pooled[rows].to(device), _batch(some.to(device), device))
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cfg.optim.clip or math.inf)
        for optimizer in optimizers:
            optimizer.step()
        if (step + 1) % max(cfg.steps // 10, 1) == 0 or step + 1 == cfg.steps:
            seen, took = (step + 1) * cfg.batch_size, time.perf_counter() - since
            entry = {"samples": seen, **{name: round(float(value), 5) for name, value in metrics.items()}}
            append_json(out / "log.jsonl", entry)
            say(
                f"step {step + 1:,}/{cfg.steps:,} | loss {entry['loss']:.3f} of {math.log(cfg.batch_size):.3f} | "
                f"{seen / took:,.0f} pairs/s"
            )


def _batch(tokens: Tensor, device: torch.device) -> Batch:
    none = torch.empty(0, dtype=torch.int64)
    return Batch(torch.empty(0, device=device), none, none, none, [], [], tokens)


def _draws(length: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Epoch after epoch in random order; what is left over of an epoch is not used."""
    while True:
        order = torch.randperm(length, generator=generator)
        yield from (order[start : start + size] for start in range(0, length - size + 1, size))


def _write(objective: AlignObjective, tokenizer: Tokenizer, cfg: Align, out: Path) -> None:
    objective.save_text(out, tokenizer)
    if cfg.run.startswith("timm:"):
        objective.encoder.save(out / ENCODER_FOLDER)
    else:
        shutil.copytree(model_folder(cfg.run), out / ENCODER_FOLDER)
    if (vocabulary := Path(cfg.run) / "vocab.tsv").is_file():
        shutil.copy(vocabulary, out / "vocab.tsv")
    write_card(out, cfg, {"aligned": cfg.run})


def _progress(total: int):
    def said(done: int) -> None:
        if done == total or done % 12_800 == 0:
            say(f"{done:,} of {total:,} pictures through the encoder")

    return said
