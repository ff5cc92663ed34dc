"""DeepLabv3 on ADE20k as CatLIP does it (arXiv 2404.15653, section 5.3, and the released YAML files).

Kept: AdamW with weight decay .1, 3e-5 falling to a tenth along a cosine after 500 steps of warm-up, 50 epochs in
batches of 32, fp32, average with decay .9999, output stride 8 (the official ViT's first convolution takes half the
step), ASPP of 512 channels with rates 12, 24, 36 and dropout .1, windows of 512 px from pictures whose short side is
256 to 768, no layer decay. Different here: pictures are tested in sliding windows at a short side of 512 and scored at
their own size, where the official evaluation squeezes them into one square of 512; the branch of ASPP that sees the
whole picture has no BatchNorm; the loss divides by all pixels, not by those with a class (objectives/masks.py).

Published mIoU on the validation set, released weights: B 50.1, L 54.8, H 55.6 (paper: 50.10, 54.46, 55.63; CLIP B/16
49.70). Not measured here: nobody has run these recipes with catlip yet.

    catlip segment runs/official --recipe ade20k_b16 --train ADEChallengeData2016 \\
        --test ADEChallengeData2016 --out runs/ade
"""

from catlip.data.maskbatches import Window
from catlip.models.segmenter import DecoderConfig
from catlip.tasks.segment import SegmentConfig
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig

PICTURES = 20_210  # in the training set
EXPECTED = {"ade20k_b16": 50.1, "ade20k_l16": 54.8, "ade20k_h16": 55.6}  # mIoU of the released weights


def ade20k_b16() -> SegmentConfig:
    """ViT-B/16: 8 GPUs, 4 pictures each. L and H differ in the encoder alone, which --run brings."""
    return SegmentConfig(
        run="",
        train="",
        test="",
        out="",
        image_size=512,
        epochs=50.0,
        batch_size=32,
        head=DecoderConfig(head="deeplab", stride=8, head_width=512, head_dropout=0.1, rates=(12, 24, 36)),
        window=Window(short_side=512, scale=(0.5, 1.5)),
        optim=OptimConfig(lr=3e-5, lr_end=0.1, weight_decay=0.1, betas=(0.9, 0.999), warmup=500 * 32 / (50 * PICTURES)),
        loop=LoopConfig(precision="fp32", ema=0.9999),
    )


def ade20k_l16() -> SegmentConfig:
    """ViT-L/16, the same settings."""
    return ade20k_b16()


def ade20k_h16() -> SegmentConfig:
    """ViT-H/16, the same settings; activations are computed twice instead of kept."""
    recipe = ade20k_b16()
    recipe.loop.checkpointing = True
    return recipe
