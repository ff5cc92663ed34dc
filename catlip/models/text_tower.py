"""The text tower: a transformer over a caption's tokens, one vector a caption (CLIP, arXiv 2103.00020, section 2.4).

Names and shapes of the weights are those of open_clip's TextTransformer, so state dicts go both ways. Causal is
CLIP's; bidirectional (SigLIP's) equals open_clip's with no_causal_mask and use_pad_mask.
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catlip.errors import UsageError

HEAD_WIDTH = 64  # of an attention head, in every CLIP


@dataclass(kw_only=True, slots=True)
class TextConfig:
    """Settings of a text tower; the defaults are those of CLIP ViT-B."""

    text_width: int = 512  # a multiple of 64, the width of an attention head
    text_layers: int = 12
    causal: bool | None = None  # a token sees only those before it, or all; None: as the objective was published


class TextTower(nn.Module):
    """tokens int64 [B, T], T <= context, padded with 0 -> [B, embed]. EOS is the highest id of a row."""

    def __init__(self, vocab_size: int, context: int, cfg: TextConfig, embed: int) -> None:
        """vocab_size, context: of the tokenizer. Raises UsageError for a width that heads of 64 do not fill."""
        super().__init__()
        width = cfg.text_width
        if width < HEAD_WIDTH or width % HEAD_WIDTH:
            raise UsageError(f"`text_width` {width} is no multiple of {HEAD_WIDTH}, the width of an attention head")
        self.context, self.cfg = context, cfg
        self.causal = cfg.causal is not False
        self.token_embedding = nn.Embedding(vocab_size, width)
        self.positional_embedding = nn.Parameter(torch.empty(context, width))
        self.transformer = _Transformer(width, cfg.text_layers)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed))
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.shape[1] > self.context:
            raise UsageError(f"captions of {tokens.shape[1]} tokens for a text tower with `context` {self.context}")
        if tokens.is_cuda:
            tokens = self.few_lengths(tokens)
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        # If causal, nothing after EOS reaches it, so that padding needs no mask.
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        x = self.transformer(x, later if self.causal else tokens == 0, self.causal)
        # Only the output at EOS is used: the last norm and the projection need no other.
        x = self.ln_final(x[torch.arange(len(x), device=x.device), tokens.argmax(1)])
        return x @ self.text_projection

    def few_lengths(self, tokens: Tensor) -> Tensor:
        """Padded to a multiple of 8: cuDNN plans attention anew for every length that it has not met, which takes up
        to a second and a half of the first step."""
        length = tokens.shape[1]
        return F.pad(tokens, (0, min(-length % 8, self.context - length)))


class _Transformer(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(_Block(width, layers) for _ in range(layers))

    def forward(self, x: Tensor, mask: Tensor, causal: bool) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask, causal)
        return x


class _Block(nn.Module):
    """Pre-norm attention and MLP, each added to what came in."""

    def __init__(self, width: int, layers: int) -> None:
        """layers: of the whole tower. The deeper it is, the less a block adds at the start, as in CLIP."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, width // HEAD_WIDTH, batch_first=True)
        self.ln_2 = nn.LayerNorm(width)
        c_fc, c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=nn.GELU(), c_proj=c_proj))
        nn.init.normal_(self.attn.in_proj_weight, std=width**-0.5)
        nn.init.normal_(self.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(c_fc.weight, std=(2 * width) ** -0.5)
        nn.init.normal_(c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def forward(self, x: Tensor, mask: Tensor, causal: bool) -> Tensor:
        """mask: true where nothing is seen, [T, T] if causal and [B, T], of the keys, if not."""
        y = self.ln_1(x)
        if causal:
            seen = self.attn(y, y, y, need_weights=False, attn_mask=mask, is_causal=True)[0]
        else:
            seen = self.attn(y, y, y, need_weights=False, key_padding_mask=mask)[0]
        x = x + seen
        return x + self.mlp(self.ln_2(x))
