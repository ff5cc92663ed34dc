"""What goes out of catlip takes the user's own objects: an Encoder, a Run, images in memory; and the examples run."""

import doctest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import catlip
from catlip.errors import UsageError
from catlip.export import embed as embedding
from catlip.export import export as exporting
from catlip.export import predict as predicting
from catlip.export.embed import embed
from catlip.export.export import export
from catlip.export.hub import push
from catlip.export.predict import predict
from catlip.models import augment, weights
from catlip.models import encoder as encoders
from catlip.models.augment import AugmentConfig, RangeAugment
from catlip.models.encoder import Encoder
from catlip.models.weights import fingerprint, open_weights
from tests.conftest import jpeg


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    """With a classifier, and loaded from a folder."""
    torch.manual_seed(0)
    fresh = Encoder.create("test_resnet", image_size=32)
    head = nn.Linear(fresh.width, 3)
    fresh.save(tmp_path / "run" / "encoder", head, label_names=["cat", "dog", "man"], multi_label=False)
    return catlip.load(tmp_path / "run")


def in_memory() -> list[Any]:
    pixels = np.random.default_rng(0).integers(0, 255, (44, 60, 3), np.uint8)
    return [pixels, Image.fromarray(pixels), jpeg(size=(60, 44))]


@pytest.mark.parametrize("module", [encoders, weights, augment, exporting, embedding, predicting])
def test_the_examples_run(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


def test_an_encoder_or_a_run_is_loaded_as_it_is(encoder: Encoder, tmp_path: Path) -> None:
    run = SimpleNamespace(encoder=encoder, out=tmp_path / "run")
    assert catlip.load(encoder) is encoder
    assert catlip.load(run) is encoder
    assert (encoder.source, encoder.name, encoder.multi_label) == (str(tmp_path / "run"), str(tmp_path / "run"), False)
    assert Encoder.create("test_resnet", image_size=32).name == "test_resnet"
    assert fingerprint(run) == fingerprint(tmp_path / "run") == fingerprint(str(tmp_path / "run"))
    before = fingerprint(encoder)
    assert before == fingerprint(catlip.load(tmp_path / "run"))
    next(encoder.parameters()).data.mul_(2)
    assert fingerprint(encoder) != before
    with pytest.raises(UsageError, match="an Encoder, a Run or where one lies is expected, not int"):
        catlip.load(5)


def test_an_encoder_saves_what_it_was_loaded_with(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save(tmp_path / "again")
    again = catlip.load(tmp_path / "again")
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.logits(x), encoder.logits(x))
    assert (again.labels, again.names, again.multi_label) == (encoder.labels, encoder.names, False)


def test_training_starts_from_an_encoder_in_memory(encoder: Encoder, tmp_path: Path) -> None:
    found, of_folder = open_weights(encoder), open_weights(tmp_path / "run")
    x = torch.rand(2, 3, 48, 48)
    built = [one.build(image_size=48).eval().pooled(x) for one in (found, of_folder)]
    assert torch.equal(*built)
    assert torch.equal(built[0], encoder.pooled(x))
    head = nn.Linear(encoder.width, 2)
    assert found.keep_rows(head, ["man", "tree"]) == 1
    assert torch.equal(head.weight[0], encoder.backbone.get_classifier().weight[2])
    assert found.arguments == of_folder.arguments
    assert open_weights(encoder, untrained=True).state == {}


def test_images_in_memory_are_embedded_and_named(encoder: Encoder, tmp_path: Path) -> None:
    images = in_memory()
    table = embed(encoder, images)
    wanted = encoder.pooled(encoder.transform(images[1])[None])[0]
    for row in (0, 1):
        found = torch.tensor(table["embedding"][row].as_py())
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    (tmp_path / "a.jpg").write_bytes(images[2])
    assert embed(encoder, [tmp_path / "a.jpg"])["key"].to_pylist() == [str(tmp_path / "a.jpg")]
    results = predict(encoder, images, top=2)
    assert [len(result.labels) for result in results] == [2, 2, 2]
    assert results[0].labels == results[1].labels
    assert results[0].draw(tmp_path / "drawn.png").is_file()
    one = predict(encoder, images[0], top=3)
    assert sum(entry["probability"] for entry in one.to_json()["labels"]) == pytest.approx(1.0)  # labels exclude others
    with pytest.raises(UsageError, match="there is no setting `topp`"):
        predict(encoder, images[0], topp=3)


def test_an_encoder_in_memory_is_exported_as_it_is_now(encoder: Encoder, tmp_path: Path) -> None:
    next(encoder.parameters()).data.mul_(1.5)
    encoder.train()
    result = export(encoder, out=tmp_path / "out", images=in_memory() * 6)
    assert result.largest < 1e-4
    assert encoder.training
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(catlip.load(tmp_path / "out").logits(x), encoder.eval().logits(x))
    fresh = Encoder.create("test_resnet", image_size=32)
    with pytest.raises(UsageError, match="`out` has to say"):
        export(fresh)
    with pytest.raises(UsageError, match="lies in no folder"):
        push(fresh, "org/name", dry_run=True)
    assert "org/name" in str(push(encoder, "org/name", dry_run=True))


def test_the_room_can_be_called_like_its_function(tmp_path: Path) -> None:
    room: Any = catlip.export  # the folder, once it is imported
    assert room(Encoder.create("test_resnet", image_size=32), "state-dict", tmp_path / "out").largest < 1e-4


def test_an_augmentation_is_built_by_its_config() -> None:
    assert AugmentConfig().build() is None
    built = AugmentConfig(range_augment=True, psnr=(40.0, 10.0)).build()
    assert isinstance(built, RangeAugment)
    images, loss = built(torch.rand(4, 3, 8, 8), 0.5)
    assert isinstance(loss, Tensor)
    assert (images.shape, loss.shape) == ((4, 3, 8, 8), ())
