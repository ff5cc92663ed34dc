"""A dual encoder: images and captions as vectors of one space, for contrastive objectives, zero-shot and retrieval.

The text side is a tower that is trained along, or frozen sentence embeddings. What the encoder's own folder does not
hold is written beside it, as `text/`: the tower and its tokenizer, or the whitening and the name of the sentence
encoder; the projections; the temperature. The encoder stays a plain timm model that knows nothing of text.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip.atomic import write_text
from catlip.data.batches import Batch
from catlip.errors import UsageError, first_line
from catlip.labels.tokenizer import FILE, Tokenizer
from catlip.models.encoder import Encoder
from catlip.models.model_folders import HUB, download, read_json
from catlip.models.sentences import FrozenText, Sentences
from catlip.models.state_dicts import read_tensors, write_tensors
from catlip.models.text_tower import TextConfig, TextTower
from catlip.models.weights import Source, load, origin

TEXT_FOLDER = "text"
Side = Literal["tower", "frozen"]  # a text tower that is trained along, or frozen sentence embeddings
READS: dict[Side, str] = {"tower": "tokens", "frozen": "sentences"}  # what each needs of a batch
MAX_SCALE = 100.0  # CLIP, section 2.5: beyond this training became unstable


class Projection(nn.Module):
    """Deep InfoMax's encode-and-dot block: MLP plus a shortcut that starts as a slightly noisy copy, then a norm.

    center: what comes in is standardised first, over the batch and later by the running statistics.
    """

    def __init__(self, inputs: int, width: int, center: bool = False) -> None:
        super().__init__()
        self.center = nn.BatchNorm1d(inputs, affine=False) if center else nn.Identity()
        first = nn.Linear(inputs, width, bias=False)  # the norm after it has a bias
        self.mlp = nn.Sequential(first, nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
        self.shortcut = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
        with torch.no_grad():
            self.shortcut.weight.fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.center(x)
        return self.norm(self.mlp(x) + self.shortcut(x))


class DualEncoder(nn.Module):
    """Encoder, text side and what makes them comparable. embed_images, embed_captions: unit vectors float32 [B, D]."""

    def __init__(
        self,
        encoder: Encoder,
        reader: Tokenizer | Sentences,
        cfg: TextConfig,
        *,
        embed: int,
        scale: float,
        bias: float | None = None,
        mlp: int = 0,
        center: bool = False,
    ) -> None:
        """reader: what turns captions into the text side's input. A tokenizer: a tower is made (cfg: its size); frozen
        sentence embeddings: those, with a linear projection of their own.

        embed: length of the vectors; 0: the encoder's own, its pooled vector as it is, or with frozen embeddings their
        own, which the image is projected to. scale, bias: at the start. mlp: both vectors go through a `Projection` to
        this length instead (CLIP-Lite); center: of the image's.
        """
        super().__init__()
        self.encoder, self.reader = encoder, reader
        self._card: dict[str, Any] = {"embed": embed, "mlp": mlp, "center": center}
        self.image_projection: nn.Module = nn.Identity()
        self.text_projection: nn.Module = nn.Identity()
        if embed and not mlp:
            self.image_projection = _linear(encoder.width, embed)
        self.text, length = text_side(reader, cfg, embed or encoder.width)
        if isinstance(self.text, FrozenText) and not mlp:
            if embed:
                self.text_projection = _linear(length, embed)
            else:
                self.image_projection = nn.Linear(encoder.width, length)
        if isinstance(reader, Sentences):
            self._card |= {"sentences": {**reader.card, "shape": list(reader.matrix.shape)}}
        else:
            self._card |= {"context": reader.context, "text": asdict(cfg)}
        if mlp:
            self.image_projection = Projection(encoder.width, mlp, center)
            self.text_projection = Projection(length, mlp)
        # One element, not none: FSDP shards no scalars.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.logit_bias = nn.Parameter(torch.tensor([bias])) if bias is not None else None

    def embed_images(self, x: Tensor) -> Tensor:
        """x: as Encoder.pooled takes it."""
        return self.embed_pooled(self.encoder.pooled(x))

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """pooled: what Encoder.pooled returned, [B, encoder.width]."""
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def embed_captions(self, read: Tensor) -> Tensor:
        """read: what the reader makes of captions, tokens int64 [B, T] or frozen embeddings float32 [B, E]."""
        return F.normalize(self.text_projection(self.text(read)).float(), dim=-1)

    @torch.no_grad()
    def embed_texts(self, texts: list[str], batch: int = 512) -> Tensor:
        """Unit vectors [len(texts), D] on the CPU, so many at a time."""
        device = self.logit_scale.device
        parts = (self.reader(texts[start : start + batch]) for start in range(0, len(texts), batch))
        return torch.cat([self.embed_captions(torch.from_numpy(part).to(device)).cpu() for part in parts])

    def scale(self) -> Tensor:
        """The factor of all similarities, MAX_SCALE at most: a scalar."""
        capped: Tensor = _Capped.apply(self.logit_scale, math.log(MAX_SCALE))  # pyright: ignore[reportAssignmentType]
        return capped.exp().squeeze()

    def bias(self) -> Tensor:
        """What is added to all similarities: a scalar. Only where the loss has one."""
        assert self.logit_bias is not None
        return self.logit_bias.sum()  # of one element; with squeeze, backward crashes where FSDP spreads the weights

    def save(self, out: Path) -> None:
        """Write everything but the encoder into `out`/text, for zero-shot and retrieval; `load_dual` reads it."""
        to = out / TEXT_FOLDER
        to.mkdir(parents=True, exist_ok=True)
        write_text(to / "config.json", json.dumps(self._card, indent=2) + "\n")
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}
        write_tensors(to / "model.safetensors", state)
        if isinstance(self.reader, Tokenizer):
            self.reader.save(to / FILE)


def text_side(reader: Tokenizer | Sentences, cfg: TextConfig, embed: int) -> tuple["TextTower | FrozenText", int]:
    """(the module that takes what the reader makes of captions, length of its vectors). embed: of a tower's."""
    if isinstance(reader, Sentences):
        frozen = FrozenText(torch.from_numpy(reader.mean), torch.from_numpy(reader.matrix))
        return frozen, frozen.width
    return TextTower(reader.size, reader.context, cfg, embed), embed


def read_by(text: nn.Module, batch: Batch) -> Tensor:
    """What a text side takes of a batch."""
    read = batch.sentences if isinstance(text, FrozenText) else batch.tokens
    assert read is not None, "the loader was not told to read captions"
    return read


def _linear(inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    return layer


class _Capped(torch.autograd.Function):
    """min(x, cap), whose gradient vanishes beyond the cap only where following it would lead further up.

    A plain clamp has no gradient there, so that x would stay for ever; and the parameter itself cannot be set in
    forward, where FSDP shows but a copy of it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x >= cap)
        return x.clamp(max=cap)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (beyond,) = ctx.saved_tensors
        return grads[0].masked_fill(beyond & (grads[0] < 0), 0.0), None


def text_folder(source: Source) -> Path | None:
    """Where the text tower lies beside an encoder (see `catlip.load`), if there is one."""
    name = origin(source)
    if not name:
        return None
    folder = (download(name, (f"{TEXT_FOLDER}/*",)) if name.startswith(HUB) else Path(name)) / TEXT_FOLDER
    return folder if folder.is_dir() else None


def load_dual(source: Source, sentence_encoder: Any = None) -> DualEncoder:
    """The dual encoder of a run folder, "hf-hub:org/name", a Run, or an Encoder loaded from one, ready to embed.

    sentence_encoder: of a run with frozen sentence embeddings, where it is now if not where it was. Raises UsageError
    for a run without a text side.
    """
    folder = text_folder(source)
    if folder is None:
        name = origin(source) or "this encoder"
        raise UsageError(
            f"{name} has no text tower (no folder {TEXT_FOLDER}/): `catlip align RUN --data CAPTIONED --out NEW` "
            "trains one"
        )
    encoder = load(source)
    card, state = read_json(folder / "config.json"), read_tensors(folder / "model.safetensors")
    bias = 0.0 if "logit_bias" in state else None
    try:
        reader, text = _reader(folder, card, sentence_encoder)
        mlp, center = card["mlp"], card["center"]
        dual = DualEncoder(encoder, reader, text, embed=card["embed"], scale=1.0, bias=bias, mlp=mlp, center=center)
        dual.load_state_dict(state | {f"encoder.{k}": v for k, v in encoder.state_dict().items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"{folder} cannot be loaded: {first_line(error)}") from None
    return dual.eval()


def _reader(folder: Path, card: dict[str, Any], sentence_encoder: Any) -> tuple[Tokenizer | Sentences, TextConfig]:
    if "sentences" not in card:
        return Tokenizer.load(folder / FILE, card["context"]), TextConfig(**card["text"])
    reader, (width, kept) = Sentences.of_card(card["sentences"], sentence_encoder), card["sentences"]["shape"]
    reader.mean, reader.matrix = np.zeros(width, np.float32), np.zeros((width, kept), np.float32)  # loaded below
    return reader, TextConfig()
