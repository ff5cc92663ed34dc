"""A run from its folder's point of view: claim it or go on, train, and leave a record. Pre-training and every kind of
fine-tuning go this way, so all of them stop, resume and log alike."""

import contextlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from catlip.data.loader import Loader
from catlip.errors import UsageError
from catlip.notices import say
from catlip.objectives import gather
from catlip.training.distributed import World, any_rank
from catlip.training.log import Log, Trackers
from catlip.training.loop import LoopConfig, Stopped, fit
from catlip.training.optim import OptimConfig
from catlip.training.precision import choose, record
from catlip.training.runfolder import UNREADABLE, add_unreadable, claim, read_card, set_machine, write_card


class Settings(Protocol):
    """What a verb's settings have to have for its run."""

    out: str
    samples: int  # budget: pictures seen; or epochs, or hours
    epochs: float
    hours: float
    batch_size: int
    seed: int
    accept_changes: bool
    optim: OptimConfig
    loop: LoopConfig


def carry_out(
    task: nn.Module,
    loader: Loader,
    world: World,
    cfg: Any,
    *,
    budget: int,
    facts: dict[str, Any],
    described: str,
    begin: Callable[[Path], None],
    watch: Callable[[nn.Module, int], dict[str, float]] | None = None,
    watch_every: int = 0,
    track: tuple[str, ...] = (),
    flops: float = 0.0,
    peak: float = 0.0,
) -> dict[str, Tensor] | None:
    """Train, or go on; the trained weights, on the main process; None if the run was asked to stop.

    cfg: `Settings`. facts: what must be the same for a run that goes on. described: for people, said once. begin(out)
    writes what the folder has from the first moment on. flops: of a picture, and peak: of a second, for the log.
    Raises UsageError if the folder holds anything else.
    """
    out, trackers = Path(cfg.out), None
    if world.main:
        trackers = _begin(out, cfg, facts, begin, loader.batches.source.troubles, track)
    any_rank(False)  # nobody looks into the folder before rank 0 has made it this run's
    precision = choose(cfg.loop.precision, world, read_card(out).get("machine"))
    if world.main:
        set_machine(out, record(precision, world.device))
        say(f"{described}; {precision}")
    log = Log(
        out,
        budget,
        main=world.main,
        trackers=trackers,
        watch_every=watch_every or budget // 10,
        peak=peak,
        flops=flops,
        workers=loader.workers,
    )
    trained, stopped = None, ""
    try:
        trained = fit(
            task,
            loader,
            world,
            budget=budget,
            optim=cfg.optim,
            loop=cfg.loop,
            precision=precision,
            seed=cfg.seed,
            out=out,
            log=log,
            watch=watch,
        )
    except Stopped as reason:
        stopped = f"{out}: {reason}; the same command goes on from there"
    except BaseException:
        with contextlib.suppress(OSError):  # what this process met since the last checkpoint; the error matters more
            add_unreadable(out, loader.unreadable.reasons)
        raise
    finally:  # no collective here: the others may be inside another one
        log.close()
    if world.main:
        if found := add_unreadable(out, {}):
            key, why = next(iter(found.items()))
            say(
                f"{len(found):,} samples could not be read and were skipped, e.g. {key}: {why}; all in "
                f"{out / UNREADABLE}"
            )
        if stopped:
            say(stopped)
    return trained


def _begin(
    out: Path,
    cfg: Any,
    facts: dict[str, Any],
    begin: Callable[[Path], None],
    troubles: dict[str, str],
    track: tuple[str, ...],
) -> Trackers:
    """Make the folder this run's, or find that it is. Raises UsageError."""
    try:
        if not claim(out, cfg, facts, accept=cfg.accept_changes):
            write_card(out, cfg, facts)
            begin(out)
        add_unreadable(out, troubles)
        return Trackers(out, track, asdict(cfg))
    except OSError as error:
        raise UsageError(f"`out` {out} cannot be written: {error.strerror or error}; choose another folder") from None


def require(cfg: Any, *options: str) -> None:
    """Raises UsageError for the first of these settings that is empty, as a recipe leaves what is the user's own."""
    for option in options:
        if not getattr(cfg, option):
            raise UsageError(f"`{option}` is missing")


def budget_of(cfg: Any, length: int, speed: Callable[[], float] | None = None) -> int:
    """Samples to see: a whole number of batches. length: samples of an epoch; speed(): images/s, measured.

    cfg: `Settings`. Raises UsageError unless the budget is named once.
    """
    ways = {"samples": cfg.samples, "epochs": cfg.epochs} | ({"hours": cfg.hours} if speed else {})
    if sum(map(bool, ways.values())) != 1:
        *most, last = (f"`{way}`" for way in ways)
        raise UsageError(f"give the budget as {', '.join(most)} or {last}, one of them")
    if cfg.batch_size < 1 or min(ways.values()) < 0:
        raise UsageError(f"`batch_size`, {', '.join(f'`{way}`' for way in ways)} are positive numbers")
    if speed and cfg.hours:
        out = Path(cfg.out)
        if out.exists() and any(out.iterdir()):  # a run in progress keeps the budget that was measured when it began
            return int(read_card(out).get("facts", {}).get("budget", 0)) or cfg.batch_size
        rate = speed()
        wanted = rate * cfg.hours * 3600
        say(f"{rate:,.0f} images/s measured: {wanted:,.0f} samples in {cfg.hours:g} hours")
    else:
        wanted = cfg.samples or cfg.epochs * length
    budget = max(1, round(wanted / cfg.batch_size)) * cfg.batch_size
    if cfg.epochs and abs(budget - wanted) > 0.05 * wanted and gather.world()[0] == 0:
        say(
            f"`epochs` {cfg.epochs:g} of {length:,} samples is no whole number of batches of {cfg.batch_size:,}: "
            f"{budget / length:.3g} epochs ({budget:,} samples); a smaller `batch_size` comes closer"
        )
    return budget
