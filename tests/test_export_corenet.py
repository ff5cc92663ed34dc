"""Official checkpoints: the same logits as the official code, the same sizes, and nothing in a file is ever run."""

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import catlip
from catlip.errors import UsageError
from catlip.export.convert import convert, translate
from catlip.labels.vocabulary import Vocabulary
from catlip.labels.wordnet import open_lexicon
from catlip.models.state_dicts import read_state
from tests.conftest import SHARED

REFERENCE = SHARED.parent / "reference" / "corenet_vit"
with_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="needs the reference outputs of the official code")


def official(width: int = 192, depth: int = 12, classes: int = 5, cls: bool = True) -> dict[str, Tensor]:
    """Random weights under the official names, written out here a second time and independently of the key map."""
    torch.manual_seed(0)
    narrow = max(32, width // 4)
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embed.pos_embed.pos_embed": (1, 1, 196, width), "patch_emb.0.block.conv.weight": (narrow, 3, 4, 4),
        "patch_emb.1.block.conv.weight": (narrow, narrow, 2, 2), "patch_emb.2.block.conv.weight": (width, narrow, 2, 2),
        "patch_emb.2.block.conv.bias": (width,), "post_transformer_norm.weight": (width,),
        "post_transformer_norm.bias": (width,), **({"cls_token": (1, 1, width)} if cls else {}),
        **({"classifier.weight": (classes, width), "classifier.bias": (classes,)} if classes else {}),
    }  # fmt: skip
    for i in (0, 1):
        shapes |= {
            f"patch_emb.{i}.block.norm.{name}": (narrow,) for name in ("weight", "bias", "running_mean", "running_var")
        }
        shapes[f"patch_emb.{i}.block.norm.num_batches_tracked"] = ()
    for i in range(depth):
        for name, shape in {
            "pre_norm_mha.0": (width,), "pre_norm_mha.1.qkv_proj": (3 * width, width),
            "pre_norm_mha.1.out_proj_attn": (width, width), "pre_norm_ffn.0": (width,),
            "pre_norm_ffn.1": (4 * width, width), "pre_norm_ffn.4": (width, 4 * width),
        }.items():  # fmt: skip
            shapes |= {f"transformer.{i}.{name}.weight": shape, f"transformer.{i}.{name}.bias": shape[:1]}
    for name in ("brightness", "contrast", "noise"):
        shapes |= {f"neural_augmentor.{name}.{end}": () for end in ("_low", "_high")}
    state = {name: torch.randn(shape) * 0.1 for name, shape in shapes.items()}
    state |= {name: value.abs() + 0.5 for name, value in state.items() if name.endswith("running_var")}
    state |= {name: torch.tensor(7) for name in state if name.endswith("num_batches_tracked")}
    return state


def saved(folder: Path, state: object) -> str:
    path = folder / "checkpoint.pt"
    torch.save(state, path)
    return str(path)


@with_reference
@pytest.mark.parametrize("size", [224, 160, 288])
@torch.no_grad()
def test_logits_are_the_official_ones(tmp_path: Path, size: int) -> None:
    run = convert(str(REFERENCE / "vit_tiny.pt"), out=tmp_path / "run")
    arrays = np.load(REFERENCE / "io.npz")
    x = torch.from_numpy(arrays[f"image_{size}"]).float() / 255
    expected = torch.from_numpy(arrays[f"logits_{size}"])
    assert float((catlip.load(run).logits(x) - expected).abs().max()) < 1e-5
    grid = convert(str(REFERENCE / "vit_tiny.pt"), out=tmp_path / "2d", positions="2d")
    apart = float((catlip.load(grid).logits(x) - expected).abs().max())
    assert apart < 1e-5 if size == 224 else apart > 1e-4  # the corrected interpolation is another function


@pytest.mark.parametrize(("name", "numbers"), [("base", 104_657_414), ("large", 328_766_214), ("huge", 663_152_646)])
def test_parameter_counts_are_the_official_ones(name: str, numbers: int) -> None:
    model = timm.create_model(f"corenet_vit_{name}", num_classes=24_320, device="meta")
    augmentor = 6  # learned strengths of RangeAugment: counted officially, of use in training alone
    assert sum(p.numel() for p in model.parameters()) + augmentor == numbers


def test_every_tensor_arrives_and_the_official_encoder_saves_like_any_other(tmp_path: Path) -> None:
    state = official()
    run = convert(saved(tmp_path, OrderedDict(state)), out=tmp_path / "run")
    encoder = catlip.load(run)
    torch.testing.assert_close(
        encoder.backbone.blocks[3].attn.qkv.weight, state["transformer.3.pre_norm_mha.1.qkv_proj.weight"]
    )
    torch.testing.assert_close(encoder.backbone.head.bias, state["classifier.bias"])
    x = torch.rand(2, 3, 96, 64)
    assert encoder.tokens(x).shape == (2, 24, 192)
    assert encoder.pooled(x).shape == (2, 192)
    assert [level.shape for level in encoder.pyramid(x)][-1] == (2, 192, 6, 4)
    assert encoder.transform.transforms[-1].mean == [0.0, 0.0, 0.0]
    encoder.save(tmp_path / "again", encoder.backbone.head, label_names=encoder.labels)
    again = catlip.load(tmp_path / "again")
    assert again.backbone.positions == "1d"
    assert torch.equal(again.logits(x), encoder.logits(x))


def test_positions_on_the_grid_keep_rows_and_columns() -> None:
    one, two = (timm.create_model("corenet_vit_tiny", num_classes=0, positions=mode) for mode in ("1d", "2d"))
    code = torch.zeros(1, 196, 192)
    code[0, :, 0] = torch.arange(196) % 14  # the column
    features = {}
    for mode, model in (("1d", one), ("2d", two)):
        model.pos_embed.data = code
        model.cls_token.data.zero_()
        features[mode] = model._pos_embed(torch.zeros(1, 20, 20, 192))[0, 1:, 0].reshape(20, 20)
    columns = torch.arange(20.0).expand(20, 20)

    def correlation(found: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([found.flatten(), columns.flatten()]))[0, 1])

    assert correlation(features["2d"]) > 0.99
    assert correlation(features["1d"]) < 0.2


@pytest.mark.parametrize("stride", [16, 8])
def test_encoders_inside_detectors_and_segmenters(tmp_path: Path, stride: int) -> None:
    state = {f"encoder.{name}": value for name, value in official(classes=0, cls=False).items()}
    state |= {
        "encoder.simple_fpn.out_l2.0.block.conv.weight": torch.zeros(1),
        "seg_head.classifier.weight": torch.zeros(2),
    }
    found, dropped = translate(state, "x.pt")
    assert dropped == {"encoder.neural_augmentor": 6, "encoder.simple_fpn": 1, "seg_head": 1}
    assert not any(name.startswith("head") for name in found)
    run = convert(saved(tmp_path, state), out=tmp_path / "run", stride=stride)
    encoder = catlip.load(run)
    x = torch.rand(1, 3, 64, 64)
    assert encoder.tokens(x).shape == (1, (64 // stride) ** 2, 192)
    assert encoder.pyramid(x)[-1].shape == (1, 192, 64 // stride, 64 // stride)
    torch.testing.assert_close(encoder.pooled(x), encoder.tokens(x).mean(1))  # no class token: the mean
    with pytest.raises(UsageError, match="no classifier"):
        encoder.logits(x)


def test_the_averaged_weights_of_a_training_checkpoint_are_taken(tmp_path: Path) -> None:
    average = {"module.a": torch.ones(1)}
    state = {"iterations": 7, "model_state_dict": {"a": torch.zeros(1)}, "ema_model_state_dict": average}
    assert read_state(saved(tmp_path, state))["a"].item() == 1


def test_rows_are_named_in_the_order_of_the_official_vocabulary(tmp_path: Path) -> None:
    keys = ["n2084071", "n10287213", "n7697537", "n4610879", "n12102133", "n9917593"]  # offsets without padding
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps({key: 100 - i for i, key in enumerate(keys)}))
    checkpoint = saved(tmp_path, official())
    run = convert(checkpoint, vocab=str(tmp_path / "vocab.pkl"), out=tmp_path / "run")
    encoder = catlip.load(run)
    assert encoder.labels == ["n02084071", "n10287213", "n07697537", "n04610879", "n12102133"]
    assert encoder.names[0] == open_lexicon().synset("n02084071").name.replace("_", " ") == "dog"
    assert Vocabulary.load(run.out / "vocab.tsv").synsets == encoder.labels
    (tmp_path / "short.pkl").write_bytes(pickle.dumps(dict.fromkeys(keys[:3], 1)))
    with pytest.raises(UsageError, match=r"names 3 classes, the classifier of .* has 5"):
        convert(checkpoint, vocab=str(tmp_path / "short.pkl"), out=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_imagenet_classes_are_named(tmp_path: Path) -> None:
    checkpoint = saved(tmp_path, official(classes=1000))
    encoder = catlip.load(convert(checkpoint, labels="imagenet-1k", out=tmp_path / "run"))
    assert (encoder.labels[0], encoder.names[0]) == ("n01440764", "tench")
    assert (encoder.labels[-1], len(encoder.labels)) == ("n15075141", 1000)


class Evil:
    """Unpickled carelessly, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self.path), "w")


def test_a_malicious_pickle_runs_nothing(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    bad = saved(tmp_path, {"cls_token": Evil(touched)})
    with pytest.raises(UsageError, match=r"wants to run code.*refused"):
        convert(bad, out=tmp_path / "run")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps({"cls_token": Evil(touched)}))  # not a zip: the old format
    with pytest.raises(UsageError):
        convert(str(tmp_path / "plain.pt"), out=tmp_path / "run")
    (tmp_path / "vocab.pkl").write_bytes(pickle.dumps({"n2084071": Evil(touched)}))
    good = tmp_path / "good"
    good.mkdir()
    with pytest.raises(UsageError, match="no official vocabulary"):
        convert(saved(good, official()), vocab=str(tmp_path / "vocab.pkl"), out=tmp_path / "run")
    assert not touched.exists()
    assert not (tmp_path / "run").exists()
    torch.load(bad, weights_only=False)["cls_token"].close()  # the test's own weapon is loaded
    assert touched.exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: {}, "holds no state dict"),
        (lambda s: [1, 2], "holds no state dict"),
        (lambda s: {**s, "surprise": torch.zeros(1)}, "surprise is no tensor of an official"),
        (lambda s: {k: v for k, v in s.items() if "transformer.5." not in k}, "12 tensors missing, e.g. blocks.5"),
        (
            lambda s: {k: v for k, v in s.items() if not re.match(r"transformer\.(9|10|11)", k)},
            "192 wide with 9 layers",
        ),
        (lambda s: {**s, "cls_token": torch.zeros(1, 1, 7)}, r"another shape, e.g. cls_token \(\[1, 1, 7\] for"),
    ],
)
def test_what_is_no_official_checkpoint_is_refused(tmp_path: Path, change, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        convert(saved(tmp_path, change(official())), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_damaged_and_missing_checkpoints(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such checkpoint"):
        convert("nope.pt", out=tmp_path / "run")
    path = Path(saved(tmp_path, official()))
    cut(path)
    with pytest.raises(UsageError, match="no readable checkpoint, or cut off"):
        convert(str(path), out=tmp_path / "run")
    with pytest.raises(UsageError, match="exists already"):
        convert("nope.pt", out=tmp_path)
