"""The steps of a run: how many samples each takes, at which size, with which share of the patches.

All of it is a pure function of the settings and the step's number, so every process, every worker and a resumed run
agree without talking to each other.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from catlip.data.order import uniforms
from catlip.errors import UsageError


@dataclass(kw_only=True, slots=True)
class CurriculumConfig:
    """What the encoder sees over a run. The defaults: full pictures all the way."""

    low_res: int = 0  # pixels during the first part (CLIPA, arXiv 2305.07017); 0: full size from the start
    low_res_share: float = 0.0  # share of the budget at the low size
    scales: tuple[int, ...] = ()  # sizes drawn step by step, the batch growing as the picture shrinks; empty: one size
    patch_keep: float = 1.0  # share of a ViT's patches that are kept (FLIP, arXiv 2212.00794); 1: all
    patch_keep_share: float = 1.0  # share of the budget with patches dropped; the rest sees all of them

    @property
    def sizes(self) -> tuple[int, ...]:
        """Pixels of pictures, beside --image-size."""
        return (*self.scales, *[self.low_res] * bool(self.low_res))


def paper_scales(low: int = 128, high: int = 320, count: int = 25, base: int = 224, step: int = 16) -> tuple[int, ...]:
    """Sizes of the paper's variable-batch sampler: `count` evenly spaced ones and the base, rounded to the patch."""
    sizes = [*np.linspace(low, high, count), base]
    return tuple(sorted({int(round(s / step) * step) for s in sizes}))


class Step(NamedTuple):
    """One optimiser step. Counted over all processes together."""

    number: int
    start: int  # samples seen before it
    batch: int  # samples it takes
    size: int  # pixels of a side
    keep: float  # share of the patches
    progress: float  # share of the budget seen before it


class Phase(NamedTuple):
    """A kind of step that a run has: all of them cost the same."""

    batch: int  # samples a step
    size: int  # pixels of a side
    keep: float  # share of the patches
    share: float  # of the run's samples

    def steps(self, count: int) -> "Steps":
        """So many steps of this kind alone."""
        return Steps(
            CurriculumConfig(patch_keep=self.keep),
            budget=count * self.batch,
            batch_size=self.batch,
            image_size=self.size,
            seed=0,
        )


class Steps:
    """The steps of a run of `budget` samples; the last one may go a little beyond it."""

    def __init__(self, cfg: CurriculumConfig, *, budget: int, batch_size: int, image_size: int, seed: int) -> None:
        """Raises UsageError for settings that contradict each other."""
        if cfg.scales and cfg.low_res:
            raise UsageError("`scales` and `low_res` are two ways to vary the size; give one of them")
        for name in ("low_res_share", "patch_keep", "patch_keep_share"):
            if not 0 <= getattr(cfg, name) <= 1 or (name == "patch_keep" and cfg.patch_keep == 0):
                raise UsageError(f"`{name}` is a share between 0 and 1, not {getattr(cfg, name)}")
        self.cfg, self.budget, self.image_size = cfg, budget, image_size
        self._shift = 0
        if not cfg.scales:
            self._sizes, self._batches = np.array([image_size]), np.array([batch_size])
            self._starts, self._batch_size = None, batch_size
            return
        self._sizes = np.array(cfg.scales)
        # Constant pixels a step, rounded as the official sampler does.
        self._batches = np.maximum(1, np.rint(batch_size * (image_size / self._sizes) ** 2)).astype(np.int64)
        draws, total, step = [], 0, 0
        while total < budget:
            some = np.arange(step, step + 4096)
            drawn = (uniforms(some, 1, seed ^ 0x5CA1E)[:, 0] * len(self._sizes)).astype(np.int64)
            draws.append(drawn)
            total += int(self._batches[drawn].sum())
            step += len(some)
        self._drawn = np.concatenate(draws)
        self._starts = np.cumsum([0, *self._batches[self._drawn]])

    def __len__(self) -> int:
        if self._starts is None:
            return -(-(self.budget - self._shift) // self._batch_size)
        return int(np.searchsorted(self._starts, self.budget - self._shift, side="left"))

    def __getitem__(self, number: int) -> Step:
        if self._starts is None:
            start, batch, size = number * self._batch_size, self._batch_size, self.image_size
        else:
            drawn = self._drawn[number]
            start, batch, size = int(self._starts[number]), int(self._batches[drawn]), int(self._sizes[drawn])
        start += self._shift
        progress = start / self.budget
        return Step(number, start, batch, *self._look(size, progress), progress)

    def _look(self, size: int, progress: float) -> tuple[int, float]:
        """(pixels of a side, share of the patches) at this place of the run. size: without the curriculum."""
        low = self.cfg.low_res and progress < self.cfg.low_res_share
        keep = self.cfg.patch_keep if progress < self.cfg.patch_keep_share else 1.0
        return self.cfg.low_res if low else size, keep

    def after(self, seen: int) -> int:
        """Number of the step that comes after `seen` samples.

        If no step ends there (the batch size was changed on purpose), all later steps are shifted so that one begins
        exactly there: nothing is lost, nothing comes twice.
        """
        if self._starts is None:
            number = seen // self._batch_size
            self._shift = seen - number * self._batch_size
        else:
            number = int(np.searchsorted(self._starts, seen, side="right")) - 1
            self._shift = seen - int(self._starts[number])
        return number

    def phases(self) -> list[Phase]:
        """Every kind of step, with its share of the samples; what a run costs is their weighted mean."""
        shares: dict[tuple[int, int, float], float] = {}
        for begin, end in pairwise(sorted({0.0, self.cfg.low_res_share, self.cfg.patch_keep_share, 1.0})):
            for batch, size in zip(self._batches.tolist(), self._sizes.tolist(), strict=True):
                kind = (batch, *self._look(size, begin))
                # Sizes are drawn step by step, so one whose steps are larger has more of the samples.
                shares[kind] = shares.get(kind, 0.0) + (end - begin) * batch / float(self._batches.sum())
        return [Phase(*kind, share) for kind, share in shares.items()]

    def shapes(self) -> list[tuple[int, int]]:
        """Every (samples, pixels of a side) that can occur, the most pixels first."""
        return sorted({phase[:2] for phase in self.phases()}, key=lambda shape: -shape[0] * shape[1] ** 2)
