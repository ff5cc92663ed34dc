"""Nothing may lose or repeat a sample: micro-batches, processes, signals, full disks, broken checkpoints, memory."""

import errno
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from torch import nn

from catlip.atomic import read_jsonl
from catlip.data.batches import Batch, Batches
from catlip.data.corpus import build_vocabulary
from catlip.data.steps import CurriculumConfig, Step
from catlip.errors import UsageError
from catlip.labels.tokenizer import TokenizerConfig
from catlip.labels.vocabulary import Vocabulary
from catlip.models.augment import AugmentConfig, RangeAugment
from catlip.models.encoder import Encoder
from catlip.objectives.base import Context
from catlip.objectives.frequency import DocumentFrequency
from catlip.objectives.subwords import Subwords
from catlip.report.run_report import write_report
from catlip.tasks import pretrain as pretraining
from catlip.tasks.pretrain import PretrainConfig, make_task, pretrain, speed_of
from catlip.training import checkpoint, distributed, log, loop, runfolder, session
from catlip.training import train as trainer
from catlip.training.distributed import World, first_host
from catlip.training.log import append_json
from catlip.training.optim import OptimConfig
from catlip.training.precision import Precision
from catlip.training.state import LoopConfig, State
from catlip.training.task import Task
from tests.conftest import cut_short, jpeg, write_tar
from tests.test_batches import LABELER
from tests.test_training import config, weights

FP32 = Precision("fp32", "for a test")
ALONE = World(0, 1, 0, 1, torch.device("cpu"))
VIT = {"backbone": "test_vit", "image_size": 32}


class Toy(nn.Module):
    """An objective whose memory is limited: more than `room` pictures at a time do not fit."""

    needs_global_batch = False

    def __init__(self, room: int = 1000) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.encoder = Encoder.create("test_resnet", image_size=32)  # only its normalize is used
        self.encoder.requires_grad_(False)
        self.room = room

    def forward(self, batch: Batch):
        if len(batch) > self.room:
            raise torch.OutOfMemoryError
        loss = (self.linear(batch.image.mean((2, 3))) - 1).square().mean()
        return loss, {"loss": loss.detach()}


def toy_batch(count: int, number: int = 0) -> Batch:
    image = torch.randint(0, 256, (count, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))
    return Batch(
        image, torch.zeros(count, dtype=torch.bool), torch.zeros(0, dtype=torch.int64),
        torch.zeros(count + 1, dtype=torch.int64), [[]] * count, [str(i) for i in range(count)],
        step=Step(number, number * count, count, 4, 1.0, 0.0),
    )  # fmt: skip


def toy_state(room: int = 1000, micro_batch: int = 0) -> State:
    torch.manual_seed(0)
    return State(Task(Toy(room)), ALONE, OptimConfig(), LoopConfig(ema=0.9, micro_batch=micro_batch), FP32)


def test_micro_batches_give_the_large_batch_s_step() -> None:
    whole, parts = toy_state(), toy_state(micro_batch=5)
    for number in range(4):
        a, b = (state.update(toy_batch(12, number), 1e-2) for state in (whole, parts))
        torch.testing.assert_close(a["loss"], b["loss"])
    for a, b in zip(whole.task.parameters(), parts.task.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_out_of_memory_halves_the_micro_batch_and_changes_nothing_else(capsys: pytest.CaptureFixture) -> None:
    whole, small = toy_state(), toy_state(room=4)
    whole.update(toy_batch(12), 1e-2)
    small.update(toy_batch(12), 1e-2)
    assert small.micro_batch == 3
    assert "out of memory with 6 pictures at a time; going on with 3 x 4" in capsys.readouterr().err
    for a, b in zip(whole.task.parameters(), small.task.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(UsageError, match="out of memory with 1 pictures"):
        toy_state(room=0).update(toy_batch(12), 1e-2)


class Drawing(Toy):
    """An objective with running statistics, counts, and a loss that draws random numbers for each picture."""

    def __init__(self, room: int) -> None:
        super().__init__(room)
        self.norm, self.met = nn.BatchNorm1d(3), DocumentFrequency(2)

    def forward(self, batch: Batch):
        self.met.update(torch.zeros(len(batch), dtype=torch.int64), len(batch))
        noise = torch.rand(len(batch), 3)
        vectors = self.norm(batch.image.mean((2, 3)) + noise)
        if len(batch) > self.room:
            raise torch.OutOfMemoryError
        loss = (self.linear(vectors) - 1).square().mean()
        return loss, {"loss": loss.detach()}


def test_a_second_try_begins_where_the_first_did(capsys: pytest.CaptureFixture) -> None:
    """Out of memory in the middle of a step: as if the micro-batch had been small from the start, bit for bit."""
    states = []
    for room, micro_batch in ((4, 0), (1000, 3)):
        torch.manual_seed(0)
        task = Task(Drawing(room))
        state = State(task, ALONE, OptimConfig(), LoopConfig(ema=0.9, micro_batch=micro_batch), FP32)
        torch.manual_seed(7)
        state.update(toy_batch(12), 1e-2)
        assert state.micro_batch == 3
        states.append({**dict(task.named_parameters()), **dict(task.named_buffers())})
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in states), strict=True))
    assert states[0]["objective.met.pending"][-1] == 12
    assert "BatchNorm, whose statistics are of 3 now" in capsys.readouterr().err


def test_a_single_picture_for_batch_norm_is_a_clear_line(flow, tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"share of a step is 1 picture, and BatchNorm needs two: a larger `batch_size`"
    ):
        pretrain(config=config(*flow, tmp_path / "run", batch_size=1, samples=2))
    pretrain(config=config(*flow, tmp_path / "vit", batch_size=1, samples=2, **VIT))
    pretrain(
        config=config(
            *flow, tmp_path / "rest", batch_size=9, samples=9, loop=LoopConfig(micro_batch=4, precision="fp32")
        )
    )


def train(flow: tuple[str, Path], out: Path, tag: str = "", **changes) -> None:
    """Train, and note which sample stood at which place in OUT.keysTAG."""
    make = Batches.make

    def noted(self: Batches, number: int, memory=None) -> Batch:
        batch = make(self, number, memory)
        first = batch.step.start + self.rank
        with open(f"{out}.keys{tag}", "a") as file:
            file.write("".join(f"{first + i * self.world} {key}\n" for i, key in enumerate(batch.keys)))
        return batch

    # The labeler of all tests: a process of its own would take seconds to open it.
    with mock.patch.object(Batches, "make", noted), mock.patch.object(Vocabulary, "labeler", return_value=LABELER):
        pretrain(config=config(*flow, out, **{"workers": 0, "samples": 192, **VIT, **changes}))


def ends(count: int, function: Callable, *args, **changes) -> list[int | None]:
    """Exit codes of `count` processes that carry out `function`, and find each other as torchrun's would."""
    # A fork has imported and made everything already, which takes longer than all that is computed here.
    import_module("torch.utils.tensorboard")
    port = str(20_000 + (os.getpid() * 7 + time.time_ns() // 1_000_000) % 40_000)

    def run(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
                       "MASTER_ADDR": "localhost", "MASTER_PORT": port}  # fmt: skip
        torch.set_num_threads(1)
        function(*args, **changes)

    started = [multiprocessing.get_context("fork").Process(target=run, args=(rank,)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    codes = [process.exitcode for process in started]
    for process in started:
        process.kill()
    return codes


def processes(count: int, function: Callable, *args, **changes) -> None:
    """`function` in `count` processes, all of which must end well."""
    assert ends(count, function, *args, **changes) == [0] * count


def broken(flow: tuple[str, Path], out: Path, rank: int, what: str) -> None:
    """A run as the command line has it, in which something happens to one rank at its third step."""
    update, steps = State.update, []

    def troubled(self: State, batch: Batch, lr: float) -> dict[str, torch.Tensor]:
        steps.append(batch)
        if self.world.rank == rank and len(steps) == 3:
            match what:
                case "kill -9":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "missing file":
                    open("photos/gone.tar").close()
                case "memory":
                    self.wrapped = Toy(room=0)
                case "a mistake of ours":
                    raise KeyError("oh")
        return update(self, batch, lr)

    def full(state: dict, file: object) -> None:
        raise OSError(28, "No space left on device")

    sys.stderr = Path(f"{out}.stderr{os.environ['RANK']}").open("w", buffering=1)  # noqa: SIM115
    changes: dict = {}
    if what == "nan":  # rank 0 looks before it writes a line, when no checkpoint is due, and so it looks alone
        late = LoopConfig(ema=0.9, precision="fp32", save_every=10_000)
        changes = {"optim": OptimConfig(lr=1e30, clip=0, warmup=0), "loop": late}
    if what.startswith("slurm"):
        names = {"WORLD_SIZE": "SLURM_NTASKS", "RANK": "SLURM_PROCID", "LOCAL_RANK": "SLURM_LOCALID"}
        os.environ |= {theirs: os.environ.pop(ours) for ours, theirs in names.items()}
        os.environ |= {"SLURM_JOB_ID": os.environ.pop("MASTER_PORT"), "SLURM_JOB_NODELIST": "localhost"}
        what = what.removeprefix("slurm, ")
    try:
        with (
            mock.patch.object(State, "update", troubled),
            mock.patch.object(torch, "save", full if what == "full disk" else torch.save),
            mock.patch.object(log.Log, "due", lambda self, last: self.main),
        ):
            train(flow, out, **changes)
    except UsageError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


@pytest.mark.parametrize(
    ("count", "rank", "what", "why"),
    [
        (2, 0, "nan", "the loss is not finite at step"),
        (3, 0, "full disk", "No space left on device"),
        (2, 1, "missing file", "photos/gone.tar: No such file"),
        (2, 1, "slurm, missing file", "photos/gone.tar: No such file"),
        (3, 1, "memory", "out of memory with 8 pictures at a time; the same command with `micro_batch` 4"),
        (2, 1, "a mistake of ours", "KeyError: 'oh'"),
        (3, 0, "kill -9", "rank 0 is gone without a word: killed"),
        (3, 1, "kill -9", "rank 1 is gone without a word: killed"),
    ],
)
def test_an_error_of_one_rank_ends_all_with_its_reason(
    flow, tmp_path: Path, count: int, rank: int, what: str, why: str
) -> None:
    began = time.monotonic()
    codes = ends(count, broken, flow, tmp_path / "run", rank, what)
    assert codes == [-signal.SIGKILL if what == "kill -9" and r == rank else 2 for r in range(count)]
    assert time.monotonic() - began < 60
    for r, code in enumerate(codes):
        said = (tmp_path / f"run.stderr{r}").read_text()
        assert code < 0 or why in said, said
        assert code < 0 or r == rank or f"rank {rank}" in said, said


def log_lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def sequence(out: Path, tag: str = "") -> list[str]:
    """Keys in the order of their places, each place once."""
    places = dict(line.split() for line in Path(f"{out}.keys{tag}").read_text().splitlines())
    assert sorted(map(int, places)) == list(range(len(places)))
    return [places[str(place)] for place in range(len(places))]


@pytest.mark.parametrize(
    ("count", "changes"),
    [(2, {}), (3, {"batch_size": 25}), (2, {"loop": LoopConfig(shard=True, ema=0.9, precision="fp32")})],
    ids=["two", "three, uneven", "two, sharded"],
)
def test_several_processes_make_the_same_steps_as_one(flow, tmp_path: Path, count: int, changes: dict) -> None:
    """Same samples, same weights up to rounding; also where the batch is no multiple of the processes; also sharded."""
    alone = {name: value for name, value in changes.items() if name != "loop"}
    watch = {"held_out": flow[0], "held_out_limit": 40, "watch_every": 96} if "loop" in changes else {}
    processes(1, train, flow, tmp_path / "one", **alone, **watch)
    processes(count, train, flow, tmp_path / "many", **changes, **watch)
    seen = [[line["mAP"] for line in log_lines(tmp_path / name) if "mAP" in line] for name in ("one", "many")]
    assert seen[0] == pytest.approx(seen[1], abs=0.1)
    assert len(seen[0]) == (2 if watch else 0)
    assert sequence(tmp_path / "one") == sequence(tmp_path / "many")
    for a, b in zip(weights(tmp_path / "one").values(), weights(tmp_path / "many").values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def stopped_early(flow, out: Path) -> None:
    """The second process is asked to stop at its third step."""
    asked, once = [], loop.any_rank

    def any_rank(flag: bool) -> bool:
        asked.append(flag)
        return once(flag or (len(asked) == 3 and os.environ["RANK"] == "1"))

    with mock.patch.object(loop, "any_rank", any_rank):
        train(flow, out, "2")


def test_two_processes_stop_and_three_go_on(flow, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    processes(1, train, flow, one)
    processes(2, stopped_early, flow, many)
    stop = torch.load(many / "resume" / "state.pt", weights_only=True)["samples"]
    assert 0 < stop < 192
    processes(3, train, flow, many, "3")
    before, after = (dict(x.split() for x in Path(f"{many}.keys{tag}").read_text().splitlines()) for tag in "23")
    before = {place: key for place, key in before.items() if int(place) < stop}
    assert not set(before) & set(after)
    both = {**before, **after}
    assert [both[str(place)] for place in range(192)] == sequence(one)
    for a, b in zip(weights(one).values(), weights(many).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_ends_in_peace(flow, tmp_path: Path, name: str) -> None:
    torch.set_num_threads(1)
    whole = pretrain(config=config(*flow, tmp_path / "whole")).out
    out = tmp_path / "run"

    def run() -> None:
        sys.stdout = (tmp_path / "printed").open("w", buffering=1)
        torch.set_num_threads(1)
        pretrain(config=config(*flow, out))

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    deadline = time.time() + 120
    while time.time() < deadline and not checkpoint.exists(out):
        time.sleep(0.02)
    os.kill(process.pid or 0, getattr(signal, name))
    process.join(60)
    assert process.exitcode == 0
    printed = (tmp_path / "printed").read_text()
    state = torch.load(out / "resume" / "state.pt", weights_only=True)
    if state["samples"] < 480:  # on a very fast machine it may have been over already
        assert f"{name}: saved at {state['samples']:,} samples; the same command goes on from there" in printed
        pretrain(config=config(*flow, out))
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(out).values(), strict=True))


def test_a_full_disk_keeps_the_last_checkpoint(flow, tmp_path: Path, monkeypatch, capsys) -> None:
    saves, whole = [], torch.save

    def full(state, file):
        saves.append(state["samples"])
        if len(saves) in (3, 4):
            file.write(b"half a checkpoint")
            raise OSError(28, "No space left on device")
        whole(state, file)

    monkeypatch.setattr(torch, "save", full)
    out = tmp_path / "run"
    pretrain(config=config(*flow, out, loop=LoopConfig(ema=0.9, precision="fp32", save_every=96)))
    said = capsys.readouterr().err
    assert "could not be written" in said
    assert "the checkpoint at 192 samples is kept" in said
    assert said.count("could not be written") == 2  # tried again at the next interval, not at every step
    assert not list((out / "resume").glob("*.part"))
    monkeypatch.setattr(torch, "save", whole)
    other = pretrain(config=config(*flow, tmp_path / "other")).out
    assert all(torch.equal(a, b) for a, b in zip(weights(out).values(), weights(other).values(), strict=True))


def test_a_disk_that_stays_full_ends_with_one_clear_line(flow, tmp_path: Path, monkeypatch) -> None:
    def full(state, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UsageError, match=r"could not be written.*there is no earlier checkpoint.*same command again"):
        pretrain(config=config(*flow, tmp_path / "run", samples=48))


def test_a_broken_checkpoint_falls_back_to_the_one_before(flow, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    pretrain(config=config(*flow, out, loop=LoopConfig(ema=0.9, precision="fp32", save_every=96)))
    before = weights(out)
    state = out / "resume" / "state.pt"
    state.write_bytes(state.read_bytes()[:5000])
    pretrain(config=config(*flow, out, loop=LoopConfig(ema=0.9, precision="fp32", save_every=96)))
    assert "going on from the checkpoint before it" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(before.values(), weights(out).values(), strict=True))
    for file in (out / "resume").iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="remove it to start anew"):
        pretrain(config=config(*flow, out))


@pytest.mark.parametrize("content", [b"", b"PK", torch.zeros(2)], ids=["empty", "cut", "another file"])
def test_any_broken_checkpoint_gives_way_to_the_one_before(tmp_path: Path, capsys, content) -> None:
    checkpoint.save(tmp_path, {"samples": 24})
    checkpoint.save(tmp_path, {"samples": 48})
    newest = tmp_path / checkpoint.RESUME
    newest.write_bytes(content) if isinstance(content, bytes) else torch.save(content, newest)
    assert checkpoint.load(tmp_path) == {"samples": 24}
    assert "state.pt cannot be read (" in capsys.readouterr().err


def test_an_average_switched_on_begins_with_the_weights_that_are_there(flow, tmp_path: Path) -> None:
    out = pretrain(config=config(*flow, tmp_path / "run", samples=240, loop=LoopConfig(ema=0.0, precision="fp32"))).out
    trained = torch.load(out / "resume" / "state.pt", weights_only=True)["task"]
    cfg = config(*flow, out, samples=264, loop=LoopConfig(ema=0.999, precision="fp32"), accept_changes=True)
    average = weights(pretrain(config=cfg).out)
    initial = make_task(cfg, Context(Vocabulary.load(flow[1]))).state_dict()
    name = "objective.head.weight"
    assert (average[name] - trained[name]).norm() < 0.02 * (average[name] - initial[name]).norm()


def test_changes_are_refused_and_can_be_allowed(flow, tmp_path: Path, capsys) -> None:
    out = pretrain(config=config(*flow, tmp_path / "run", samples=240)).out
    changed = config(*flow, out, samples=480, optim=OptimConfig(lr=1e-3, weight_decay=0.3, betas=(0.8, 0.9)))
    with pytest.raises(UsageError, match=r"optim.lr: 0.005 there, 0.001 here.*`accept_changes`"):
        pretrain(config=changed)
    pretrain(config=replace(changed, accept_changes=True))
    assert "going on with changes" in capsys.readouterr().out
    state = torch.load(out / "resume" / "state.pt", weights_only=True)
    assert state["samples"] == 480
    groups = state["optimizers"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]  # what is saved is what was used
    assert all(tuple(group["betas"]) == (0.8, 0.9) for group in groups)
    card = json.loads((out / "config.json").read_text())
    assert any("optim.lr" in line for line in card["history"][0]["changed"])
    with pytest.raises(UsageError, match=r"cannot go on with backbone.*`start`"):
        pretrain(config=config(*flow, out, accept_changes=True, **VIT))


def test_everything_at_once_learns_to_resume(flow, tmp_path: Path, monkeypatch) -> None:
    """Several sizes, dropped patches, learned augmentation, watching: interrupted and not, the same bits."""

    def run(out: Path, **changes) -> None:
        cfg = config(
            *flow, out, **VIT, curriculum=CurriculumConfig(scales=(16, 32), patch_keep=0.5, patch_keep_share=0.7),
            augment=AugmentConfig(range_augment=True), held_out=flow[0], watch_every=240,
            loop=LoopConfig(ema=0.9, precision="fp32", save_every=96), **changes,
        )  # fmt: skip
        pretrain(config=cfg)

    run(tmp_path / "whole")
    entries = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert any("mAP" in entry for entry in entries)
    assert any("augment" in entry for entry in entries)
    assert list((tmp_path / "whole").glob("events.out.tfevents.*"))
    held = json.loads((tmp_path / "whole" / "held_out.json").read_text())
    assert held["labels"]
    assert held["sheet"][0]["jpeg"]
    with cut_short(200):
        run(tmp_path / "cut")
    run(tmp_path / "cut")
    ours, theirs = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_hours_become_samples_and_stay_so(flow, tmp_path: Path, monkeypatch, capsys) -> None:

    monkeypatch.setattr(session, "SECONDS", 0.2)
    cfg = config(*flow, tmp_path / "run", samples=0, hours=2 / 3600)
    pretrain(config=cfg)
    assert "images/s measured" in capsys.readouterr().out
    budget = json.loads((tmp_path / "run" / "config.json").read_text())["facts"]["budget"]
    assert budget % 24 == 0
    pretrain(config=cfg)
    assert torch.load(tmp_path / "run" / "resume" / "state.pt", weights_only=True)["samples"] == budget


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "convnext_atto"])
def test_compiled_backbones_take_the_same_way(name: str) -> None:
    """What `compile` compiles is what `pooled` computes."""
    encoder = Encoder.create(name, image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features = encoder.backbone.forward_features(x)
        torch.testing.assert_close(encoder.pooled(x), encoder.backbone.forward_head(features, pre_logits=True))


def test_dropped_patches_are_dropped_in_training_only() -> None:
    encoder = Encoder.create("test_vit", image_size=64, drop_patches=True)
    x = torch.randn(2, 3, 64, 64)
    seen = []
    encoder.backbone.blocks[0].register_forward_hook(lambda m, i, o: seen.append(i[0].shape[1]))
    for share in (1.0, 0.5):
        encoder.keep_patches(share)
        encoder.pooled(x)
    encoder.eval().pooled(x)
    assert seen == [17, 9, 17]
    with pytest.raises(UsageError, match=r"resnet10t.*dropped patches"):
        Encoder.create("resnet10t", image_size=64, drop_patches=True)


def test_range_augment_starts_and_aims_as_the_official_one() -> None:
    augment = RangeAugment()
    for name, ends in {"brightness": (0.598, 8.376), "contrast": (0.598, 8.376), "noise": (2.5e-5, 0.525)}.items():
        assert [round(end.item(), 6) for end in augment.range(name)] == pytest.approx(ends, abs=1e-3)
    # PSNR 40 -> 20 dB; the cosine is on the squared error: 28.1 dB at a quarter, 22.97 at the half.
    for progress, decibels in ((0, 40), (0.25, 28.1), (0.5, 22.97), (1, 20)):
        assert augment.target(progress) == pytest.approx(255**2 / 10 ** (decibels / 10), rel=0.01)
    torch.manual_seed(0)
    image = torch.rand(8, 3, 16, 16)
    out, loss = augment(image, 0.5)
    assert out.shape == image.shape
    assert out.min() >= 0
    assert out.max() <= 1
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite() for p in augment.parameters())


def test_range_augment_learns_its_target() -> None:
    torch.manual_seed(0)
    augment, image = RangeAugment(), torch.rand(64, 3, 16, 16)
    optimizer = torch.optim.Adam(augment.parameters(), lr=0.1)
    errors = []
    for _ in range(200):
        out, loss = augment(image, 1.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        errors.append((out.detach() - image).mul(255).square().mean().item())
    target = augment.target(1.0)
    assert abs(sum(errors[-20:]) / 20 - target) < abs(sum(errors[:5]) / 5 - target) / 2


def test_a_place_among_slurm_s_tasks() -> None:
    env = {"SLURM_NTASKS": "16", "SLURM_PROCID": "11", "SLURM_LOCALID": "3", "SLURM_NTASKS_PER_NODE": "8",
           "SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "gpu[03-04]"}  # fmt: skip
    assert distributed._place(env) == (11, 16, 3, 8)
    assert (env["MASTER_ADDR"], env["MASTER_PORT"]) == ("gpu03", "34567")
    assert distributed._place({"RANK": "1", "WORLD_SIZE": "2"}) == (1, 2, 0, 2)
    assert distributed._place({}) == (0, 1, 0, 1)


def test_slurm_s_hosts() -> None:
    assert first_host("gpu[03-05,9],login1") == "gpu03"
    assert first_host("node7") == "node7"
    assert first_host("a1,a2") == "a1"


def test_muon_trains_the_blocks_alone(flow, tmp_path: Path) -> None:
    pytest.importorskip("torch", minversion="2.9")
    out = pretrain(
        config=config(*flow, tmp_path / "run", **VIT, optim=OptimConfig(optimizer="muon", lr=1e-3), samples=96)
    ).out
    names = torch.load(out / "resume" / "state.pt", weights_only=True)["optimizers"][1]["state"]
    assert names
    assert all(".blocks." in name for name in names)
    with pytest.raises(UsageError, match="transformer blocks"):
        pretrain(config=config(*flow, tmp_path / "other", optim=OptimConfig(optimizer="muon"), samples=96))


def test_settings_of_a_run_have_the_defaults_of_the_paper() -> None:
    cfg = PretrainConfig(data="", vocab="", out="")
    assert (cfg.crop.scale, cfg.curriculum.patch_keep, cfg.augment.range_augment) == ((0.08, 1.0), 1.0, False)


# What stands in the run folder, and what is said of it


def test_what_could_not_be_read_is_kept_from_session_to_session(tmp_path: Path, capsys, monkeypatch) -> None:
    """Also where the session before was killed: its checkpoint has the reasons of all processes beside it."""
    members = {f"{i:04d}.jpg": jpeg(seed=i) for i in range(300)} | {"0007.jpg": b"no picture", "0133.jpg": b"nor this"}
    members |= {f"{i:04d}.txt": b"an apple and a lake" for i in range(300)}
    data = str(write_tar(tmp_path / "x.tar", members))
    build_vocabulary(data, out=str(tmp_path / "vocab.tsv"), min_count=5)
    out, save = tmp_path / "run", checkpoint.save
    cfg = config(
        data, tmp_path / "vocab.tsv", out, samples=300, batch_size=30, loop=LoopConfig(precision="fp32", save_every=60)
    )

    def killed(folder: Path, state: dict) -> None:
        save(folder, state)
        if state["samples"] == 240:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain(config=cfg)
    first = json.loads((out / "unreadable.json").read_text())
    assert first
    monkeypatch.setattr(checkpoint, "save", save)
    pretrain(config=cfg)
    found = json.loads((out / "unreadable.json").read_text())
    assert found.keys() == {"0007", "0133"}
    assert first.items() <= found.items()
    assert "2 samples could not be read and were skipped" in capsys.readouterr().out


def test_a_line_that_was_cut_costs_a_line(flow, tmp_path: Path) -> None:
    out = pretrain(config=config(*flow, tmp_path / "run", samples=48)).out
    log = out / "log.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    write_report(out)
    append_json(log, {"samples": 72, "loss": 1.0})
    assert [line["samples"] for line in read_jsonl(log)][-1] == 72
    write_report(out)
    append_json(tmp_path / "new.jsonl", {"a": 1})
    append_json(tmp_path / "new.jsonl", {"a": 2})
    assert (tmp_path / "new.jsonl").read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("pictures", "epochs", "batch", "budget", "says"),
    [
        (10, 1.0, 128, 128, "`epochs` 1 of 10 samples is no whole number of batches of 128: 12.8 epochs (128 samples)"),
        (90, 1.0, 64, 64, "0.711 epochs"),
        (128, 2.0, 64, 256, ""),
        (1000, 3.0, 64, 3008, ""),
    ],
)
def test_epochs_that_are_no_epochs_are_said(capsys, pictures: int, epochs: float, batch: int, budget: int, says: str):
    cfg = PretrainConfig(data="", vocab="", out="", epochs=epochs, batch_size=batch)
    mine = session.Session(None, None, cfg, None, SimpleNamespace(length=pictures), 1)
    assert mine.budget(Path()) == budget
    said = capsys.readouterr().out
    assert says in said
    assert bool(says) == bool(said)


@pytest.mark.parametrize("where", ["file/run", "full/run"])
def test_a_folder_that_cannot_be_written_is_a_clear_line(flow, tmp_path: Path, where: str, monkeypatch) -> None:
    (tmp_path / "file").write_text("a letter")
    if where == "full/run":
        full = OSError(errno.ENOSPC, "No space left on device")
        monkeypatch.setattr(runfolder, "write_text", mock.Mock(side_effect=full))
    with pytest.raises(UsageError, match=r"`out` .*run cannot be written: (Not a directory|No space left)"):
        pretrain(config=config(*flow, tmp_path / where))
    assert not (tmp_path / where / "config.json").exists()


def test_a_full_disk_for_the_log_is_a_clear_line(flow, tmp_path: Path, monkeypatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "log.jsonl")
    monkeypatch.setattr(log, "append_json", mock.Mock(side_effect=full))
    with pytest.raises(UsageError, match=r"log.jsonl: No space left on device"):
        pretrain(config=config(*flow, tmp_path / "run", samples=24))


def test_a_speed_is_measured_without_a_stray_tokenizer(flow, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").write_text("another program's")
    cfg = config(*flow, "", objective=Subwords(), tokens=TokenizerConfig(tokens=600, context=16))
    assert speed_of(replace(cfg, out=""), 0.1) > 0


def claimed_slowly(flow, out: Path) -> None:
    """Rank 0 takes its time between the first file of a run folder and the second; captions are read by it alone."""
    begin, opened = trainer._open_folder, pretraining.make_tokenizer

    def slowly(session, out: Path, *rest) -> object:
        out.mkdir(exist_ok=True)
        (out / "events.out.tfevents.half").touch()
        time.sleep(0.5)
        (out / "events.out.tfevents.half").unlink()
        return begin(session, out, *rest)

    def counted(*args) -> object:
        Path(f"{out}.tokenizer{os.environ['RANK']}").touch()
        return opened(*args)

    with mock.patch.object(trainer, "_open_folder", slowly), mock.patch.object(pretraining, "make_tokenizer", counted):
        train(flow, out, samples=48, objective=Subwords(), tokens=TokenizerConfig(tokens=600, context=16))


def test_one_process_claims_the_folder_and_trains_the_tokenizer(flow, tmp_path: Path) -> None:
    processes(2, claimed_slowly, flow, tmp_path / "run")
    assert (tmp_path / "run" / "tokenizer.json").exists()
    assert [path.name for path in tmp_path.glob("run.tokenizer*")] == ["run.tokenizer0"]


# Which GPU is whose


@pytest.mark.parametrize(
    ("rank", "size", "gpus", "name", "wanted"),
    [
        (0, 4, 4, "auto", "cuda:0"),
        (3, 4, 4, "cuda", "cuda:3"),
        (3, 4, 1, "auto", "cuda:0"),  # srun --gpus-per-task=1: each process sees its own alone
        (0, 1, 4, "cuda:2", "cuda:2"),
        (3, 4, 2, "cuda", "process 3 of this machine has no GPU; there are 2"),
        (1, 2, 2, "cuda:1", "leave the number out"),
    ],
)
def test_each_process_takes_its_own_gpu_and_touches_no_other(
    monkeypatch: pytest.MonkeyPatch, rank: int, size: int, gpus: int, name: str, wanted: str
) -> None:
    touched: list[tuple[str, str]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: touched.append(("set", str(device))))
    monkeypatch.setattr(torch, "empty", lambda *_, device: touched.append(("used", str(device))))
    if wanted.startswith("cuda"):
        assert str(distributed.pick_device(name, rank, alone=size == 1)) == wanted
        assert touched == [("set", wanted), ("used", wanted)]
    else:
        with pytest.raises(UsageError, match=wanted):
            distributed.pick_device(name, rank, alone=size == 1)
        assert not touched


def test_two_processes_on_one_gpu_are_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = SimpleNamespace(uuid="GPU-1")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: uuid)
    monkeypatch.setattr(distributed, "all_gather", lambda value: [("other", "GPU-1"), value, value])
    with pytest.raises(UsageError, match=r"ranks \[1, 2\] have one GPU between them"):
        distributed._check_own_gpu(World(1, 3, 1, 3, torch.device("cuda:0")))
    monkeypatch.setattr(distributed, "all_gather", lambda value: [("other", "GPU-1"), value])
    distributed._check_own_gpu(World(1, 2, 1, 2, torch.device("cuda:0")))
