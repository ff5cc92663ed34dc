"""What is trained: an objective, and what happens to a batch on the device before it sees it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from catlip.data.batches import Batch
from catlip.models.augment import RangeAugment


class Task(nn.Module):
    """uint8 batch from the loader -> mirrored, augmented, in the encoder's input space -> (loss, metrics)."""

    def __init__(self, objective: nn.Module, augment: RangeAugment | None = None) -> None:
        """objective: has `encoder`, and forward(batch) -> (loss, metrics) with the loss averaged over the batch."""
        super().__init__()
        self.objective: Any = objective
        self.augment = augment

    @property
    def encoder(self) -> Any:
        return self.objective.encoder

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        image = torch.where(batch.flip[:, None, None, None], batch.image.flip(3), batch.image).float() / 255
        extra = None
        if batch.step is not None:
            self.encoder.keep_patches(batch.step.keep)
            if self.augment is not None:
                image, extra = self.augment(image, batch.step.progress)
        loss, metrics = self.objective(replace(batch, image=self.encoder.normalize(image)))
        if extra is not None:
            loss, metrics = loss + extra, {**metrics, "augment": extra.detach()}
        return loss, metrics
