"""Five minutes on two CPU cores: the smallest run that learns something from real photographs.

catlip vocab    'shards/train-{000000..000005}.tar' --min-count 8 --out vocab.tsv
catlip pretrain flickr8k_cpu --data 'shards/train-{000000..000005}.tar' --vocab vocab.tsv --out runs/f8k
catlip probe    runs/f8k --train cifar10-train.tar --test cifar10-test.tar
"""

from catlip.captions.tokenizer import Tokens
from catlip.data.crops import Crop
from catlip.models.text import Text
from catlip.training.loop import Loop
from catlip.training.optim import Optim
from catlip.training.pretrain import Pretrain


def flickr8k_cpu() -> Pretrain:
    """ResNet-10-T at 64 px, 90,000 samples (15 epochs of Flickr8k's 6,000 training pictures)."""
    return Pretrain(
        data="", vocab="", out="",
        backbone="resnet10t",
        image_size=64,
        samples=90_000,
        batch_size=128,
        workers=1,  # the model's own threads need the cores; one decodes 1,400 pictures a second
        crop=Crop(scale=(0.3, 1.0), blur=0.5),
        optim=Optim(lr=3e-3, weight_decay=0.05),
        # For objectives that read captions: a text tower that is to this backbone what CLIP's is to a ViT-B.
        tokens=Tokens(tokens=4096, context=32),
        text=Text(text_width=128, text_layers=3),
        loop=Loop(ema=0.998),
    )  # fmt: skip
