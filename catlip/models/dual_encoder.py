"""A dual encoder: images and captions as vectors of one space, for contrastive objectives, zero-shot and retrieval.

What the encoder's own folder does not hold is written beside it, as `text/`: the text tower, the image's projection,
the temperature and the tokenizer. The encoder stays a plain timm model that knows nothing of text.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip.atomic import write_text
from catlip.errors import UsageError, first_line
from catlip.labels.tokenizer import FILE, Tokenizer
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig, TextTower
from catlip.models.weights import HUB, Source, download, load, origin, read_json, read_tensors, write_tensors

TEXT_FOLDER = "text"
MAX_SCALE = 100.0  # CLIP, section 2.5: beyond this training became unstable


class Projection(nn.Module):
    """Deep InfoMax's encode-and-dot block: MLP plus a shortcut that starts as a slightly noisy copy, then a norm."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        first = nn.Linear(inputs, width, bias=False)  # the norm after it has a bias
        self.mlp = nn.Sequential(first, nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width))
        self.shortcut = nn.Linear(inputs, width)
        self.norm = nn.LayerNorm(width)
        nn.init.uniform_(self.shortcut.weight, -0.01, 0.01)
        with torch.no_grad():
            self.shortcut.weight.fill_diagonal_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.mlp(x) + self.shortcut(x))


class DualEncoder(nn.Module):
    """Encoder, text tower and what makes them comparable. embed_images, embed_captions: unit vectors float32 [B, D]."""

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Tokenizer,
        cfg: TextConfig,
        *,
        embed: int,
        scale: float,
        bias: float | None = None,
        mlp: int = 0,
    ) -> None:
        """embed: length of the vectors; 0: the encoder's own, its pooled vector as it is. scale, bias: at the start.

        mlp: both vectors go through a `Projection` to this length instead (CLIP-Lite); 0: a linear one of the image.
        """
        super().__init__()
        self.encoder, self.tokenizer = encoder, tokenizer
        self.image_projection = nn.Linear(encoder.width, embed, bias=False) if embed else nn.Identity()
        if isinstance(self.image_projection, nn.Linear):
            nn.init.normal_(self.image_projection.weight, std=encoder.width**-0.5)
        self.text_projection: nn.Module = nn.Identity()
        if mlp:
            self.image_projection = Projection(encoder.width, mlp)
            self.text_projection = Projection(embed or encoder.width, mlp)
        self._card = {"embed": embed, "mlp": mlp, "context": tokenizer.context, "text": asdict(cfg)}
        self.text = TextTower(tokenizer.size, tokenizer.context, cfg, embed or encoder.width)
        # One element, not none: FSDP shards no scalars.
        self.logit_scale = nn.Parameter(torch.tensor([math.log(scale)]))
        self.logit_bias = nn.Parameter(torch.tensor([bias])) if bias is not None else None

    def embed_images(self, x: Tensor) -> Tensor:
        """x: as Encoder.pooled takes it."""
        return self.embed_pooled(self.encoder.pooled(x))

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """pooled: what Encoder.pooled returned, [B, encoder.width]."""
        return F.normalize(self.image_projection(pooled).float(), dim=-1)

    def embed_captions(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, T], of the tokenizer that the tower was trained with."""
        return F.normalize(self.text_projection(self.text(tokens)).float(), dim=-1)

    def scale(self) -> Tensor:
        """The factor of all similarities, MAX_SCALE at most: a scalar."""
        capped: Tensor = _Capped.apply(self.logit_scale, math.log(MAX_SCALE))  # pyright: ignore[reportAssignmentType]
        return capped.exp().squeeze()

    def bias(self) -> Tensor:
        """What is added to all similarities: a scalar. Only where the loss has one."""
        assert self.logit_bias is not None
        return self.logit_bias.sum()  # of one element; with squeeze, backward crashes where FSDP spreads the weights

    def save(self, out: Path) -> None:
        """The text side, for zero-shot and retrieval, as a trained objective is saved."""
        self.save_text(out, self.tokenizer)

    def save_text(self, folder: Path, tokenizer: Tokenizer) -> None:
        """Write everything but the encoder into `folder`/text; `load_dual` reads it."""
        to = folder / TEXT_FOLDER
        to.mkdir(parents=True, exist_ok=True)
        write_text(to / "config.json", json.dumps(self._card, indent=2) + "\n")
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("encoder.")}
        write_tensors(to / "model.safetensors", state)
        tokenizer.save(to / FILE)


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


def load_dual(source: Source) -> tuple[DualEncoder, Tokenizer]:
    """The dual encoder of a run folder, "hf-hub:org/name", a Run, or an Encoder loaded from one, ready to embed.

    Raises UsageError for a run without a text tower.
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
        tokenizer = Tokenizer.load(folder / FILE, card["context"])
        text, embed, mlp = TextConfig(**card["text"]), card["embed"], card.get("mlp", 0)
        dual = DualEncoder(encoder, tokenizer, text, embed=embed, scale=1.0, bias=bias, mlp=mlp)
        dual.load_state_dict(state | {f"encoder.{k}": v for k, v in encoder.state_dict().items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UsageError(f"{folder} cannot be loaded: {first_line(error)}") from None
    return dual.eval(), tokenizer
