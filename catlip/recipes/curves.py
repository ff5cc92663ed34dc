"""Learning curves of fine-tuning: accuracy against the number of labels, several runs each. The verb `finetune`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from catlip.atomic import read_jsonl
from catlip.config import configure, plain
from catlip.errors import UsageError
from catlip.evaluation.learning_curve import CurveResult
from catlip.evaluation.probe import numbers_in
from catlip.models.weights import origin
from catlip.notices import say
from catlip.tasks.finetune import FinetuneConfig as FinetuneConfig
from catlip.tasks.finetune import curve_key
from catlip.tasks.finetune import finetune as fine_tune

RESULTS = "results.jsonl"


def finetune(
    encoder: Any = None, train: Any = None, test: Any = None, *, config: FinetuneConfig | None = None, **settings: Any
) -> Any:
    """Fine-tune once; or, with `fractions` or `seeds`, many times below `out`, for a learning curve.

    A curve's points are runs of their own: what is finished with these settings and sets is not done again, results of
    others are left alone. The newest curve of the probe on the same data, if the run has one, stands beside it on the
    page. Arguments as of `tasks.finetune.finetune`. Returns a Run or a CurveResult; None if a curve was stopped. Raises
    UsageError as a single run does.
    """
    cfg = configure(FinetuneConfig, config, run=encoder, train=train, test=test, **settings)
    if not cfg.fractions and cfg.seeds == 1:
        return fine_tune(config=cfg)
    if cfg.seeds < 1:
        raise UsageError(f"`seeds` {cfg.seeds}: one or more")
    shares = numbers_in(cfg.fractions, "`fractions`", float) if cfg.fractions else [cfg.fraction]
    if not all(0 < share <= 1 for share in shares):
        raise UsageError(f"`fractions` {cfg.fractions or cfg.fraction}: shares of the training set, above 0, at most 1")
    out, key = Path(cfg.out), curve_key(cfg)
    if others := [file for file in out.glob(f"*-seed*/{RESULTS}") if file.parent.name[-8:] != key]:
        say(f"{out}: {len(others)} results of other settings or sets are left there and not counted")
    curve, last = [], {}
    for share in shares:
        point: dict[str, Any] = {"told": f"{100 * share:g} %", "share": share}
        for init in ("random", "transfer") if cfg.init == "transfer" else ("random",):
            for seed in range(cfg.seed, cfg.seed + cfg.seeds):
                folder = out / f"{init}-{share:g}-seed{seed}-{key}"
                one = replace(cfg, fraction=share, fractions="", seeds=1, seed=seed, init=init, out=str(folder))
                if not (folder / RESULTS).is_file():
                    fine_tune(config=one)
                if not (folder / RESULTS).is_file():
                    return None  # stopped; the same call goes on from there
                last = read_jsonl(folder / RESULTS)[-1]
                point.setdefault(init, []).append(last["mAP" if "mAP" in last else "top1"])
                point["pictures"] = last["train"]
        curve.append(point)
    same = {name: last[name] for name in ("classes", "test", "image_size", "data", "encoder")}
    return CurveResult(**same, curve=curve, beside=_probed(cfg)).saved(out)


def _probed(cfg: FinetuneConfig) -> list[dict[str, Any]]:
    """The newest curve of `catlip probe` on the same data."""
    file = Path(origin(cfg.run)) / RESULTS
    found = read_jsonl(file) if file.is_file() else []
    same = [
        f for f in found if f["task"] == "probe" and f.get("curve") and f["data"] == [plain(cfg.train), plain(cfg.test)]
    ]
    return same[-1:]
