"""Class names -> synsets -> rows, against small vocabularies made by hand; accuracies; and the verb."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from catlip import cli
from catlip.errors import UsageError
from catlip.evaluation.bias import read_pairs
from catlip.evaluation.class_names import ClassName, Matcher, alike, read_names, run_labeler
from catlip.evaluation.classification import accuracies, combine, ranks
from catlip.evaluation.retrieval import read_captions
from catlip.evaluation.zero_shot import read_templates, zero_shot
from catlip.labels.labeler import Labeler
from catlip.labels.tokenizer import Tokenizer
from catlip.labels.vocabulary import Vocabulary
from catlip.models.dual_encoder import DualEncoder
from catlip.models.encoder import Encoder
from catlip.models.text_tower import TextConfig
from tests.conftest import COLOURS

DOG, CAT, ANIMAL, POODLE, SPARROW, ROBIN = (
    "n02084071", "n02121620", "n00015388", "n02113335", "n01527347", "n01558993",
)  # fmt: skip
CAR, HOTDOG, OBJECT = "n02958343", "n07697537", "n00002684"
FRUITS = {"apple": "n07739125", "lake": "n09328904", "lawn": "n08591592", "lemon": "n07749582"}


@pytest.fixture(scope="module")
def labeler() -> Labeler:
    return Labeler()


def found(labeler: Labeler, labels: list[str], *names: str) -> list[tuple[str, tuple[int, ...], int]]:
    matches = Matcher(labels, labeler)([ClassName(name) for name in names])
    return [(match.how, match.rows, match.levels) for match in matches]


def test_exact_plural_compound_and_wnid(labeler: Labeler) -> None:
    labels = [CAT, DOG, CAR, HOTDOG]
    assert found(labeler, labels, "dogs", "automobile", "Hot_Dog", CAT) == [
        ("exact", (1,), 0), ("exact", (2,), 0), ("exact", (3,), 0), ("exact", (0,), 0),
    ]  # fmt: skip


def test_what_lies_below_stands_for_a_class_and_belongs_to_the_nearest(labeler: Labeler) -> None:
    labels = [POODLE, SPARROW, ROBIN, CAT]
    assert found(labeler, labels, "bird") == [("below", (1, 2), 0)]
    assert found(labeler, labels, "animal", "dog", "bird") == [
        ("below", (3,), 0), ("below", (0,), 0), ("below", (1, 2), 0),
    ]  # fmt: skip


def test_backing_off_says_how_far_and_what_shares_rows(labeler: Labeler) -> None:
    matches = Matcher([ANIMAL, CAR, OBJECT], labeler)([ClassName(n) for n in ("frog", "deer", "automobile", "zzxy")])
    assert [match.how for match in matches] == ["above", "above", "exact", "missing"]
    assert (matches[0].levels, matches[1].levels) == (4, 8)
    assert alike(matches) == [["frog", "deer"]]
    assert "backed off by 8 levels to animal" in matches[1].told({ANIMAL: "animal"})
    # The top of WordNet says nothing: a chair is an object, and so is everything.
    assert found(labeler, [OBJECT, CAT], "chair") == [("missing", (), 0)]


def test_a_line_may_name_its_synset(labeler: Labeler, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(f"pet\t{CAT}\nvehicle of mine\t{CAR}, {DOG}\n\n")
    names = read_names(tmp_path / "names.txt")
    assert names == [ClassName("pet", (CAT,)), ClassName("vehicle of mine", (CAR, DOG))]
    assert [match.rows for match in Matcher([DOG, CAT], labeler)(names)] == [(1,), (0,)]


@pytest.mark.parametrize(("text", "says"), [
    ("", "is empty"), ("\n \n", "is empty"), ("cat\n\ndog\n", "line 2 is empty"), ("cat\nCat\n", "twice"),
    ("cat\tfelis\n", "no wnid"),
])  # fmt: skip
def test_bad_lists_of_names(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text(text)
    with pytest.raises(UsageError, match=says):
        read_names(tmp_path / "names.txt")


def test_captions_are_read_in_the_language_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vocabulary = Vocabulary.count(["ein Hund", "eine Katze"], language="de")
    vocabulary.save(tmp_path / "vocab.tsv")
    labeler = run_labeler(str(tmp_path))
    assert labeler(["ein Hund und eine Katze"]) == [[DOG, CAT]]
    assert labeler.meanings("dog")[0].labels == (DOG,)  # names of classes stay English
    assert not capsys.readouterr().err
    vocabulary.language = str(tmp_path / "gone")
    vocabulary.save(tmp_path / "vocab.tsv")
    assert run_labeler(str(tmp_path))(["a dog"]) == [[DOG]]
    assert "gone" in capsys.readouterr().err


def test_accuracies_against_a_loop_ties_against_the_model() -> None:
    torch.manual_seed(0)
    scores = torch.randint(0, 4, (200, 7)).float()  # many ties
    scores[:, 6] = float("-inf")
    wanted = torch.randint(0, 7, (200,))
    right, five, classes = 0, 0, {c: [0, 0] for c in range(7)}
    for row, w in zip(scores.tolist(), wanted.tolist(), strict=True):
        before = sum(s >= row[w] for i, s in enumerate(row) if i != w) if w != 6 else 7
        right, five = right + (before == 0), five + (before < 5)
        classes[w][0] += before == 0
        classes[w][1] += 1
    a = accuracies(ranks(scores, wanted), wanted)
    assert a["top1"] == pytest.approx(100 * right / 200)
    assert a["top5"] == pytest.approx(100 * five / 200)
    assert a["mean_per_class"] == pytest.approx(100 * sum(h / n for h, n in classes.values()) / 7)
    nan = torch.full((3, 4), float("nan"))
    assert accuracies(ranks(nan, torch.tensor([0, 1, 2])), torch.tensor([0, 1, 2]))["top5"] == 0


def test_calibration_takes_priors_away() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 3)
    shifted = logits * torch.tensor([1.0, 5.0, 0.1]) + torch.tensor([0.0, -9.0, 4.0])
    assert torch.allclose(
        combine(logits, [[0], [1, 2], []], True), combine(shifted, [[0], [1, 2], []], True), atol=1e-4
    )
    assert combine(logits, [[]], False).eq(float("-inf")).all()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """An encoder and a classifier that knows the colours by heart: its pooled vector is the mean colour."""
    torch.manual_seed(0)
    encoder = Encoder.create("test_resnet", image_size=32)
    encoder.save(tmp_path / "run" / "encoder", nn.Linear(encoder.width, 4), label_names=list(FRUITS.values()))
    return tmp_path / "run"


def give_text(run: Path) -> None:
    tokenizer = Tokenizer.train([f"a photo of one {noun}" for noun in COLOURS] * 3, 600, 16)
    encoder = Encoder.create("test_resnet", image_size=32)
    DualEncoder(encoder, tokenizer, TextConfig(text_width=64, text_layers=1), embed=8, scale=1.0).save(run)


def test_both_routes_numbers_or_names(
    run: Path, coloured_shards: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coloured_shards(24, 1, "test", cls=True)
    (tmp_path / "names.txt").write_text("\n".join(COLOURS) + "\n")
    give_text(run)
    result = zero_shot(str(run), data, classes=str(tmp_path / "names.txt"))
    assert result.matched == {"exact": 4}
    assert "exact: " in str(result)
    assert capsys.readouterr().out == ""
    saved = json.loads((run / "results.jsonl").read_text())
    assert saved == result.to_json()
    assert saved["task"] == "zeroshot"
    assert {"head", "text", "alike"} <= set(saved)
    for route in ("head", "text"):
        assert sum(result.per_class[route].values()) / 4 == pytest.approx(saved[route]["mean_per_class"], abs=0.01)
    only = zero_shot(str(run), data, classes=list(COLOURS), route="head")  # names in a list, too
    assert only.head == result.head
    assert "text" not in only.to_json()


def test_labels_that_are_names_need_no_file(run: Path, tmp_path: Path) -> None:
    from tests.conftest import jpeg

    for noun, colour in COLOURS.items():
        (tmp_path / "set" / noun).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "set" / noun / f"{i}.jpg").write_bytes(jpeg(colour, seed=i))
    assert zero_shot(str(run), str(tmp_path / "set")).classes == 4
    (tmp_path / "names.txt").write_text("apple\nlake\nlawn\nmelon\n")
    with pytest.raises(UsageError, match=r"1 labels .* 'lemon', did you mean 'melon'"):
        zero_shot(str(run), str(tmp_path / "set"), classes=str(tmp_path / "names.txt"))
    rows = [f"set/{noun}/{i}.jpg,{noun},{i}" for noun in COLOURS for i in range(3)]
    (tmp_path / "list.csv").write_text("\n".join(["photo,kind,shelf", *rows]) + "\n")
    assert zero_shot(str(run), str(tmp_path / "list.csv"), image_col="photo", label_col="kind").classes == 4


@pytest.mark.parametrize(("names", "extra", "says"), [
    ("apple\nlake\n", [], "names 2 classes; .* label 3"),
    ("zzxy\nqqvw\nxxkk\nwwzz\n", [], "no class name is near a synset"),
    ("apple\nlake\nlawn\nlemon\n", ["--route", "text"], "no text tower .*catlip align"),
    ("apple\nlake\nlawn\nlemon\n", ["--templates", "TEMPLATES"], "with {} for the name"),
    ("", [], "is empty"),
])  # fmt: skip
def test_mistakes_end_with_one_line(
    names: str, extra: list[str], says: str, run: Path, coloured_shards: Callable[..., str], tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text(names)
    (tmp_path / "templates.txt").write_text("a photo of a dog\n")
    extra = [str(tmp_path / "templates.txt") if part == "TEMPLATES" else part for part in extra]
    data = coloured_shards(24, 1, "test", cls=True)
    with pytest.raises(UsageError, match=says):
        cli.run(["zeroshot", str(run), data, "--classes", str(tmp_path / "names.txt"), *extra])


def test_numbers_without_names_and_a_run_with_neither(
    run: Path, coloured_shards: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="labels are numbers; `classes`"):
        zero_shot(str(run), coloured_shards(8, 1, "test", cls=True))
    Encoder.create("test_resnet", image_size=32).save(tmp_path / "bare" / "encoder")
    (tmp_path / "names.txt").write_text("apple\nlake\nlawn\nlemon\n")
    with pytest.raises(UsageError, match=r"neither a classifier .*catlip align"):
        zero_shot(str(tmp_path / "bare"), coloured_shards(8, 1, "test", cls=True), classes=str(tmp_path / "names.txt"))


@pytest.mark.parametrize("read", [read_names, read_templates, read_pairs, lambda path: read_captions(path, ["1"])])
def test_files_of_words_in_another_encoding_are_named(tmp_path: Path, read: Callable[[str], object]) -> None:
    path = tmp_path / "t.txt"
    path.write_bytes("{} caf\u00e9\ttea\n".encode("latin-1"))
    with pytest.raises(UsageError, match=r"t\.txt is not in UTF-8"):
        read(str(path))
    path.write_text(" \n")
    with pytest.raises(UsageError, match=r"t\.txt is empty"):
        read(str(path))
    path.unlink()
    with pytest.raises(UsageError, match=r"`[a-z]+`: no such file: .*t\.txt"):
        read(str(path))


def test_templates(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a {} outside\n\n{}\n")
    assert read_templates(str(tmp_path / "t.txt")) == ("a {} outside", "{}")
