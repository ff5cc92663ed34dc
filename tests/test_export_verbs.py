"""Starting from weights there are, opening folders that are broken, and the verbs embed, predict and push."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import catlip
from catlip import cli
from catlip.errors import UsageError
from catlip.export.embed import embed
from catlip.export.export import export
from catlip.export.hub import push
from catlip.export.predict import predict
from catlip.labels.tokenizer import Tokenizer
from catlip.labels.vocabulary import Vocabulary
from catlip.models.dual_encoder import DualEncoder, load_dual, text_folder
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from catlip.models.weights import fingerprint, open_weights, start_from
from tests.conftest import COLOURS, jpeg

OLD = ["n02084071", "n02121620", "n10287213", "n07739125", "n12102133"]
NEW = ["n10287213", "n09917593", "n02084071", "n04610879", "n12102133", "n08569998"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", OLD)


def make_run(folder: Path, labels: list[str], name: str = "test_resnet", size: int = 32) -> Path:
    torch.manual_seed(1)
    encoder = Encoder.create(name, image_size=size)
    encoder.save(
        folder / "encoder", nn.Linear(encoder.width, len(labels)), label_names=labels,
        label_descriptions={label: f"name ${i}$ {{" for i, label in enumerate(labels)},
    )  # fmt: skip
    return folder


def test_rows_of_shared_synsets_are_kept_bit_for_bit(run: Path) -> None:
    torch.manual_seed(2)
    encoder = Encoder.create("test_resnet", image_size=48)
    head = nn.Linear(encoder.width, len(NEW))
    fresh = head.weight.detach().clone()
    said = start_from(str(run), encoder, head, NEW)
    assert "3 of 6 classes keep their row" in said
    source = catlip.load(run)
    old = source.backbone.get_classifier()
    for row, synset in enumerate(NEW):
        if synset in OLD:
            assert torch.equal(head.weight[row], old.weight[OLD.index(synset)])
            assert torch.equal(head.bias[row], old.bias[OLD.index(synset)])
        else:
            assert torch.equal(head.weight[row], fresh[row])
    x = torch.rand(2, 3, 48, 48)
    assert torch.equal(encoder.eval().pooled(x), source.pooled(x))


def test_continued_run_saves_the_kept_rows(run: Path, tmp_path: Path) -> None:
    encoder = Encoder.create("test_resnet", image_size=32)
    head = nn.Linear(encoder.width, len(NEW))
    start_from(str(run), encoder, head, NEW)
    encoder.save(tmp_path / "new" / "encoder", head, label_names=NEW)
    then, now = catlip.load(run).backbone.get_classifier(), catlip.load(tmp_path / "new").backbone.get_classifier()
    assert torch.equal(now.weight[NEW.index("n12102133")], then.weight[OLD.index("n12102133")])


# An older timm takes a Swin without classifier for the original's weights and renames what has its name already.
RENAMED = pytest.mark.skipif(tuple(map(int, timm.__version__.split(".")[:3])) < (1, 0, 31), reason="timm < 1.0.31")


def test_positions_of_another_picture_size_are_interpolated(tmp_path: Path) -> None:
    make_run(tmp_path, OLD, "vit_tiny_patch16_224", 64)
    encoder = Encoder.create("vit_tiny_patch16_224", image_size=96)
    start_from(str(tmp_path), encoder, None, [])
    assert torch.equal(
        encoder.backbone.blocks[2].mlp.fc1.weight, catlip.load(tmp_path).backbone.blocks[2].mlp.fc1.weight
    )
    assert torch.equal(encoder.backbone.pos_embed[:, 0], catlip.load(tmp_path).backbone.pos_embed[:, 0])


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("vit_tiny_patch16_224", (224, 64)), ("corenet_vit_tiny", (224, 64)), ("test_resnet", (32, 48)),
     pytest.param("swin_tiny_patch4_window7_224", (224, 64), marks=RENAMED)],
)  # fmt: skip
def test_a_loaded_encoder_takes_another_picture_size_as_training_would(
    name: str, sizes: tuple[int, int], tmp_path: Path
) -> None:
    encoder = catlip.load(make_run(tmp_path, OLD[:3], name, sizes[0]))
    encoder.resize(sizes[1])
    started_there = open_weights(str(tmp_path)).build(image_size=sizes[1]).eval()
    x = torch.rand(1, 3, sizes[1], sizes[1])
    with torch.no_grad():
        assert torch.equal(encoder.pooled(x), started_there.pooled(x))
        assert encoder.logits(x).shape == (1, 3)
    assert encoder.transform(Image.new("RGB", (300, 200))).shape == (3, sizes[1], sizes[1])
    assert encoder.architecture == name


def test_a_picture_size_that_cannot_be_is_said_in_one_line(tmp_path: Path) -> None:
    """pit: convolutions over a table of positions that timm does not interpolate."""
    run = str(make_run(tmp_path, OLD, "pit_ti_224", 224))
    for refused in (lambda: catlip.load(run).resize(64), lambda: open_weights(run).build(image_size=64)):
        with pytest.raises(UsageError, match=r"`image_size` (64|224)") as error:
            refused()
        assert "\n" not in str(error.value)
    for name, size in (("crossvit_tiny_240", 64), ("vit_tiny_patch16_224", 8), ("swin_tiny_patch4_window7_224", -1)):
        with pytest.raises(UsageError, match=f"`image_size` {size}"):
            Encoder.create(name, image_size=size)
    with pytest.raises(UsageError, match=r"`image_size` 100: vit_tiny_patch16_224 refuses it: .*divisible by patch"):
        Encoder.create("vit_tiny_patch16_224", image_size=64, any_size=True).check_sizes(96, 100)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch) -> str:
    """A model as timm's are on the Hub: with a classifier, and no word about what its rows are."""
    make_run(tmp_path / "hub", OLD, "test_resnet")
    config = tmp_path / "hub" / "encoder" / "config.json"
    card = json.loads(config.read_text())
    config.write_text(json.dumps({k: v for k, v in card.items() if k not in ("label_names", "label_descriptions")}))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: str(config.parent))
    return "hf-hub:timm/some.a1_in1k"


@pytest.mark.parametrize("format", ["timm", "state-dict"])
def test_a_classifier_without_names_is_no_obstacle(hub: str, format: str, tmp_path: Path) -> None:
    encoder = catlip.load(hub)
    assert (encoder.labels, encoder.backbone.num_classes) == ([], 5)
    assert open_weights(hub).weight is None
    fresh = open_weights(hub).build(image_size=32).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fresh.pooled(x), encoder.pooled(x))
    head = nn.Linear(fresh.width, 2)
    assert "classes keep" not in start_from(hub, fresh, head, NEW[:2])
    assert export(hub, format, tmp_path / "out").largest < 1e-4
    with pytest.raises(UsageError, match="5 rows without names"):
        encoder.logits(x)


def test_a_classifier_of_two_layers_is_filled_and_left_behind(tmp_path: Path) -> None:
    """DeiT's distilled models: the mean of what two layers say of two tokens."""
    run = make_run(tmp_path, OLD, "deit_tiny_distilled_patch16_224", 32)
    encoder = catlip.load(run)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder.backbone.head(encoder.pooled(x))
        torch.testing.assert_close(encoder.logits(x), expected, rtol=1e-4, atol=1e-5)
        again = open_weights(str(run)).build(image_size=32).eval()
        torch.testing.assert_close(again.pooled(x), encoder.pooled(x))
    assert torch.equal(open_weights(str(run)).weight, encoder.backbone.head.weight)


def test_weights_of_timm_bring_their_input_space(monkeypatch) -> None:
    torch.manual_seed(3)
    source = timm.create_model("test_vit", num_classes=0)
    monkeypatch.setattr("catlip.models.weights.pretrained", lambda name, **_: source)
    encoder = Encoder.create("test_vit", image_size=160)
    start_from("timm:test_vit", encoder, nn.Linear(encoder.width, 2), NEW[:2])
    assert encoder.mean.flatten().tolist() == pytest.approx(list(source.pretrained_cfg["mean"]))
    x = torch.rand(1, 3, 160, 160)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval().backbone(x), source.eval()(x))


@pytest.mark.parametrize("name", ["resnet10t", "convnext_atto", "vit_tiny_patch16_224"])
def test_open_clip_folders_start_a_run(tmp_path: Path, name: str) -> None:
    pytest.importorskip("open_clip")
    from catlip.export.open_clip import to_open_clip

    torch.manual_seed(4)
    source = Encoder.create(name, image_size=224).eval()
    to_open_clip(source, tmp_path)
    encoder = Encoder.create(name, image_size=224).eval()
    said = start_from(f"open_clip:{tmp_path}", encoder, None, [])
    assert "mean 0.5/0.5/0.5" in said
    x = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(encoder.pooled(x), source.pooled(x))


def test_open_clips_own_vit_starts_timms(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    torch.manual_seed(5)
    vision = {"image_size": 64, "patch_size": 16, "width": 384, "layers": 12, "head_width": 64}
    model = open_clip.CLIP(
        384, vision, {"width": 64, "heads": 1, "layers": 1, "vocab_size": 99, "context_length": 8}
    ).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": {}}))
    name = (
        "vit_small_patch16_clip_224" if timm.is_model("vit_small_patch16_clip_224") else "vit_xsmall_patch16_clip_224"
    )
    encoder = Encoder(timm.create_model(name, num_classes=0, img_size=64, embed_dim=384, depth=12, num_heads=6)).eval()
    start_from(f"open_clip:{tmp_path}", encoder, None, [])
    assert encoder.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(encoder.pooled(x) @ model.visual.proj, model.encode_image(x), rtol=0, atol=1e-4)


def test_init_that_cannot_be_is_said_in_one_line(run: Path, tmp_path: Path) -> None:
    other = Encoder.create("test_convnext", image_size=32)
    with pytest.raises(UsageError, match=r"does not fit `backbone` test_convnext \(it is a test_resnet\): \d+ tensors"):
        start_from(str(run), other, None, [])
    with pytest.raises(UsageError, match="no run and no model folder"):
        open_weights(str(tmp_path / "nope"))
    with pytest.raises(UsageError, match="no open_clip folder"):
        open_weights(f"open_clip:{run}")
    with pytest.raises(UsageError, match="did you mean"):
        open_weights("timm:resnet10x")
    weights = open_weights(str(run))
    weights.weight = torch.zeros(5, 32)
    with pytest.raises(UsageError, match="reads 32 features, this one 5"):
        weights.keep_rows(nn.Linear(5, 2), OLD[:2])
    assert fingerprint(str(run)) == fingerprint(str(run))


def cut(run: Path) -> None:
    path = run / "encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def rename(run: Path) -> None:
    edit(run, architecture="test_convnext")


def invent(run: Path) -> None:
    edit(run, architecture="resnet9000")


def forget(run: Path) -> None:
    edit(run, label_names=OLD[:3])


def edit(run: Path, **changes: object) -> None:
    path = run / "encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (cut, "damaged or cut off"),
        (rename, "the weights are not those of test_convnext, which config.json names"),
        (invent, "has no architecture 'resnet9000'"),
        (forget, "3 labels for a classifier of 5 classes"),
        (lambda run: (run / "encoder" / "model.safetensors").unlink(), "model.safetensors does not exist"),
        (lambda run: (run / "encoder" / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda run: (run / "encoder" / "config.json").write_text("[]"), "holds no JSON object"),
        (lambda run: shutil.rmtree(run), "is no run and no model folder"),
    ],
)
def test_broken_folders_end_with_one_line_and_exit_code_2(
    run: Path, damage: Callable[[Path], object], says: str
) -> None:
    damage(run)
    with pytest.raises(UsageError, match=says) as error:
        catlip.load(run)
    assert "\n" not in str(error.value)


def test_a_broken_folder_on_the_command_line(run: Path, monkeypatch, capsys) -> None:
    cut(run)
    monkeypatch.setattr(sys, "argv", ["catlip", "export", str(run), "--format", "timm"])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr().err
    assert "damaged or cut off" in said
    assert said.count("\n") == 1


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for i, (name, colour) in enumerate(COLOURS.items()):
        (folder / "deep").mkdir(parents=True, exist_ok=True)
        (folder / ("deep" if i % 2 else ".") / f"{name}.jpg").write_bytes(jpeg(colour, size=(60, 44), seed=i))
    return folder


def test_embed_writes_a_row_a_picture(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "emb.parquet"
    cli.run(["embed", str(run), str(photos), "--out", str(tmp_path / "emb.parquet"), "--batch-size", "3"])
    table = pq.read_table(out)
    assert table["key"].to_pylist() == ["apple.jpg", "deep/lake.jpg", "deep/lemon.jpg", "lawn.jpg"]
    encoder = catlip.load(run)
    with torch.no_grad():
        expected = encoder.pooled(encoder.transform(Image.open(photos / "lawn.jpg"))[None])[0]
    torch.testing.assert_close(torch.tensor(table["embedding"].to_pylist()[3]), expected, rtol=1e-4, atol=1e-5)
    assert table.schema.metadata[b"kind"] == b"pooled"
    with pytest.raises(UsageError, match="exists already"):
        embed(run, photos, out)


def test_a_damaged_picture_among_many_is_left_out_and_named(run: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "many"
    for name in ("__MACOSX", "deep"):
        (folder / name).mkdir(parents=True)
    for i in range(120):
        (folder / "deep" / f"{i:03}.jpg").write_bytes(jpeg(size=(40, 32), seed=i))
    (folder / "deep" / "007.jpg").write_bytes(jpeg(size=(40, 32))[:-200])
    for name in ("._a.jpg", "deep/._001.jpg", "__MACOSX/b.jpg"):
        (folder / name).write_bytes(b"of macOS")
    out = embed(run, folder, tmp_path / "e.parquet", device="cpu")
    assert pq.read_table(out.out)["key"].to_pylist() == [f"deep/{i:03}.jpg" for i in range(120) if i != 7]
    shown = capsys.readouterr()
    assert "119 pictures" in str(out)
    assert (out.images, out.unreadable) == (119, 1)
    assert "`images`: 1 of 120 pictures cannot be read and are left out: deep/007.jpg: damaged picture" in shown.err
    with pytest.raises(UsageError, match=r"007\.jpg: damaged picture"):
        predict(run, folder / "deep" / "007.jpg")


def test_embed_writes_patch_tokens(run: Path, photos: Path, coloured_shards, tmp_path: Path) -> None:
    encoder = catlip.load(run)
    shards = coloured_shards(6, 2)
    out = embed(encoder, shards, tmp_path / "t.parquet", tokens=True)
    table = pq.read_table(out.out)
    found = torch.tensor(table["embedding"].to_pylist())
    assert embed(encoder, shards, tokens=True).equals(table)  # without a file, in memory
    assert table.schema.metadata[b"encoder"] == str(run).encode()
    assert found.shape == (6, *encoder.tokens(torch.zeros(1, 3, 32, 32)).shape[1:])
    (photos / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"1 of 5 pictures cannot be read.*broken"):
        embed(run, photos, tmp_path / "u.parquet")
    assert not list(tmp_path.glob("u.parquet*"))


def test_predict_names_and_draws(run: Path, photos: Path, capsys) -> None:
    result = cli.run(["predict", str(run), str(photos / "apple.jpg"), "--top", "3"])
    found = result.labels
    encoder = catlip.load(run)
    with torch.no_grad():
        logits = encoder.logits(encoder.transform(Image.open(photos / "apple.jpg"))[None])[0]
    assert [p.label for p in found] == [OLD[i] for i in logits.topk(3).indices]
    assert found[0].probability == pytest.approx(logits.max().sigmoid().item())
    assert found[0].name in capsys.readouterr().out
    with Image.open(run / "predictions" / "apple.png") as drawn:
        assert drawn.width > drawn.height > 300
    edit(run, multi_label=False)
    whole = predict(run, photos / "apple.jpg", top=99)
    assert sum(p.probability for p in whole.labels) == pytest.approx(1.0)
    assert not whole.drawn
    assert "<img" in whole._repr_html_()
    with pytest.raises(UsageError, match="not a picture"):
        predict(run, run / "encoder" / "config.json")
    with pytest.raises(UsageError, match="no such picture"):
        cli.run(["predict", str(run), "nope.jpg"])


def test_a_card_says_what_the_run_recorded_and_no_folder_of_its_owner(run: Path, monkeypatch, capsys) -> None:
    (run / "config.json").write_text(json.dumps({
        "config": {"data": "/home/me/secret/shards-{0..3}.tar", "backbone": "test_resnet", "optim": {"lr": 0.004}},
        "facts": {"budget": 480}, "versions": {"catlip": "0.1.0"},
    }))  # fmt: skip
    result = {"task": "probe", "linear_probe": 53.3, "knn": 43.75, "data": ["/home/me/secret/cifar10.tar"]}
    (run / "results.jsonl").write_text(json.dumps(result) + "\n" + '{"task": "cut o')  # a line that was cut is no harm
    vocabulary = Vocabulary(
        synsets=OLD, names=["dog", "cat", "man", "banana", "grass"], counts=[9, 8, 7, 6, 5], samples=20
    )
    vocabulary.source = "/home/me/secret/captions.tsv"
    vocabulary.save(run / "vocab.tsv")
    card = cli.run(["push", str(run), "org/my-encoder", "--license", "apache-2.0", "--dry-run"]).card
    assert card in capsys.readouterr().out
    for part in (
        "license: apache-2.0", "library_name: timm", "# my-encoder", "dog, cat, man",
        "`shards-{0..3}.tar`, 480 pictures", "| optim.lr | 0.004 |", "| probe | linear probe | 53.3 | cifar10.tar |",
        'timm.create_model("hf-hub:org/my-encoder"', 'catlip.load("hf-hub:org/my-encoder")',
    ):  # fmt: skip
        assert part in card
    assert "secret" not in card
    assert not (run / "encoder" / "README.md").exists()

    sent: dict[str, str] = {}

    class Hub:
        def create_repo(self, repo: str, **_: object) -> None:
            assert repo == "org/my-encoder"

        def upload_file(self, *, path_or_fileobj: Path, path_in_repo: str, repo_id: str) -> None:
            sent[path_in_repo] = "" if path_in_repo.endswith("safetensors") else path_or_fileobj.read_text()

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    assert "objective.safetensors stays here" not in str(push(run, "org/my-encoder"))
    assert set(sent) == {"config.json", "model.safetensors", "README.md", "vocab.tsv"}
    assert "load_dual" not in card
    tokenizer = Tokenizer.train(["a dog on a mat"] * 2, size=520, context=12)
    dual = DualEncoder(catlip.load(run), tokenizer, TextConfig(text_width=64, text_layers=1), embed=0, scale=1.0)
    dual.save(run)
    assert 'load_dual("hf-hub:org/my-encoder")' in push(run, "org/my-encoder").card
    assert {"text/config.json", "text/model.safetensors", "text/tokenizer.json"} <= set(sent)
    assert not any("secret" in text for text in sent.values())
    for config, says in (
        ({"run": "/home/me/secret/start", "train": "photos.csv"}, "that of `start`, fine-tuned by catlip"),
        (
            {"run": "start", "steps": 20, "data": "pairs.tar"},
            "`start`, as it was, with a text tower beside it by catlip",
        ),
        ({"run": "start", "data": "p.csv", "min_count": 5}, "`start`, as it was, with a classifier of the captions'"),
    ):
        (run / "config.json").write_text(json.dumps({"config": config}))
        card = push(run, "org/my-encoder", dry_run=True).card
        assert says in card
        assert f"`{config.get('train') or config['data']}`" in card
        assert "by naming the nouns" not in card
        assert "secret" not in card
    monkeypatch.setattr(Hub, "create_repo", lambda *_, **__: 1 / 0)
    with pytest.raises(UsageError, match="org/my-encoder: division by zero"):
        push(run, "org/my-encoder")
    with pytest.raises(UsageError, match="expected org/name"):
        push(run, "my-encoder")


def test_every_positional_finds_its_setting() -> None:
    with pytest.raises(UsageError, match="a is no run"):
        cli.run(["embed", "a", "b"])
    with pytest.raises(UsageError, match="--photo is missing"):
        cli.run(["predict", "a"])


def test_a_pushed_folder_loads_from_the_hub(run: Path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: str(run / "encoder"))
    assert catlip.load("hf-hub:org/name").labels == OLD
    assert text_folder("hf-hub:org/name") is None
    tokenizer = Tokenizer.train(["a dog on a mat"] * 2, size=520, context=12)
    dual = DualEncoder(catlip.load(run), tokenizer, TextConfig(text_width=64, text_layers=1), embed=0, scale=1.0).eval()
    dual.save(run / "encoder")  # the layout of the Hub
    again = load_dual("hf-hub:org/name")
    tokens = torch.from_numpy(tokenizer(["a dog"]))
    torch.testing.assert_close(again.embed_captions(tokens), dual.embed_captions(tokens))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repo, **_: 1 / 0)
    with pytest.raises(UsageError, match="hf-hub:org/name cannot be had"):
        catlip.load("hf-hub:org/name")
