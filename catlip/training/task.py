"""What is trained: pre-training, fine-tuning, detection, segmentation and text alignment are tasks, as is your own."""

import copy
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from catlip.data.batches import Batch, Batches
from catlip.data.dataset import Dataset
from catlip.data.order import Order
from catlip.data.steps import CurriculumConfig, Steps
from catlip.errors import UsageError
from catlip.models.model_folders import ENCODER_FOLDER
from catlip.models.state_dicts import write_tensors
from catlip.training.distributed import World

Evaluation = Callable[["Task"], dict[str, float]]  # a task whose weights are all here, in eval mode -> numbers


class Task(nn.Module):
    """An objective on an encoder, with everything the trainer needs to know about it.

    A subclass says how samples become batches; all else has a default. Everything but the weights is a function of the
    settings, so that every process and a run that goes on build the same task.
    """

    def __init__(
        self,
        objective: nn.Module,
        augment: nn.Module | None = None,
        *,
        encoder: nn.Module | None = None,
        image_size: int = 0,
        curriculum: CurriculumConfig | None = None,
    ) -> None:
        """objective: see `catlip.objectives.base`. augment(images float [B, 3, H, W] in [0, 1]), or the same with the
        share of the budget that is done, returns images, or (images, a loss that is added).

        encoder: what the objective trains; default: its `encoder`. image_size: pixels; 0: the encoder's own.
        """
        super().__init__()
        self.objective: Any = objective
        self.augment = augment
        found: Any = encoder if encoder is not None else self.objective.encoder
        if any(module is found for module in objective.modules()):
            object.__setattr__(self, "encoder", found)  # it is registered once, and saved once
        else:
            self.encoder = found
        self.image_size = image_size or found.image_size
        self.curriculum = curriculum or CurriculumConfig()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Task":
        """A task with weights of its own; settings and data, which may be large, are those of this one."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        for name, value in vars(self).items():
            own = name.startswith("_") or isinstance(value, nn.Module | Tensor)
            copied.__dict__[name] = copy.deepcopy(value, memo) if own else value
        return copied

    def batches(self, dataset: Dataset, order: Order, steps: Steps, rank: int, world: int) -> Batches:
        """How samples become the batches of one of `world` processes. A task that is trained defines it."""
        raise NotImplementedError

    @property
    def described(self) -> str:
        """What is trained, for people."""
        return f"{self.encoder.architecture} at {self.image_size} px"

    @property
    def n_classes(self) -> int:
        """Of the encoder's classifier, for the count of FLOPs."""
        return 0

    @property
    def needs_global_batch(self) -> bool:
        """Whether the loss compares the images of a step with one another."""
        return getattr(self.objective, "needs_global_batch", False)

    def fingerprint(self) -> dict[str, Any]:
        """Beside the settings: what must be the same for a run that goes on. Fit for JSON."""
        return {}

    def begin(self, out: Path) -> None:
        """Write what a run folder has from the first moment on. Rank 0."""

    def evaluation(self, out: Path, world: World) -> Evaluation | None:
        """Function that evaluates the task during the run; it has no influence on training. Raises UsageError for data
        that cannot be opened."""
        return None

    def finish(self, out: Path, world: World) -> Any:
        """Save the final model and evaluate it; called on all processes. Returns the result, or None."""
        if world.rank == 0:
            self.encoder.save(out / ENCODER_FOLDER)

    def save_rest(self, out: Path, encoder: str = "encoder.") -> None:
        """objective.safetensors: the objective's weights but the encoder's, whose names begin so."""
        rest = {name: value for name, value in self.objective.state_dict().items() if not name.startswith(encoder)}
        write_tensors(out / "objective.safetensors", rest)

    def after_step(self) -> None:
        """A step of the optimiser is over."""
        if hasattr(self.objective, "after_step"):
            self.objective.after_step()

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """(loss, metrics) of images in the encoder's input space."""
        return self.objective(batch)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """uint8 batch of the loader -> mirrored, augmented, in the encoder's input space -> (loss, metrics)."""
        image = torch.where(batch.flip[:, None, None, None], batch.image.flip(3), batch.image).float() / 255
        extra = None
        if batch.step is not None:
            self.encoder.keep_patches(batch.step.keep)
            if self.augment is not None:
                image, extra = augmented(self.augment, image, batch.step.progress)
        found = self.loss(replace(batch, image=self.encoder.normalize(image)))
        if extra is None:
            return found
        loss, metrics = found
        return loss + extra, {**metrics, "augment": extra.detach()}


def augmented(augment: nn.Module, image: Tensor, progress: float) -> tuple[Tensor, Tensor | None]:
    """(images, loss to add or None) of an augmentation, whether or not it asks how far the run is.

    Raises UsageError for one that returns anything else than images of the same shape.
    """
    found = augment(image, progress) if len(inspect.signature(augment.forward).parameters) > 1 else augment(image)
    new, extra = found if isinstance(found, tuple) else (found, None)
    if not isinstance(new, Tensor) or new.shape != image.shape or not new.is_floating_point():
        shape = list(new.shape) if isinstance(new, Tensor) else type(new).__name__
        raise UsageError(f"`augment` returns {shape}, not floating-point images of {list(image.shape)} as it was given")
    return new.to(image.dtype), extra
