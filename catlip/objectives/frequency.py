"""How rare a class is, counted while training."""

import torch
from torch import Tensor, nn

from catlip.objectives import gather


class DocumentFrequency(nn.Module):
    """In how many images each class occurs, counted while training, over all processes.

    The counts of a step are added when it is over, so weights are the same for all of a step's images, on however many
    processes and in however many micro-batches they are, and processes talk once a step. They are integers, so a run
    that resumes counts exactly, and the average of the weights does not blend them.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.counts: Tensor  # the last one counts the pictures
        self.pending: Tensor
        self.register_buffer("counts", torch.zeros(classes + 1, dtype=torch.int64))
        self.register_buffer("pending", torch.zeros(classes + 1, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def update(self, labels: Tensor, pictures: int) -> None:
        """Put a batch of this process aside. labels: each once a picture."""
        # index_add and not bincount, whose size an accelerator would have to tell first.
        self.pending.index_add_(0, labels, torch.ones_like(labels))
        self.pending[-1] += pictures

    @torch.no_grad()
    def after_step(self) -> None:
        """Add what was put aside, here and on all other processes. Every process must call it at the same time."""
        self.counts += gather.all_sum(self.pending)
        self.pending.zero_()

    def idf(self) -> Tensor:
        """Inverse document frequency of each class, float32 [V]: log((n + 1) / (df + 1)), so 0 where it is always met.

        Before anything is counted all are 1. SuperClass, equation 4, has log(n / (1 + df)), which is negative for a
        class that is always met; its code adds one to both, as here, but counts a batch before it weighs it.
        """
        df, n = self.counts[:-1], self.counts[-1]
        idf = (n + 1).float().log() - (df + 1).float().log()
        return torch.where(n > 0, idf, torch.ones_like(idf))

    def evened_idf(self) -> Tensor:
        """The same, divided by its mean over all labels met: so labels weigh 1 on average."""
        idf, df = self.idf(), self.counts[:-1].float()
        mean = (idf * df).sum() / df.sum().clamp_min(1)
        return torch.where(mean > 0, idf / mean.clamp_min(1e-12), torch.ones_like(idf))
