"""An encoder in open_clip's folder layout: open_clip.create_model_and_transforms("local-dir:FOLDER").

open_clip knows two ways to hold an image tower. A timm backbone travels under its timm name where timm makes it with
the same picture size; a plain ViT of any other size becomes open_clip's own ViT. That one has no bias in its patch
projection: ours is added to the positions, which comes to the same sum.

A text tower goes along, with its tokenizer, if open_clip's folders can describe it: both sides are projected linearly
(CLIP, LiT), and a token sees only those before it.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from catlip.errors import UsageError
from catlip.export.outputs import Results
from catlip.labels.tokenizer import END, FILE, PAD, START, Tokenizer
from catlip.models.dual import load_dual, text_folder
from catlip.models.encoder import Encoder, classifiers, misfit
from catlip.models.text import HEAD_WIDTH
from catlip.models.weights import OPEN_CLIP_FILES

CAPTIONS = ["a dog", "", "two men eating hot dogs in front of a red brick wall on a rainy day"]  # that are compared
# Of an encoder without text side: open_clip cannot do without one, so it gets the smallest, all zeros.
NO_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}


@dataclass(kw_only=True, slots=True)
class TextTower:
    """The text side of a dual encoder, and what joins both sides.

    state: names as in open_clip's TextTransformer (token_embedding.weight, transformer.resblocks.0., text_projection).
    """

    config: dict[str, Any]  # open_clip's text_cfg
    state: dict[str, Tensor]
    image_projection: Tensor  # [E, D]: pooled pictures -> the shared space
    image_bias: Tensor | None = None  # [E]
    logit_scale: float  # the logarithm, as open_clip stores it
    logit_bias: float | None = None  # SigLIP's
    # Where it comes from, to be written and compared with: token ids of captions, and what encode_text has to return.
    tokenizer: Tokenizer | None = None
    embed: Callable[[Tensor], Tensor] | None = None


def text_tower_of(run: str) -> tuple[TextTower | None, str]:
    """(the text tower that a run has learned, what has to be said); None if there is none, or open_clip cannot hold it.

    Raises UsageError for a text tower that cannot be read.
    """
    empty = "open_clip's text side is empty: {}. encode_image gives the pooled vector"
    if text_folder(run) is None:
        return None, empty.format("this run has learned none")
    dual, tokenizer = load_dual(run)
    if not isinstance(dual.text_projection, nn.Identity):
        return None, empty.format("it has no place for the projections of CLIP-Lite, so this run's is left out")
    if not dual.text.causal:
        return None, empty.format(
            "its folders cannot say that padding is masked, as it is where a token sees all others (SigLIP), so this "
            "run's is left out"
        )
    linear = dual.image_projection
    cfg = dual.text.cfg
    return TextTower(
        config={
            "context_length": tokenizer.context,
            "vocab_size": tokenizer.size,
            "width": cfg.text_width,
            "heads": cfg.text_width // HEAD_WIDTH,
            "layers": cfg.text_layers,
        },
        state=dual.text.state_dict(),
        image_projection=linear.weight.detach() if isinstance(linear, nn.Linear) else torch.eye(dual.encoder.width),
        logit_scale=dual.scale().log().item(),
        logit_bias=dual.bias().item() if dual.logit_bias is not None else None,
        tokenizer=tokenizer,
        embed=dual.text,
    ), "text tower and tokenizer included: encode_text, open_clip.get_tokenizer"


def _save_tokenizer(folder: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """Write what open_clip's `get_tokenizer` reads (by way of transformers); what text_cfg has to say of it.

    Nothing for CLIP's own tokens, which have no padding of their own and which open_clip brings.
    """
    from tokenizers import Tokenizer as Bpe
    from tokenizers.processors import TemplateProcessing

    tokenizer.save(folder / FILE)
    bpe = Bpe.from_file(str(folder / FILE))
    if bpe.token_to_id(PAD) is None:
        (folder / FILE).unlink()
        return {}
    marks = [(START, tokenizer.start), (END, tokenizer.end)]
    bpe.post_processor = TemplateProcessing(single=f"{START} $A {END}", special_tokens=marks)
    bpe.save(str(folder / FILE))
    card = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": tokenizer.context,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    return {"hf_tokenizer_name": FILE, "tokenizer_kwargs": {"clean": "lower"}}


def to_open_clip(
    encoder: Encoder, folder: Path, text: TextTower | None = None
) -> tuple[Callable[[Tensor], Results], Callable[[Tensor], Results]]:
    """Write the folder; (the encoder's own image embedding, that of the reloaded folder), both under "pooled"; with a
    text tower that can be asked also the embeddings of some captions, under "text".

    Without text tower the embedding is the pooled vector, and the folder's text side knows nothing.
    Raises UsageError for a backbone that open_clip cannot hold.
    """
    open_clip = _open_clip()
    projection = torch.eye(encoder.width) if text is None else text.image_projection.detach().float().cpu()
    bias = None if text is None or text.image_bias is None else text.image_bias.detach().float().cpu()
    vision, visual = _visual(encoder, projection, bias)
    model_cfg: dict[str, Any] = {
        "embed_dim": len(projection),
        "vision_cfg": vision,
        "text_cfg": NO_TEXT if text is None else text.config,
        "custom_text": True,  # the text side's names begin with "text."
    }
    if text is not None and text.logit_bias is not None:
        model_cfg["init_logit_bias"] = text.logit_bias
    if text is not None and text.tokenizer is not None:
        model_cfg["text_cfg"] = text.config | _save_tokenizer(folder, text.tokenizer)
    arguments = {name: value for name, value in model_cfg.items() if name != "custom_text"}
    model = open_clip.CustomTextCLIP(**json.loads(json.dumps(arguments)))
    _fill(model.visual, visual, f"{encoder.architecture}'s")
    if text is None:
        for value in model.text.parameters():
            nn.init.zeros_(value)
    else:
        _fill(model.text, text.state, "the text tower's")
        model.logit_scale.data.fill_(text.logit_scale)
    cfg = encoder.backbone.pretrained_cfg
    preprocess = {
        "mean": encoder.mean.flatten().tolist(),
        "std": encoder.std.flatten().tolist(),
        "interpolation": "bicubic" if cfg.get("interpolation") == "bicubic" else "bilinear",
        "resize_mode": "shortest",
    }
    card = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess}, indent=2)
    (folder / OPEN_CLIP_FILES[0]).write_text(card + "\n", encoding="utf-8")
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / OPEN_CLIP_FILES[1])
    again = open_clip.create_model_and_transforms(f"local-dir:{folder}")[0].eval()
    asked = None
    if text is not None and text.tokenizer is not None and text.embed is not None:
        asked = text.embed, torch.from_numpy(text.tokenizer(CAPTIONS))

    @torch.no_grad()
    def ours(x: Tensor) -> Results:
        found = {"pooled": nn.functional.linear(encoder.pooled(x), projection, bias)}
        return found if asked is None else {**found, "text": asked[0](asked[1])}

    @torch.no_grad()
    def theirs(x: Tensor) -> Results:
        found = {"pooled": again.encode_image(x)}
        return found if asked is None else {**found, "text": again.encode_text(asked[1])}

    return ours, theirs


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise UsageError("open_clip's layout needs open_clip: pip install open_clip_torch") from None
    return open_clip


def _fill(module: nn.Module, state: dict[str, Tensor], whose: str) -> None:
    if wrong := misfit(module.state_dict(), state):
        raise UsageError(f"open_clip has no place for {whose} weights: {wrong}")
    module.load_state_dict(state)


def _visual(encoder: Encoder, projection: Tensor, bias: Tensor | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(vision_cfg, the tower's state): a timm backbone under its name if that fits, else open_clip's own ViT."""
    heads = tuple(f"{name}." for name in classifiers(encoder.backbone.pretrained_cfg))
    state = {k: v.detach().cpu() for k, v in encoder.backbone.state_dict().items() if not k.startswith(heads)}
    own = not encoder.in_timm  # our architecture: open_clip, without catlip, has not heard of it
    if not own and not misfit(
        timm.create_model(encoder.architecture, num_classes=0, device="meta").state_dict(), state
    ):
        vision = {
            "timm_model_name": encoder.architecture,
            "timm_model_pretrained": False,
            "timm_pool": "",
            "timm_proj": "linear",
            "timm_proj_bias": bias is not None,
            "image_size": encoder.image_size,
        }
        head = {"head.proj.weight": projection, **({} if bias is None else {"head.proj.bias": bias})}
        return vision, {f"trunk.{name}": value for name, value in state.items()} | head
    if own or bias is not None or not _is_plain_vit(encoder.backbone):
        raise UsageError(
            f"open_clip cannot hold a {encoder.architecture} at {encoder.image_size} px; "
            f"`format` onnx, torch-export and state-dict can"
        )
    return _own_vit(encoder, state, projection)


def _is_plain_vit(backbone: Any) -> bool:
    return (
        type(backbone) is VisionTransformer
        and backbone.has_class_token
        and backbone.num_prefix_tokens == 1
        and backbone.global_pool == "token"
        and isinstance(backbone.norm_pre, nn.Identity)
        and isinstance(backbone.fc_norm, nn.Identity)
    )


def _own_vit(
    encoder: Encoder, state: dict[str, Tensor], projection: Tensor
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """timm's names -> those of open_clip's ViT, as far as it goes: what is left over does not fit, and is told."""
    block, patch = encoder.backbone.blocks[0], state["patch_embed.proj.weight"]
    width = patch.shape[0]
    vision = {
        "image_size": encoder.image_size,
        "patch_size": patch.shape[-1],
        "width": width,
        "layers": len(encoder.backbone.blocks),
        "head_width": width // block.attn.num_heads,
        "mlp_ratio": block.mlp.fc1.out_features / width,
        "no_ln_pre": True,
        "pool_type": "tok",
        "norm_kwargs": {"eps": encoder.backbone.norm.eps},
    }
    places = state.pop("pos_embed")[0]
    if encoder.backbone.no_embed_class:
        places = torch.cat([torch.zeros(1, width), places])
    places = torch.cat([places[:1], places[1:] + state.pop("patch_embed.proj.bias")])
    found = {
        "conv1.weight": state.pop("patch_embed.proj.weight"),
        "class_embedding": state.pop("cls_token").flatten(),
        "positional_embedding": places,
        "proj": projection.T.contiguous(),
    }
    renamed = {
        "norm1.": "ln_1.",
        "norm2.": "ln_2.",
        "attn.qkv.": "attn.in_proj_",
        "attn.proj.": "attn.out_proj.",
        "mlp.fc1.": "mlp.c_fc.",
        "mlp.fc2.": "mlp.c_proj.",
    }
    for name, value in state.items():
        name = name.replace("blocks.", "transformer.resblocks.", 1)
        for theirs, mine in renamed.items():
            name = name.replace(theirs, mine)
        found["ln_post." + name.removeprefix("norm.") if name.startswith("norm.") else name] = value
    return vision, found
