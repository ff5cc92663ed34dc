"""The smallest run that learns something from real photographs: five minutes on two CPU cores that have bf16, seven to
eighteen (at 220 to 85 images/s, in fp32) on two that have not.

catlip pack     'flickr8k/train-{000000..000005}.tar' --size 128 --out shards
catlip vocab    'shards/*.tar' --min-count 8 --out vocab.tsv
catlip pretrain flickr8k_cpu --data 'shards/*.tar' --vocab vocab.tsv --out runs/f8k
catlip probe    runs/f8k --train cifar10-train.tar --test cifar10-test.tar

Beside it, the same run with each of the other objectives, at the learning rate that was best of 0.001, 0.003 and 0.01
in short runs (RESULTS.md, "Objectives"); `catlip compare` trains them side by side.
"""

from dataclasses import replace

from catlip.data.crops import CropConfig
from catlip.labels.tokenizer import TokenizerConfig
from catlip.models.text_tower import TextConfig
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig


def flickr8k_cpu() -> PretrainConfig:
    """CatLIP: ResNet-10-T at 64 px, 90,000 samples (15 epochs of Flickr8k's 6,000 training pictures)."""
    return PretrainConfig(
        data="",
        vocab="",
        out="",
        backbone="resnet10t",
        image_size=64,
        samples=90_000,
        batch_size=128,
        workers=1,  # the model's own threads need the cores; one decodes 1,400 pictures a second
        crop=CropConfig(scale=(0.3, 1.0), blur=0.5),
        optim=OptimConfig(lr=3e-3, weight_decay=0.05),
        # For objectives that read captions: a text tower that is to this backbone what CLIP's is to a ViT-B/16.
        tokens=TokenizerConfig(tokens=4096, context=32),
        text=TextConfig(text_width=128, text_layers=3),
        loop=LoopConfig(ema=0.998),
    )


def _with(objective: str, lr: float) -> PretrainConfig:
    from catlip.recipes.objectives import objective_named

    recipe = flickr8k_cpu()
    return replace(recipe, objective=objective_named(objective), optim=replace(recipe.optim, lr=lr))


def flickr8k_softmax() -> PretrainConfig:
    """CatLIP's labels with SuperClass' loss: softmax, rare labels weigh more."""
    return _with("synsets_softmax", 1e-3)


def flickr8k_asymmetric() -> PretrainConfig:
    """CatLIP's labels with the asymmetric loss."""
    return _with("synsets_asymmetric", 3e-3)


def flickr8k_subwords() -> PretrainConfig:
    """SuperClass."""
    return _with("subwords", 1e-3)


def flickr8k_clip() -> PretrainConfig:
    """CLIP."""
    return _with("clip", 1e-3)


def flickr8k_siglip() -> PretrainConfig:
    """SigLIP."""
    return _with("siglip", 1e-3)


def flickr8k_clip_lite() -> PretrainConfig:
    """CLIP-Lite."""
    return _with("clip_lite", 3e-3)


def flickr8k_superclip() -> PretrainConfig:
    """SuperCLIP: CLIP and sub-words."""
    return _with("clip+subwords", 3e-3)


def flickr8k_siglip_synsets() -> PretrainConfig:
    """SigLIP and CatLIP."""
    return _with("siglip+synsets", 1e-3)
