"""An encoder in open_clip's folder layout: open_clip.create_model_and_transforms("local-dir:FOLDER").

open_clip knows two ways to hold an image tower. A timm backbone travels under its timm name where timm makes it with
the same image size; a plain ViT of any other size becomes open_clip's own ViT. That one has no bias in its patch
projection: ours is added to the positions, which comes to the same sum.

A text tower goes along, with its tokenizer, if open_clip's folders can describe it: both sides are projected linearly
(CLIP, LiT), and a token sees only those before it.
"""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from catlip.atomic import write_text
from catlip.errors import UsageError
from catlip.export.graphs import Run
from catlip.labels.tokenizer import BOS, EOS, FILE, PAD, Tokenizer
from catlip.models.dual_encoder import DualEncoder, load_dual, text_folder
from catlip.models.encoder import Encoder, misfit, without_classifier
from catlip.models.model_folders import OPEN_CLIP_FILES
from catlip.models.state_dicts import write_tensors
from catlip.models.text_tower import HEAD_WIDTH, TextTower
from catlip.models.weights import Source

CAPTIONS = ["a dog", "", "two men eating hot dogs in front of a red brick wall on a rainy day"]  # that are compared
# Of an encoder without text side: open_clip cannot do without one, so it gets the smallest, all zeros.
NO_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}


def text_tower_of(source: Source) -> tuple[DualEncoder | None, str]:
    """(the dual encoder of a run, what has to be said); None if there is none, or open_clip cannot hold it.

    Raises UsageError for a text tower that cannot be read.
    """
    empty = "open_clip's text side is empty: {}. encode_image gives the pooled vector"
    if text_folder(source) is None:
        return None, empty.format("this run has learned none")
    dual = load_dual(source)
    if not isinstance(dual.text, TextTower) or not isinstance(dual.reader, Tokenizer):
        return None, empty.format("this run has frozen sentence embeddings in its place")
    if not isinstance(dual.text_projection, nn.Identity):
        return None, empty.format("it has no place for the projections of CLIP-Lite, so this run's is left out")
    if not dual.text.causal:
        return None, empty.format(
            "its folders cannot say that padding is masked, as it is where a token sees all others (SigLIP), so this "
            "run's is left out"
        )
    return dual, "text tower and tokenizer included: encode_text, open_clip.get_tokenizer"


def to_open_clip(encoder: Encoder, folder: Path, dual: DualEncoder | None = None) -> tuple[Run, Run]:
    """Write the folder; (the encoder's own image embedding, that of the reloaded folder), both under "pooled"; with a
    text tower also the embeddings of some captions, under "text".

    Without text tower the embedding is the pooled vector, and the folder's text side knows nothing.
    Raises UsageError for a backbone that open_clip cannot hold.
    """
    try:
        import open_clip
    except ImportError:
        raise UsageError("open_clip's layout needs open_clip: pip install open_clip_torch") from None
    linear = dual.image_projection if dual is not None else None
    projection = linear.weight.detach().float() if isinstance(linear, nn.Linear) else torch.eye(encoder.width)
    vision, visual = _visual(encoder, projection)
    arguments: dict[str, Any] = {"embed_dim": len(projection), "vision_cfg": vision, "text_cfg": NO_TEXT}
    if dual is not None:
        arguments["text_cfg"] = _text_cfg(folder, dual)
        if dual.logit_bias is not None:
            arguments["init_logit_bias"] = dual.bias().item()
    model: Any = open_clip.CustomTextCLIP(**json.loads(json.dumps(arguments)))
    _fill(model.visual, visual, f"{encoder.architecture}'s")
    if dual is None:
        for value in model.text.parameters():
            nn.init.zeros_(value)
    else:
        _fill(model.text, dual.text.state_dict(), "the text tower's")
        model.logit_scale.data.fill_(dual.scale().log().item())
    view = encoder.view
    preprocess = {
        "mean": list(view["mean"]),
        "std": list(view["std"]),
        "interpolation": "bicubic" if view["interpolation"] == "bicubic" else "bilinear",
        "resize_mode": "shortest",
    }
    # custom_text: the text side's names begin with "text."
    card = {"model_cfg": {**arguments, "custom_text": True}, "preprocess_cfg": preprocess}
    write_text(folder / OPEN_CLIP_FILES[0], json.dumps(card, indent=2) + "\n")
    write_tensors(folder / OPEN_CLIP_FILES[1], model.state_dict())
    again: Any = open_clip.create_model_and_transforms(f"local-dir:{folder}")[0].eval()
    tokens = torch.from_numpy(dual.reader(CAPTIONS)) if dual is not None else None

    @torch.no_grad()
    def ours(x: Tensor) -> dict[str, Tensor]:
        found = {"pooled": encoder.pooled(x) @ projection.T}
        return found if dual is None or tokens is None else {**found, "text": dual.text(tokens)}

    @torch.no_grad()
    def theirs(x: Tensor) -> dict[str, Tensor]:
        found = {"pooled": again.encode_image(x)}
        return found if tokens is None else {**found, "text": again.encode_text(tokens)}

    return ours, theirs


def _text_cfg(folder: Path, dual: DualEncoder) -> dict[str, Any]:
    """open_clip's text_cfg. The tokenizer is written as `get_tokenizer` reads it (by way of transformers); but for
    CLIP's own tokens, which have no padding of their own and which open_clip brings."""
    tokenizer = dual.reader
    assert isinstance(tokenizer, Tokenizer)
    from tokenizers import Tokenizer as Bpe
    from tokenizers.processors import TemplateProcessing

    assert isinstance(dual.text, TextTower)
    cfg = dual.text.cfg
    found: dict[str, Any] = {
        "context_length": tokenizer.context,
        "vocab_size": tokenizer.size,
        "width": cfg.text_width,
        "heads": cfg.text_width // HEAD_WIDTH,
        "layers": cfg.text_layers,
    }
    tokenizer.save(folder / FILE)
    bpe = Bpe.from_file(str(folder / FILE))
    if bpe.token_to_id(PAD) is None:
        (folder / FILE).unlink()
        return found
    special = [(BOS, tokenizer.bos), (EOS, tokenizer.eos)]
    bpe.post_processor = TemplateProcessing(single=f"{BOS} $A {EOS}", special_tokens=special)
    bpe.save(str(folder / FILE))
    card = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "pad_token": PAD,
        "model_max_length": tokenizer.context,
    }
    write_text(folder / "tokenizer_config.json", json.dumps(card, indent=2) + "\n")
    return {**found, "hf_tokenizer_name": FILE, "tokenizer_kwargs": {"clean": "lower"}}


def _fill(module: nn.Module, state: dict[str, Tensor], whose: str) -> None:
    if wrong := misfit(module.state_dict(), state):
        raise UsageError(f"open_clip has no place for {whose} weights: {wrong}")
    module.load_state_dict(state)


def _visual(encoder: Encoder, projection: Tensor) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(vision_cfg, the tower's state): a timm backbone under its name if that fits, else open_clip's own ViT."""
    state = without_classifier(encoder.backbone.state_dict(), encoder.backbone.pretrained_cfg)
    if encoder.in_timm:
        plain = timm.create_model(encoder.architecture, num_classes=0, device="meta")
        if not misfit(plain.state_dict(), state):
            vision = {
                "timm_model_name": encoder.architecture,
                "timm_model_pretrained": False,
                "timm_pool": "",
                "timm_proj": "linear",
                "timm_proj_bias": False,
                "image_size": encoder.image_size,
            }
            return vision, {f"trunk.{name}": value for name, value in state.items()} | {"head.proj.weight": projection}
    if not encoder.in_timm or not _is_plain_vit(encoder.backbone):
        raise UsageError(
            f"open_clip cannot hold a {encoder.architecture} at {encoder.image_size} px; "
            "`format` onnx, torch-export and state-dict can"
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
    positions = state.pop("pos_embed")[0]
    if encoder.backbone.no_embed_class:
        positions = torch.cat([torch.zeros(1, width), positions])
    positions = torch.cat([positions[:1], positions[1:] + state.pop("patch_embed.proj.bias")])
    found = {
        "conv1.weight": state.pop("patch_embed.proj.weight"),
        "class_embedding": state.pop("cls_token").flatten(),
        "positional_embedding": positions,
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
