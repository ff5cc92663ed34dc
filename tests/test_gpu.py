"""What only a GPU can get wrong: uploads beside the model's work, attention of padded captions, a run that goes on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from catlip.data.batches import Batch
from catlip.models.text_tower import TextConfig, TextTower
from catlip.objectives.clip import Clip
from catlip.tasks.pretrain import pretrain
from catlip.training import checkpoint
from catlip.training.state import LoopConfig
from tests.conftest import cut_short
from tests.test_training import config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def test_uploads_are_what_the_host_had_whatever_it_does_next() -> None:
    """The loader's memory is written again while the device is still at work on earlier steps."""
    device, found = torch.device("cuda", 0), []
    memory, labels = torch.empty(64, 3, 112, 112, dtype=torch.uint8), torch.arange(64)
    slow = torch.randn(4096, 4096, device=device)
    for number in range(20):
        memory.fill_(number)
        batch = Batch(memory, torch.zeros(64, dtype=torch.bool), labels + number, torch.arange(65), [], [""] * 64)
        moved = batch.to(device)
        memory.fill_(255)
        for _ in range(5):
            slow = (slow @ slow).clamp(-1, 1)
        found.append((moved.image.float().mean(), moved.labels.sum()))
        del moved
    assert [(mean.item(), total.item()) for mean, total in found] == [(n, 2016 + 64 * n) for n in range(20)]


@pytest.mark.parametrize("causal", [True, False])
def test_captions_are_padded_to_few_lengths(causal: bool) -> None:
    tower = TextTower(600, 20, TextConfig(text_width=64, text_layers=2, causal=causal), embed=32).eval()
    there = TextTower(600, 20, tower.cfg, embed=32).eval().cuda()
    there.load_state_dict(tower.state_dict())
    tokens = torch.randint(1, 590, (4, 11))
    tokens[:, -1] = 599
    with torch.no_grad():
        torch.testing.assert_close(there(tokens.cuda()).cpu(), tower(tokens), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("objective", [None, Clip(embed=16)])
def test_a_run_goes_on_as_if_it_had_not_stopped(flow: tuple[str, Path], tmp_path: Path, objective: Clip | None) -> None:
    def run(name: str) -> dict[str, torch.Tensor]:
        cfg = config(*flow, tmp_path / name, device="cuda", loop=LoopConfig(ema=0.9, save_every=96))
        cfg = replace(cfg, text=TextConfig(text_width=64, text_layers=1))
        out = pretrain(config=cfg if objective is None else replace(cfg, objective=objective)).out
        state = checkpoint.load(out)
        assert state is not None
        return state["task"]

    whole = run("whole")
    with cut_short():
        run("cut")
    again = run("cut")
    for name, tensor in whole.items():  # cuDNN's sums are not the same twice
        torch.testing.assert_close(again[name], tensor, atol=2e-2, rtol=5e-2, msg=name)
