"""Round trips: whatever is exported is read back by the program it is for, and computes the same."""

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import catlip
from catlip.errors import UsageError
from catlip.export.export import FORMATS, export, sample_images, to_input
from catlip.export.open_clip import to_open_clip
from catlip.labels.tokenizer import Tokenizer
from catlip.models import corenet_vit
from catlip.models.dual_encoder import DualEncoder
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.objectives.base import Context
from catlip.objectives.clip import Align, SigLip
from catlip.objectives.clip_lite import ClipLite, ClipLiteObjective
from catlip.tasks.pretrain import as_vocabulary

# name, picture size: a ResNet, a ConvNeXt, a ViT, and one whose size is not timm's own
BACKBONES = [("test_resnet", 64), ("test_convnext", 64), ("test_vit", 64), ("corenet_vit_tiny", 64)]
LABELS = ["n02084071", "n02121620", "n10287213"]
CLOSE = {"rtol": 0.0, "atol": 1e-4}


@pytest.fixture(autouse=True)
def shallow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The official architecture with two of its twelve layers: all are alike, and graphs are traced layer by layer."""
    monkeypatch.setitem(corenet_vit.SIZES, "tiny", (192, 2))


def needs(format: str) -> None:
    for package in {"open_clip": ["open_clip"], "onnx": ["onnx", "onnxscript", "onnxruntime"]}.get(format, []):
        pytest.importorskip(package)


def make_run(folder: Path, name: str, size: int, positions: str = "2d") -> Path:
    """A run with random weights, BatchNorm statistics that are not 0 and 1, and three labels."""
    torch.manual_seed(0)
    encoder = Encoder.create(name, image_size=size)
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # pyright: ignore[reportOptionalMemberAccess]
            module.running_var.uniform_(0.5, 2)  # pyright: ignore[reportOptionalMemberAccess]
    head = nn.Linear(encoder.width, len(LABELS))
    names = dict(zip(LABELS, ["dog", "cat", "man"], strict=True))
    encoder.save(folder / "run" / "encoder", head, label_names=LABELS, label_descriptions=names)
    return folder / "run"


def batches(encoder: Encoder) -> list[Tensor]:
    x = torch.stack([to_input(encoder, image) for image in sample_images(8)])
    return list(x.split([1, 2, 5]))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("name", "size"), BACKBONES)
def test_every_format_computes_the_same(tmp_path: Path, name: str, size: int, format: str) -> None:
    needs(format)
    run = make_run(tmp_path, name, size)
    if name.startswith("corenet") and format in ("timm", "open_clip"):
        with pytest.raises(UsageError, match="`format` onnx"):
            export(str(run), format)
        assert not (run / "export" / format).exists()
        return
    result = export(str(run), format)
    assert result.largest == max(result.differences.values()) <= 1e-4
    assert "largest absolute difference" in str(result)
    assert result.to_json()["architecture"] == name
    # read back here once more, by the other program alone
    folder, encoder = run / "export" / format, catlip.load(run)
    for x in batches(encoder):
        with torch.no_grad():
            torch.testing.assert_close(read_back(format, folder, x), expected(encoder, format, x), **CLOSE)


def expected(encoder: Encoder, format: str, x: Tensor) -> Tensor:
    return encoder.pooled(x) if format == "open_clip" else encoder.logits(x)


def read_back(format: str, folder: Path, x: Tensor) -> Tensor:
    if format == "timm":
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()(x)
    if format == "open_clip":
        import open_clip

        return open_clip.create_model_and_transforms(f"local-dir:{folder}")[0].eval().encode_image(x)  # type: ignore
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
        assert json.loads(session.get_modelmeta().custom_metadata_map["label_names"]) == LABELS
        return torch.from_numpy(session.run(["logits"], {"image": x.numpy()})[0])
    if format == "torch-export":
        facts = {"catlip.json": ""}
        program = torch.export.load(folder / "model.pt2", extra_files=facts)
        assert json.loads(json.loads(facts["catlip.json"])["label_names"]) == LABELS
        return program.module()(x)[2]
    from safetensors.torch import load_file

    facts = json.loads((folder / "model.json").read_text())
    model = timm.create_model(facts["architecture"], num_classes=3, **facts["model_args"])
    model.load_state_dict(load_file(folder / "state_dict.safetensors"))
    assert (facts["label_names"], facts["label_descriptions"]["n02121620"]) == (LABELS, "cat")
    assert facts["mean"] == [0.5, 0.5, 0.5]
    return model.eval()(x)


@pytest.mark.parametrize("positions", ["1d", "2d"])
def test_onnx_takes_any_size_of_the_official_models(tmp_path: Path, monkeypatch, positions: str) -> None:
    needs("onnx")
    from catlip.export import graphs

    monkeypatch.setattr(graphs, "LARGEST", 1 if positions == "2d" else 10**9)  # H's weights take a file of their own
    torch.manual_seed(0)
    backbone = timm.create_model("corenet_vit_tiny", num_classes=0, positions=positions)
    encoder = Encoder(backbone.eval()).eval()
    graph, any_size = graphs.to_onnx(encoder, tmp_path)
    assert any_size
    for height, width in ((224, 224), (160, 256)):
        x = torch.rand(2, 3, height, width)
        with torch.no_grad():
            torch.testing.assert_close(graph(x)["pooled"], encoder.pooled(x), **CLOSE)


def test_a_dual_encoder_gives_both_sides_in_open_clip(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    encoder = Encoder.create("resnet10t", image_size=64).eval()
    tokenizer = Tokenizer.train(["a dog on a mat", "two cats"] * 2, size=530, context=16)
    dual = DualEncoder(encoder, tokenizer, TEXT, embed=32, scale=math.exp(3.5), bias=-10.0).eval()
    to_open_clip(encoder, tmp_path, dual)
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    tokens, x = torch.randint(1, 499, (3, 16)), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.eval().encode_text(tokens), dual.text(tokens), **CLOSE)
        torch.testing.assert_close(model.encode_image(x), dual.image_projection(encoder.pooled(x)), **CLOSE)
    assert (model.logit_scale.item(), model.logit_bias.item()) == (pytest.approx(3.5), -10.0)
    assert tuple(preprocess.transforms[-1].mean) == (0.5, 0.5, 0.5)


def dual_run(folder: Path, objective: Any) -> tuple[Any, Tokenizer]:
    """(a dual encoder, its tokenizer), saved as a run. objective(encoder, tokenizer): with random weights."""
    run = make_run(folder, "test_resnet", 32)
    tokenizer = Tokenizer.train(["a dog on a mat", "two cats"] * 2, size=530, context=12)
    dual = objective(catlip.load(run), tokenizer).eval()
    dual = dual.dual() if hasattr(dual, "dual") else dual
    dual.save(run)
    return dual, tokenizer


TEXT = TextConfig(text_width=64, text_layers=2)


def reads(tokenizer: Tokenizer) -> Context:
    return Context(as_vocabulary(""), tokenizer, TEXT)


CAPTIONS = ["a dog", "", "a very long caption of many words about cats, dogs, mats and sofas"]


@pytest.mark.parametrize("embed", [0, 24])
def test_a_text_tower_goes_to_open_clip(tmp_path: Path, capsys, embed: int) -> None:
    open_clip = pytest.importorskip("open_clip")
    dual, tokenizer = dual_run(tmp_path, lambda e, t: Align(embed=embed).build(e, reads(t)))
    assert set(export(tmp_path / "run", "open_clip").differences) == {"pooled", "text"}
    assert "text tower and tokenizer included" in capsys.readouterr().out
    folder = tmp_path / "run" / "export" / "open_clip"
    model = open_clip.create_model_and_transforms(f"local-dir:{folder}")[0].eval()
    tokens, x = torch.from_numpy(tokenizer(CAPTIONS)), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.encode_text(tokens, normalize=True), dual.embed_captions(tokens), **CLOSE)
        torch.testing.assert_close(model.encode_image(x, normalize=True), dual.embed_images(x), **CLOSE)
        torch.testing.assert_close(model.logit_scale.exp(), dual.scale(), **CLOSE)
    card = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]
    assert (folder / card["hf_tokenizer_name"]).is_file()
    if find_spec("transformers"):
        theirs, odd = open_clip.get_tokenizer(f"local-dir:{folder}"), [*CAPTIONS, "Café &amp; DOGS"]
        assert torch.equal(theirs(odd), torch.from_numpy(tokenizer(odd)))


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (lambda e, t: SigLip(embed=16).build(e, reads(t)), "cannot say that padding is masked"),
        (lambda e, t: ClipLiteObjective(e, t, ClipLite(embed=16, critic_width=24), TEXT), "projections of CLIP-Lite"),
    ],
)
def test_a_text_tower_that_open_clip_cannot_hold_is_named(tmp_path: Path, capsys, objective: Any, reason: str) -> None:
    needs("open_clip")
    dual_run(tmp_path, objective)
    assert set(export(tmp_path / "run", "open_clip").differences) == {"pooled"}
    assert reason in capsys.readouterr().out


def test_an_export_that_computes_something_else_is_an_error(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path, "test_resnet", 32)
    right = timm.create_model

    def wrong(*args: object, **kwargs: object) -> nn.Module:
        model = right(*args, **kwargs)  # type: ignore
        if "local-dir" in str(args[0]) and kwargs.get("pretrained"):
            next(model.parameters()).data.mul_(1.5)
        return model

    monkeypatch.setattr("catlip.export.export.timm.create_model", wrong)
    with pytest.raises(UsageError, match="computes something else"):
        export(str(run), "timm")
    assert not (run / "export" / "timm").exists()


def test_nothing_is_overwritten_and_formats_are_known(tmp_path: Path) -> None:
    run = make_run(tmp_path, "test_resnet", 32)
    with pytest.raises(UsageError, match="exists already"):
        export(run, out=run)
    with pytest.raises(UsageError, match="there are timm, open_clip"):
        export(str(run), "coreml")
    with pytest.raises(UsageError, match=r"no file matches|no such"):
        export(run, images="nope/*.tar")
    assert not (run / "export").exists()
