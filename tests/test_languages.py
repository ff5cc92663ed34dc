"""Captions in other languages: golden examples, agreement with English, and the ways to ask, as for English."""

import ast
import gzip
import lzma
import pickle
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catlip.data.corpus import build_vocabulary, write_labels
from catlip.errors import UsageError
from catlip.labels.labeler import Labeler
from catlip.labels.languages.compile_nouns import compile_nouns
from catlip.labels.languages.language import SHIPPED, open_languages
from catlip.labels.languages.language_files import ALONE, MAX_BYTES
from catlip.labels.languages.unspaced import WordCutter
from catlip.labels.vocabulary import Vocabulary
from tests.documented import ROOT, blocks

MULTI30K = Path(__file__).parents[2] / "shared" / "data" / "multi30k"
ENGLISH = Labeler()
LABELERS = {language: Labeler(language=language) for language in (*SHIPPED, "auto")}


def names(caption: str, language: str) -> set[str]:
    return {ENGLISH.name(synset) for synset in LABELERS[language]([caption])[0]}


@pytest.mark.parametrize(
    ("language", "caption", "wanted"),
    [
        ("de", "Ein brauner Hund läuft über die grüne Wiese", {"dog", "field"}),
        ("de", "zwei Hunde und drei Kinder am Strand", {"dog", "child", "beach"}),
        ("de", "Ein Hundewelpe auf einer Holzbank", {"puppy", "bench"}),  # compounds: their end
        ("de", "Fußballspieler, Fussballspieler", {"soccer_player", "player"}),
        ("de", "Ein Kind mit Tennisbällen", {"child", "tennis_ball", "ball"}),  # and what it is a kind of
        ("de", "Junge Männer und ein Junge", {"young_buck", "man", "male_child"}),
        ("de", "Ein Mann ist arm und weg", {"man"}),  # no noun without a capital
        ("de", "ein mann mit hut und hund", {"man", "hat", "dog"}),  # but where nothing has one
        ("de", "EIN MANN AUF DER STRASSE", {"man", "street"}),
        ("de", "Kein Hund, aber eine Katze", {"cat"}),
        ("de", "Ein Mann ohne Hemd und Schuhe hält einen Ball", {"man", "ball"}),
        ("de", "Weder Hunde noch Katzen", set()),
        ("de", "Männer mit Schutzhelmen", {"man", "hard_hat"}),
        ("de", "<b>Ein Hund</b> &amp; „eine Katze“ – http://x.de/Haus", {"dog", "cat"}),
        ("fr", "un chien court sur la plage", {"dog", "beach"}),
        ("fr", "L'homme et l’enfant d'un homme", {"man", "child"}),  # articles may be joined
        ("fr", "Une femme porte un chapeau devant la porte", {"woman", "hat", "door"}),
        ("fr", "deux chevaux et des bateaux", {"horse", "boat"}),
        ("fr", "un homme sans chemise ni chapeau", {"man"}),
        ("fr", "il n'y a pas de chien mais un chat", {"cat"}),
        ("fr", "Une planche à roulettes, des planches de surf", {"skateboard", "surfboard"}),
        ("fr", "un jeune homme", {"young_buck", "man"}),
        ("fr", "HOMME À VÉLO", {"man", "bicycle"}),
        ("it", "Due cani corrono sull'erba con gli occhiali da sole", {"dog", "grass", "sunglasses"}),
        ("it", "Un uomo senza cappello né scarpe e una donna", {"man", "woman"}),
        ("it", "Una donna porta un bambino davanti alla porta", {"woman", "child", "door"}),
        ("it", "Porta in legno con maniglie", {"door", "wood", "handle"}),
        ("es", "Los jóvenes con camiones y peces", {"truck", "fish"}),
        ("es", "Una mujer sin sombrero ni zapatos cocina en la cocina", {"woman", "kitchen"}),
        ("pt", "Dois cães e os animais nos balões", {"dog", "animal", "balloon"}),
        ("pt", "Uma mulher sem chapéu na praia", {"woman", "beach"}),
        ("nl", "Twee honden en een boot naast de bomen en huizen", {"dog", "boat", "tree", "house"}),
        ("nl", "Een hondje op een tuinstoel bij de kerktoren", {"dog", "chair", "steeple"}),  # compounds
        ("nl", "Een man zonder hoed of schoenen eet een appel", {"man", "apple"}),
        ("pl", "Dwa psy i trzej chłopcy z piłkami na plażach", {"dog", "male_child", "ball", "beach"}),
        ("pl", "Kobieta w okularach przeciwsłonecznych kroi chleb nożem", {"woman", "sunglasses", "bread", "knife"}),
        ("pl", "Chłopiec puszcza latawiec, gra i leży", {"male_child", "kite"}),  # no forest, no game: verbs
        ("pl", "W łazience nie ma wanny ani lustra, jest prysznic", {"bathroom", "shower"}),
        ("zh", "两只狗和一头牛在草地上。", {"dog", "cow", "grass"}),  # no head (头), with its number before it
        ("zh", "马上开始的自行车比赛", {"bicycle", "game"}),  # no horse (马) at once (马上)
        ("zh", "一個女人騎著馬經過咖啡館", {"woman", "horse", "cafe"}),  # traditional characters
        ("zh", "iPhone１３手机壳【白色Ｔ恤】", {"case", "jersey", "shirt"}),  # full-width letters, Latin ones
        ("zh", "没有狗和猫的花园，不戴帽子的男孩", {"garden", "male_child"}),
        ("zh", "男孩在游泳池里", {"male_child", "swimming_pool", "pool"}),
    ],
)
def test_labels(language: str, caption: str, wanted: set[str]) -> None:
    assert names(caption, language) == wanted
    assert names(caption, "auto") == wanted


def test_near_synonyms_and_kinds_are_settings_as_in_english() -> None:
    assert Labeler(language="de", heads=False)(["ein Tennisball"]) == Labeler(heads=False)(["a tennis ball"])
    lady = Labeler(language="fr", canonical=False)(["une dame"])
    assert lady == Labeler(canonical=False)(["a lady"]) != LABELERS["fr"](["une dame"])
    assert "n02083346" in Labeler(language="de", ancestors=1)(["ein Hund"])[0]  # canine


@pytest.mark.parametrize(
    ("language", "caption"), [("de", "un chien court sur la plage"), ("fr", "ein Hund und eine Katze auf der Straße"),
                              ("de", "a dog and a cat are on the street"), ("fr", "собака бежит по пляжу")]
)  # fmt: skip
def test_a_caption_in_another_language_has_no_label(language: str, caption: str) -> None:
    assert LABELERS[language].foreign([caption]) == 1
    assert LABELERS[language]([caption]) == [[]]


def test_kana_is_not_chinese() -> None:
    japanese = ["茶色の犬が海岸を走っている", "赤い車", "猫と犬", "公園で遊ぶ子供"]
    assert LABELERS["auto"](japanese) == [[]] * 4
    assert LABELERS["auto"](["狗", "一只棕色的狗在海滩上奔跑"]) == [["n02084071"], ["n02084071", "n09217230"]]


def test_japanese_is_not_taken_for_chinese() -> None:
    """Captions of a few words, many without kana. What is left, both would write: 花束, 猫, 消防車."""
    lines = (Path(__file__).parent / "gold" / "japanese_chinese.tsv").read_text(encoding="utf-8").splitlines()
    for half, taken in (("development", 5), ("held_out", 7)):
        some = [line.split("\t") for line in lines if f"\t{half}\t" in line]
        told = {code: LABELERS["auto"].foreign([text for c, _, text in some if c == code]) for code in ("ja", "zh")}
        assert told["ja"] >= 30 - taken
        assert told["zh"] <= 1


def test_languages_without_tables_are_told() -> None:
    """Enough of their captions that a corpus of them is warned of, and none of the languages that there are."""
    lines = (Path(__file__).parent / "gold" / "other_languages.tsv").read_text(encoding="utf-8").splitlines()
    for half, least in (("development", 38), ("held_out", 21)):
        some = [line.split("\t")[2] for line in lines if line.startswith(half)]
        assert LABELERS["auto"].foreign(some) >= least
        assert ENGLISH.foreign(some) >= least
    assert LABELERS["auto"].foreign(["Zwei Hunde am Strand", "a man on a bench", "una mujer en la calle"]) == 0


def test_why_a_caption_has_no_label_is_its_language() -> None:
    for language, why in (("auto", "in no language that `auto` knows"), ("en", "not in English"), ("zh", "in Chinese")):
        labeler = ENGLISH if language == "en" else LABELERS[language]
        told = labeler.explain("黒猫の写真")
        assert all(not word.labels and why in word.why for word in told)
        assert labeler.foreign(["黒猫", "ラーメン", "黒猫の写真"]) == 3  # also where there is too little to count


@given(st.text(st.sampled_from("女人马上面狗t恤polo衫 ab"), max_size=12))
@settings(max_examples=300)
def test_words_without_spaces_are_the_longest_from_the_left(text: str) -> None:
    words = {"女人", "人", "马上", "上面", "t恤", "polo衫", "ab"}
    wanted, start = "", 0
    while start < len(text):
        end = max((start + len(word) for word in words if text.startswith(word, start)), default=start + 1)
        if end == start + 1 and text[start] < "㐀":
            while end < len(text) and text[end] < "㐀" and text[end - 1] != " ":
                end += 1
        wanted += f" {text[start:end]}"
        start = end
    assert WordCutter(words, lambda letter: letter >= "㐀")(text) == wanted


def test_auto_reads_each_caption_in_its_language() -> None:
    captions = ["a dog on the beach", "Ein Hund am Strand", None, "un chien sur la plage", "", "собака"]
    assert LABELERS["auto"](captions) == [["n02084071", "n09217230"]] * 2 + [[], ["n02084071", "n09217230"], [], []]
    assert LABELERS["auto"]([]) == []


def test_terms_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "terms.tsv").write_text("Hund\tK9\nSchwarzes Brett\tB1\n", encoding="utf-8")
    own = Labeler(language="de", lexicon=tmp_path / "terms.tsv")
    assert own(["zwei Hunde und die schwarzen Bretter", "kein Hund", "Katze"]) == [["B1", "K9"], [], ["n02121620"]]


def test_terms_of_ones_own_without_spaces(tmp_path: Path) -> None:
    terms = "金毛犬\tK9\n华为Mate60\tP1\n北京故宮博物院太和殿\tP2\n花园\tG1\n"
    (tmp_path / "terms.tsv").write_text(terms, encoding="utf-8")
    own = Labeler(language="zh", lexicon=tmp_path / "terms.tsv")
    captions = ["一只小金毛犬", "新款华为Mate60手机", "北京故宫博物院太和殿前的游客", "花园", "没有金毛犬"]
    assert [labels[0] for labels in own(captions[:4])] == ["K9", "P1", "P2", "G1"]
    assert own(captions[4:]) == [[]]
    assert LABELERS["zh"](["一只金毛犬"]) == [["n02084071"]]  # the others' tables are as they were


def test_settings_that_do_not_exist() -> None:
    with pytest.raises(UsageError, match="`language` 'xx': there are en, de"):
        Labeler(language="xx")
    with pytest.raises(UsageError, match="`language`"):
        Labeler("corenet", language="de")
    with pytest.raises(UsageError, match="bytes"):
        LABELERS["de"]([b"ein Hund"])


TEXT = st.text(max_size=60)
WORDS = st.lists(
    st.sampled_from(
        [*"ein eine Hund Hunde hund Mann junger Junge Schutzhelmen Hundehütte ohne kein und , . ' - ß straße STRASSE "
          "un une chien l'eau qu'un planche à roulettes porte sans ni pas de d' jeune homme rouge T-Shirt t-shirt "
          "<b> &amp; # #hund http://x.y dog the \x00 狗 é ̈ \u00ad \ud83d 🐶 12 两只狗 没有Ｔ恤 騎馬上の".split(" ")]
    ),
    max_size=14,
).map(" ".join)  # fmt: skip


@given(st.lists(TEXT | WORDS | st.none(), max_size=6))
@settings(max_examples=300, deadline=None)
@pytest.mark.parametrize("language", LABELERS)
def test_a_caption_is_labelled_alike_in_any_company(language: str, captions: list[str | None]) -> None:
    labeler = LABELERS[language]
    together = labeler(captions)
    assert together == [labeler([caption])[0] for caption in captions]
    assert all(labels == sorted(set(labels)) for labels in together)


@given(TEXT | WORDS)
@settings(max_examples=200, deadline=None)
@pytest.mark.parametrize("language", LABELERS)
def test_explain_agrees_for_any_text(language: str, caption: str) -> None:
    told = LABELERS[language].explain(caption)
    assert sorted({label for word in told for label in word.labels}) == LABELERS[language]([caption])[0]


@pytest.mark.parametrize("language", LABELERS)
def test_pickled_and_in_parts(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from catlip.labels.nouns import rule

    captions = ["Ein Hund auf der Straße", None, "un chien à la plage " * 20, "zwei Katzen", float("nan"), "l'eau"] * 9
    labeler = LABELERS[language]
    whole = labeler(captions)
    assert pickle.loads(pickle.dumps(labeler))(captions) == whole
    assert Labeler(**labeler.settings)(captions) == whole
    rows = np.arange(len(captions)) // 2
    assert len(labeler.sparse(captions, rows)[1]) == len(captions) // 2 + 1
    monkeypatch.setattr(rule, "CHUNK_CHARACTERS", 100)
    assert labeler(captions) == whole


def test_a_vocabulary_knows_the_language(tmp_path: Path) -> None:
    captions = ["Ein Hund am Strand", "zwei Hunde", "eine Frau mit Fahrrad"] * 3
    german = build_vocabulary(captions, language="de", out=str(tmp_path / "vocab.tsv"))
    assert "Hund" in german.names
    again = Vocabulary.load(tmp_path / "vocab.tsv")
    assert again == german
    assert again.labeler().settings == LABELERS["de"].settings
    english = build_vocabulary(["a dog on a beach"] * 3, out="")
    with pytest.raises(UsageError, match="language"):
        Vocabulary.merge([german, english])
    assert Vocabulary.load(tmp_path / "vocab.tsv").hash != Vocabulary(**{
        **{name: getattr(german, name) for name in ("synsets", "names", "counts", "samples")}
    }).hash  # fmt: skip
    text = (tmp_path / "vocab.tsv").read_text(encoding="utf-8")
    (tmp_path / "vocab.tsv").write_text(text.replace(f"lexicon={german.lexicon}", "lexicon=000000000000"))
    with pytest.raises(UsageError, match="lexicon"):
        Vocabulary.load(tmp_path / "vocab.tsv").labeler()


def test_files_by_worker_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "de.tsv").write_text("key\tcaption\n1\tEin Hund am Strand\n2\tun chien\n", encoding="utf-8")
    counted = build_vocabulary(str(tmp_path / "de.tsv"), language="de", out=str(tmp_path / "vocab.tsv"))
    assert counted.synsets == build_vocabulary(["Ein Hund am Strand"], language="de", out="").synsets
    assert "not in the language de by their words" in capsys.readouterr().out
    write_labels(str(tmp_path / "de.tsv"), str(tmp_path / "labels"), language="auto", vocab=str(tmp_path / "vocab.tsv"))


@pytest.mark.parametrize("language", SHIPPED)
def test_the_tables(language: str) -> None:
    tables, wordnet = open_languages(language)[0], ENGLISH.wordnet
    for lemma in tables.lemmas:
        noun = tables.entry(lemma)
        if noun is None:  # only a place where a text is cut
            assert tables.spelling.unspaced
            continue
        assert all(wordnet.has_synset(synset) for synset in noun.synsets if synset != ALONE), lemma


@pytest.mark.skipif(not MULTI30K.is_dir(), reason="the captions are in the shared data")
@pytest.mark.parametrize(("language", "precision", "recall"), [("de", 0.83, 0.76), ("fr", 0.77, 0.74)])
def test_agreement_with_english_on_captions_that_the_tables_were_not_made_with(
    language: str, precision: float, recall: float
) -> None:
    """Every fifth of the training captions; the bars are a little below what was measured."""
    english, other = (
        gzip.decompress((MULTI30K / f"train.{code}.gz").read_bytes()).decode().splitlines()[::5]
        for code in ("en", language)
    )
    wanted, found = ENGLISH(english), LABELERS[language](other)
    right = sum(len(set(a) & set(b)) for a, b in zip(wanted, found, strict=True))
    assert right / sum(map(len, found)) >= precision
    assert right / sum(map(len, wanted)) >= recall


def own_language(folder: Path, words: str = "", nouns: str = "hund\tn02084071\n") -> Path:
    folder.mkdir(exist_ok=True)
    lines = "spelling\tname\tSwedish\nfunction\tdeterminer\ten ett\nending\tar\t-\n"
    (folder / "words.tsv").write_text(lines + words, encoding="utf-8")
    (folder / "nouns.tsv").write_text(nouns, encoding="utf-8")
    return folder


def test_the_documented_language_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = (b.text for b in blocks(ROOT / "docs" / "labels.md") if b.language == "python" and "swedish" in b.text)
    scope: dict = {}
    exec(compile(block, "labels.md", "exec"), scope)
    *_, promised = block.splitlines()[-1].partition("# ")
    labeler = scope["labeler"]
    assert labeler(["Två hundar på stranden", "pojkarna utan boll"]) == ast.literal_eval(promised)
    assert labeler(["en ung man"]) == [["n10287213", "n10804287"]]
    assert pickle.loads(pickle.dumps(labeler))(["hundar"]) == [["n02084071"]]
    assert "Swedish noun 'hund'" in str(labeler.explain("hundarna"))


def test_a_vocabulary_of_ones_own_language_wants_its_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tables say decides, wherever they are; shipped languages win over folders of the same name."""
    folder = own_language(tmp_path / "my language")
    counted = build_vocabulary(["en hund"], language=str(folder), out=str(tmp_path / "vocab.tsv"))
    again = Vocabulary.load(tmp_path / "vocab.tsv")
    assert again == counted
    assert again.labeler()(["hundar"]) == [["n02084071"]]
    elsewhere = build_vocabulary(["en hund"], language=str(own_language(tmp_path / "b")), out="")
    assert elsewhere.hash == counted.hash
    assert Vocabulary.merge([counted, elsewhere]).counts == [2]
    changed = build_vocabulary(["hund"], language=str(own_language(folder, "never\tkatt\tno cat\n")), out="")
    assert changed.hash != counted.hash
    with pytest.raises(UsageError, match="lexicon"):
        again.labeler()
    with pytest.raises(UsageError, match="lexicon"):
        Vocabulary.merge([counted, changed])
    monkeypatch.chdir(tmp_path)
    own_language(Path("de"))
    assert Labeler(language="de").data_hash == LABELERS["de"].data_hash
    assert Labeler(language="my language").absolute_settings["language"] == str(folder)


def test_auto_with_a_language_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_language(tmp_path / "sv", nouns="hund\tn02084071\nstrand\tn09217230\nsol\tn09450454\n")
    labeler = Labeler(language=f"auto,{folder}")
    mixed = ["ett hund och ett strand", "a dog on the beach", "Ein Hund am Strand", "un chien sur la plage", "一只狗"]
    beach = ["n02084071", "n09217230"]
    assert labeler(mixed) == [beach, beach, beach, beach, ["n02084071"]]
    assert labeler.data_hash not in (LABELERS["auto"].data_hash, Labeler(language=folder).data_hash)
    monkeypatch.chdir(tmp_path)
    near = Labeler(language="auto,sv")
    assert near.absolute_settings["language"] == f"auto,{folder}"
    assert near.data_hash == labeler.data_hash
    assert pickle.loads(pickle.dumps(near))(mixed) == labeler(mixed)
    counted = build_vocabulary(mixed, language="auto,sv", out=str(tmp_path / "vocab.tsv"))
    assert counted.counts == [5, 4]
    assert Vocabulary.load(tmp_path / "vocab.tsv").labeler()(mixed) == labeler(mixed)
    own_language(tmp_path / "a,b")
    assert Labeler(language="a,b")(["hundar"]) == [["n02084071"]]  # only auto is followed by others
    with pytest.raises(UsageError, match="`language` 'missing': there are en"):
        Labeler(language="auto,missing")


def test_labels_are_made_as_the_vocabulary_was_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.tsv").write_text("key\tcaption\n1\tein Hund\n", encoding="utf-8")
    build_vocabulary(str(tmp_path / "a.tsv"), language="de", out=str(tmp_path / "v.tsv"))
    write_labels(str(tmp_path / "a.tsv"), str(tmp_path / "labels"), vocab=str(tmp_path / "v.tsv"))
    (made,) = (tmp_path / "labels").glob("*.parquet")
    assert pq.read_table(made)["synsets"].to_pylist() == [["n02084071"]]
    assert "not English" not in capsys.readouterr().out


def test_files_in_ones_own_language(tmp_path: Path) -> None:
    """Worker processes read the same tables, and labels of other tables are not mixed in one folder."""
    folder, out = own_language(tmp_path / "swedish"), tmp_path / "labels"
    (tmp_path / "a.tsv").write_text("key\tcaption\n1\ten hund\n", encoding="utf-8")
    write_labels(str(tmp_path / "a.tsv"), str(out), language=str(folder))
    (made,) = out.glob("*.parquet")
    assert pq.read_table(made)["synsets"].to_pylist() == [["n02084071"]]
    own_language(folder, nouns="hund\tn02121620\n")
    with pytest.raises(UsageError, match="other captions or settings"):
        write_labels(str(tmp_path / "a.tsv"), str(out), language=str(folder))


@pytest.mark.parametrize(
    ("words", "nouns", "message"),
    [
        ("nonsense\ta\tb\n", "", r"words.tsv, line 4: 'nonsense' is none of spelling, function"),
        ("function\tnoun\thund\n", "", r"words.tsv, line 4: expected .function<TAB>break|determiner"),
        ("before\tnumber\t1 2 3\n", "", r"words.tsv, line 4: expected .before<TAB>KIND<TAB>7 NUMBERS"),
        ("before\tnumber\t1 2 3 4 5 6 nan\n", "", r"words.tsv, line 4: expected .before<TAB>"),
        ("\n# said\nsense\thund\tn00000000\n", "", r"words.tsv, line 6: expected .sense<TAB>NOUN<TAB>SYNSET"),
        ("charset\tmine\tascii\n", "", r"words.tsv, line 4: expected .charset<TAB>own.other<TAB>CODECS"),
        ("charset\town\tklingon\n", "", r"words.tsv, line 4: expected .charset<TAB>own.other<TAB>CODECS"),
        ("charset\town\trot13\n", "", r"words.tsv, line 4: expected .charset<TAB>own.other<TAB>CODECS"),
        ("letter\té\tee\n", "", r"words.tsv, line 4: expected .letter<TAB>LETTERS<TAB>WHAT EACH"),
        ("spelling\tcapitals\tmaybe\n", "", r"words.tsv, line 4: expected .spelling<TAB>name"),
        ("spelling\tname\tNorwegian\n", "", r"words.tsv, line 4: there is a line .spelling. for 'name' already"),
        ("", "hund\tn02084071\nkatt\tn99999999\n", r"nouns.tsv, line 2: 'n99999999' is no noun synset"),
        ("", "hund\n", r"nouns.tsv, line 1: 'hund' has no synset|nouns.tsv, line 1: '' is no noun synset"),
        ("", "hund\tn02084071\tx\n", r"nouns.tsv, line 1: expected .NOUN<TAB>n02084071"),
        ("", "\tn02084071\n", r"nouns.tsv, line 1: expected .NOUN<TAB>n02084071"),
    ],
)
def test_mistakes_in_ones_own_tables(tmp_path: Path, words: str, nouns: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Labeler(language=own_language(tmp_path / "own", words, nouns))


def test_folders_that_are_no_language(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a folder of your own may be named"):
        Labeler(language=tmp_path / "missing")
    with pytest.raises(UsageError, match=r"words.tsv is missing"):
        Labeler(language=tmp_path)
    (tmp_path / "words.tsv").write_text("spelling\tname\tSwedish\n")
    with pytest.raises(UsageError, match=r"there is no line .function"):
        Labeler(language=tmp_path)
    folder = own_language(tmp_path / "own")
    (folder / "nouns.tsv").write_bytes("sjö\tn09328904".encode("latin-1"))
    with pytest.raises(UsageError, match="UTF-8"):
        Labeler(language=folder)
    (folder / "nouns.tsv").unlink()
    (folder / "nouns.tsv.xz").write_bytes(b"no xz at all")
    with pytest.raises(UsageError, match="cannot be unpacked"):
        Labeler(language=folder)
    bomb = lzma.compress(b"\n" * (MAX_BYTES + 1))
    (folder / "nouns.tsv.xz").write_bytes(bomb)
    with pytest.raises(UsageError, match="more than 64 MiB"):
        Labeler(language=folder)


def test_a_language_of_ones_own_without_spaces(tmp_path: Path) -> None:
    """Thai: dog, beach; the word for cat is in another one, which the wordnet says is nothing to be seen."""
    folder = own_language(tmp_path / "th")
    text = "spelling\tname\tThai\nspelling\tunspaced\tyes\nfunction\tpreposition\tบน\nletter\tฏฎ\tฎฏ\n"
    (folder / "words.tsv").write_text(text, encoding="utf-8")
    lines = ["02084071-n\tหมา", "09217230-n\tหาด", "02121620-n\tแมว", "05816622-n\tแมวก", "05816622-n\tกแมว"]
    (tmp_path / "wn.tab").write_text("\n".join(lines).replace("\t", "\tlemma\t"), encoding="utf-8")
    (folder / "nouns.tsv").unlink()
    compile_nouns(folder, [tmp_path / "wn.tab"])
    table = lzma.decompress((folder / "nouns.tsv.xz").read_bytes()).decode()
    assert table == "หมา\tn02084071\nหาด\tn09217230\nแมว\tn02121620\nแมวก\t-\n"
    labeler = Labeler(language=folder)
    assert labeler(["หมาบนหาด", "แมวกบนหาด", "กแมว", "a dog"]) == [
        ["n02084071", "n09217230"],
        ["n09217230"],
        ["n02121620"],
        [],
    ]


def test_odd_entries_harm_nobody(tmp_path: Path) -> None:
    odd = [" ", "- -", "!", "a\u0000b c", "\ufeffx y", "n " * 40, "'", "_", "x" * 5000]
    nouns = "".join(f"{lemma}\tn02084071\n" for lemma in odd if lemma.strip())
    labeler = Labeler(language=own_language(tmp_path / "own", "sense\t- -\tn02084071\n", nouns))
    for caption in [*odd, " ".join(odd)]:
        labeler.explain(caption)


def test_another_script_is_the_languages_own(tmp_path: Path) -> None:
    folder = own_language(tmp_path / "ru", nouns="собака\tn02084071\nпляж\tn09217230\n")
    text = "spelling\tname\tRussian\nfunction\tpreposition\tпо на в с\nending\tу\t-\n"
    (folder / "words.tsv").write_text(text, encoding="utf-8")
    labeler = Labeler(language=folder)
    assert labeler(["собака бежит по пляжу", "ein Hund und eine Katze auf der Straße"]) == [
        ["n02084071", "n09217230"],
        [],
    ]


def test_nouns_are_compiled_from_a_wordnet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of several synsets the one that English captions get; what cannot be seen and infinitives are left out."""
    folder = own_language(tmp_path / "fr", "infinitive\ter\te\n", nouns="")
    (folder / "nouns.tsv").unlink()
    lines = ["# table", "02084071-n\tfra:lemma\tchien", "05816622-n\tlemma\tfait", "02472293-n\tfra:lemma\thomme",
             "10287213-n\tfra:lemma\thomme", "03221720-n\tfra:lemma\tporte", "02717831-v\tfra:lemma\tporter",
             "10280130-n\tfra:lemma\tporter", "02084071-n\tfra:def\tx", "99999999-n\tfra:lemma\trien"]  # fmt: skip
    (tmp_path / "wn.tab").write_text("\n".join(lines), encoding="utf-8")
    compile_nouns(folder, [tmp_path / "wn.tab"])
    text = lzma.decompress((folder / "nouns.tsv.xz").read_bytes()).decode()
    assert text == "chien\tn02084071\nhomme\tn10287213\nporte\tn03221720\tv\n"
    assert Labeler(language=folder)(["chien"]) == [["n02084071"]]
    (tmp_path / "wn.tab").write_text("2084071-n\tfra:lemma\tchien", encoding="utf-8")
    with pytest.raises(UsageError, match="line 1"):
        compile_nouns(folder, [tmp_path / "wn.tab"])
