"""Mask R-CNN on COCO with the settings of CatLIP's released files, as far as they are known.

Kept: 1024 pixels, AdamW, weight decay .1, no clipping, rate 3e-4 after 250 steps of warm-up, layer-wise rates .7, .8,
.9 and drop path .1, .4, .5 of B, L and H, 2 pictures on each of 64 A100, 100 epochs (H: 80), average with decay .9999,
fp32 (mixed precision is unstable, their file says), RangeAugment 40 -> 10 dB, sizes from 512 to 1280.

Different here, on purpose: a picture keeps its shape on the canvas, where theirs is squeezed into a square, and its
size varies from picture to picture, not from step to step; the rate falls in a line over the last 12 %, where
theirs falls twice by ten (after 88 and 96 %); ViTDet's simple pyramid alone, where theirs feeds an FPN.

Expected, box AP / mask AP on val2017 as published: B 49.9 / 43.6, L 52.8 / 46.0, H 53.3 / 46.4. ViTDet without window
propagation: B 48.9 / 43.9, L 52.9 / 47.2. Not measured here: nobody has run these with catlip yet.

    catlip detect runs/b16 --recipe mask_rcnn_b16 --images train2017 --boxes annotations/instances_train2017.json \\
        --test-images val2017 --test-boxes annotations/instances_val2017.json --out runs/b16-coco
"""

from dataclasses import replace

from catlip.models.augment import AugmentConfig
from catlip.tasks.detect import DetectConfig
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig

PICTURES = 118_287  # of train2017
BATCH = 128


def mask_rcnn_b16() -> DetectConfig:
    """ViT-B/16, which the run brings."""
    epochs, steps = 100.0, 250
    return DetectConfig(
        run="",
        images="",
        boxes="",
        test_images="",
        test_boxes="",
        out="",
        image_size=1024,
        scale=(0.5, 1.25),
        epochs=epochs,
        batch_size=BATCH,
        drop_path=0.1,
        augment=AugmentConfig(range_augment=True, psnr=(40.0, 10.0)),
        optim=OptimConfig(
            lr=3e-4,
            weight_decay=0.1,
            betas=(0.9, 0.999),
            clip=0.0,
            layer_decay=0.7,
            schedule="wsd",
            decay=0.12,
            warmup=steps * BATCH / (epochs * PICTURES),
        ),
        loop=LoopConfig(precision="fp32", ema=0.9999, checkpointing=True),
    )


def mask_rcnn_l16() -> DetectConfig:
    """ViT-L/16."""
    base = mask_rcnn_b16()
    return replace(base, drop_path=0.4, optim=replace(base.optim, layer_decay=0.8))


def mask_rcnn_h16() -> DetectConfig:
    """ViT-H/16."""
    base = mask_rcnn_b16()
    return replace(base, epochs=80.0, drop_path=0.5, optim=replace(base.optim, layer_decay=0.9))
