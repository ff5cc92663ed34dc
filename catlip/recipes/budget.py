"""ViT-B/16 for one machine: the paper's objective with the two levers that the literature finds worth two to three
times.

Half of the patches are dropped (FLIP, arXiv 2212.00794: half the time, no loss) and pictures are small first (CLIPA,
arXiv 2305.07017), full and complete for the last tenth. What each lever is worth in speed stands in RESULTS.md; what
it costs in accuracy at this size nobody has measured here yet.

catlip pretrain budget_b16 --data 'shards/*.tar' --vocab vocab.tsv --out runs/b16 --hours 24
"""

from catlip.data.crops import CropConfig
from catlip.data.steps import CurriculumConfig
from catlip.tasks.pretrain import PretrainConfig
from catlip.training.optim import OptimConfig
from catlip.training.state import LoopConfig


def budget_b16() -> PretrainConfig:
    """128 million samples by default: some 10 epochs of CC12M."""
    return PretrainConfig(
        data="",
        vocab="",
        out="",
        backbone="vit_base_patch16_224",
        samples=128_000_000,
        batch_size=4_096,
        crop=CropConfig(scale=(0.3, 1.0)),
        curriculum=CurriculumConfig(low_res=160, low_res_share=0.9, patch_keep=0.5, patch_keep_share=0.9),
        optim=OptimConfig(lr=1e-3, weight_decay=0.1, betas=(0.9, 0.95), warmup=0.03),
        loop=LoopConfig(ema=0.9995, compile=True),
    )
