"""Recipes begin, train, measure and save with their weights spread over two processes, at toy size."""

import multiprocessing
import os
import time
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
import torch

from catlip.labels.tokenizer import TokenizerConfig
from catlip.labels.vocabulary import Vocabulary
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.recipes import load_recipe, objectives
from catlip.tasks import detect, finetune, segment
from catlip.tasks.pretrain import pretrain
from tests.conftest import write_coloured
from tests.test_batches import LABELER
from tests.test_detect import SMALL, squares  # noqa: F401
from tests.test_masks import write_scenes

# One of each kind; the others differ from these in numbers alone.
KINDS = {
    "pretrain": "flickr8k_softmax flickr8k_subwords flickr8k_clip_lite flickr8k_siglip_synsets flickr8k_superclip "
    "datacomp_h16 budget_b16",
    "finetune": "imagenet_224 coco_multilabel",
    "detect": "mask_rcnn_b16",
    "segment": "ade20k_b16",
}


def shrunk(recipe, verb: str, data: dict[str, str], out: Path):
    """The recipe on toy data: what it switches on stays on, what it makes large is small."""
    loop = replace(recipe.loop, shard=True, compile=False, precision="fp32")
    cfg = replace(
        recipe, out=str(out), epochs=0.0, samples=8, batch_size=8, workers=1, device="cpu", image_size=32, loop=loop
    )
    if hasattr(cfg, "curriculum"):
        cfg.curriculum = replace(
            cfg.curriculum,
            scales=(16, 32) if cfg.curriculum.scales else (),
            low_res=16 if cfg.curriculum.low_res else 0,
        )
    if verb == "pretrain":
        backbone = "test_resnet" if "resnet" in cfg.backbone else "test_vit"
        return replace(
            cfg, data=data["shards"], vocab=data["vocab"], backbone=backbone,
            tokens=TokenizerConfig(tokens=600, context=16),
            text=TextConfig(text_width=64, text_layers=1), held_out=data["shards"], held_out_limit=8,
        )  # fmt: skip
    if verb == "finetune":
        return replace(cfg, run=data["encoder"], train=data["classes"], test=data["classes"])
    if verb == "detect":
        images, boxes = data["images"], data["boxes"]
        return replace(
            cfg, run=data["encoder"], images=images, boxes=boxes, test_images=images, test_boxes=boxes, image_size=64,
            samples=4, batch_size=4, objective=SMALL,
        )  # fmt: skip
    return replace(
        cfg, run=data["encoder"], train=data["masks"], test=data["masks"], head=replace(cfg.head, head_width=16)
    )


def work(rank: int, port: int, data: dict[str, str], folder: Path) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
                   "MASTER_PORT": str(port)}  # fmt: skip
    torch.set_num_threads(1)
    verbs = {"pretrain": pretrain, "finetune": finetune.finetune, "detect": detect.detect, "segment": segment.segment}
    with mock.patch.object(Vocabulary, "labeler", return_value=LABELER):
        for verb, names in KINDS.items():
            for name in names.split():
                began = time.time()
                try:
                    verbs[verb](config=shrunk(load_recipe(name, verb), verb, data, folder / name))
                    print(rank, name, f"{time.time() - began:.1f} s", flush=True)
                except BaseException:
                    traceback.print_exc()
                    (folder / "failed").write_text(name)
                    raise


def test_recipes_sharded(flow, tmp_path: Path, squares, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    torch.manual_seed(0)
    encoder = Encoder.create("test_vit", image_size=32)
    encoder.save(tmp_path / "encoder")
    images, boxes = squares("train", 4)
    data = {
        "shards": flow[0], "vocab": str(flow[1]), "encoder": str(tmp_path / "encoder"), "images": images,
        "boxes": boxes,
        "classes": write_coloured(tmp_path, 16, 1, cls=True), "masks": write_scenes(tmp_path, 4, "masks"),
    }  # fmt: skip
    for part in ("clip", "siglip", "clip_lite"):
        made = objectives.OBJECTIVES[part]
        monkeypatch.setitem(objectives.OBJECTIVES, part, lambda made=made: made(embed=16))
    import_module("torch.utils.tensorboard")
    port = 20_000 + (os.getpid() * 7 + time.time_ns() // 1_000_000) % 40_000
    fork = multiprocessing.get_context("fork")
    started = [fork.Process(target=work, args=(rank, port, data, tmp_path)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(600)
        process.kill()
    assert [process.exitcode for process in started] == [0, 0]
