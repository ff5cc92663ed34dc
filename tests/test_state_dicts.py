"""Plain state dicts as starts: whose weights they are is found out, or refused; nothing in them is run."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import catlip
from catlip.errors import UsageError
from catlip.models.state_dicts import matched_to, tensors_of, timm_model
from catlip.models.weights import fingerprint, open_weights

NAME = "test_resnet"
X = torch.rand(2, 3, 64, 64)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    made = timm.create_model(NAME, num_classes=7)
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
    return made.eval()


def renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"_{name.replace('.', '_')}": value for name, value in state.items()}


def without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if "num_batches" not in name}


CHANGES: dict[str, Callable[[dict[str, Tensor]], dict]] = {
    "as they are": dict,
    "behind a prefix": lambda state: {f"net.backbone.{name}": value for name, value in state.items()},
    "beside others": lambda state: (
        {
            **{f"student.{name}": value + 1 for name, value in state.items()},
            "epoch": torch.zeros(()),
            "student.projector.weight": torch.zeros(3, 3),
        }
        | {f"student.{name}": value for name, value in state.items()}
    ),
    "in a checkpoint": lambda state: {
        "epoch": 3,
        "model": {k: v + 1 for k, v in state.items()},
        "state_dict_ema": state,
    },
    "wrapped for several GPUs": lambda state: {"state_dict": {f"module.{name}": v for name, v in state.items()}},
    "named otherwise": renamed,
    "without counters": without_counters,
    "named otherwise, without counters": lambda state: renamed(without_counters(state)),
}


@pytest.mark.parametrize("change", CHANGES, ids=list(CHANGES))
def test_the_weights_arrive_whatever_their_names(tmp_path: Path, model: nn.Module, change: str) -> None:
    file = tmp_path / "weights.pth"
    torch.save(CHANGES[change](model.state_dict()), file)
    encoder = catlip.load(f"{NAME}={file}")
    with torch.no_grad():
        wanted = model.forward_head(model.forward_features(X), pre_logits=True)  # type: ignore[operator]
        assert torch.equal(encoder.pooled(X), wanted)
    cfg = timm.get_pretrained_cfg(NAME)
    assert cfg is not None
    assert (encoder.view["crop_pct"], encoder.view["mean"]) == (cfg.crop_pct, cfg.mean)
    assert open_weights(f"{NAME}={file}").architecture == NAME


def test_safetensors_modules_and_state_dicts_are_the_same(tmp_path: Path, model: nn.Module) -> None:
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    found = [
        catlip.load(tmp_path / "w.safetensors", backbone=NAME),
        catlip.load(model.state_dict(), backbone=NAME),
        catlip.load(model, backbone=NAME),
        catlip.load(model),
    ]
    with torch.no_grad():
        vectors = [encoder.eval().pooled(X) for encoder in found]
    assert all(torch.equal(vectors[0], other) for other in vectors)
    assert len({fingerprint(encoder) for encoder in found[:3]}) == 1


def test_another_file_is_another_start(tmp_path: Path, model: nn.Module) -> None:
    prints = set()
    for number in range(2):
        torch.save({name: value + number for name, value in model.state_dict().items()}, tmp_path / "w.pth")
        prints.add(fingerprint(f"{NAME}={tmp_path / 'w.pth'}"))
    assert len(prints) == 2


def test_order_is_trusted_only_where_all_shapes_agree(model: nn.Module) -> None:
    state = renamed(model.state_dict())
    names = list(state)
    swapped = {name: state[name] for name in [names[6], *names[1:6], names[0], *names[7:]]}
    assert swapped[names[6]].shape != state[names[0]].shape
    with pytest.raises(UsageError, match="does not fit test_resnet"):
        matched_to(timm_model(NAME), swapped, "it")
    with pytest.raises(UsageError, match="does not fit test_resnet"):
        matched_to(timm_model(NAME), {**state, "more.weight": torch.zeros(3, 3, 3, 3)}, "it")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{0}/weights.pth", "does not say its architecture; name it"),
        ("{0}", "is no run and no model folder"),
        ("no_such_net={0}/weights.pth", "timm .* has no such model"),
        ("resnet18={0}/weights.pth", "does not fit resnet18: .* missing"),
        ("test_resnet={0}/nothing.pth", "no such checkpoint"),
        ("test_resnet={0}/cut.pth", "no readable checkpoint, or cut off"),
        ("test_resnet={0}/cut.safetensors", "damaged or cut off"),
        ("test_resnet={0}/code.pth", "wants to run code"),
        ("test_resnet={0}/numbers.pth", "no state dict"),
    ],
)
def test_what_cannot_be_a_start_is_refused(tmp_path: Path, model: nn.Module, source: str, says: str) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.safetensors").write_bytes(b"\x10" * 100)
    torch.save(model, tmp_path / "code.pth")
    torch.save([1, 2, 3], tmp_path / "numbers.pth")
    with pytest.raises(UsageError, match=says):
        catlip.load(source.format(tmp_path))


def test_a_module_of_somebody_else_says_what_it_needs() -> None:
    with pytest.raises(UsageError, match="name it: load"):
        catlip.load(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="no state dict"):
        tensors_of({}, "it")
