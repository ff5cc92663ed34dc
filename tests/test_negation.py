"""What reports and product texts say is absent or uncertain gives no label, and what follows does: sixty sentences."""

import pytest

from catlip.labels.labeler import Labeler

FINDINGS = (
    "effusion",
    "pleural effusion",
    "pneumothorax",
    "consolidation",
    "fracture",
    "nodule",
    "cardiomegaly",
    "edema",
    "mass",
    "atelectasis",
    "pneumonia",
    "catheter",
    "hernia",
)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> Labeler:
    file = tmp_path_factory.mktemp("terms") / "findings.tsv"
    file.write_text("".join(f"{finding}\t{finding}\n" for finding in FINDINGS))
    return Labeler(lexicon=file)


@pytest.mark.parametrize(
    ("sentence", "findings"),
    [
        ("No pleural effusion.", ""),
        ("There is no pleural effusion or pneumothorax.", ""),
        ("No focal consolidation, pleural effusion, or pneumothorax.", ""),
        ("No evidence of fracture or mass.", ""),
        ("No evidence of effusion and pneumothorax.", ""),
        ("Without evidence of consolidation.", ""),
        ("The patient denies a history of hernia.", ""),
        ("Negative for fracture.", ""),
        ("Chest radiograph negative for pneumonia, small effusion.", "effusion"),
        ("Please rule out pneumonia.", ""),
        ("R/o pneumothorax.", ""),
        ("Pneumonia has been ruled out.", ""),
        ("Pneumothorax was excluded.", ""),
        ("To exclude fracture, further views are needed.", ""),
        ("Pneumothorax is not seen.", ""),
        ("A nodule is not identified.", ""),
        ("Fracture not demonstrated.", ""),
        ("Pleural effusion is absent.", ""),
        ("Absence of pneumothorax.", ""),
        ("The left effusion has resolved.", ""),
        ("Resolution of the consolidation.", ""),
        ("Pneumonia is unlikely.", ""),
        ("Possible pneumonia.", ""),
        ("Questionable nodule in the left lobe.", ""),
        ("Suspected hernia.", ""),
        ("Suspicion of fracture.", ""),
        ("Consolidation cannot be excluded.", ""),
        ("Cannot exclude a small effusion.", ""),
        ("Findings may represent atelectasis.", ""),
        ("Probable atelectasis.", ""),
        ("Concerning for pneumonia.", ""),
        # Where the scope ends.
        ("No pneumothorax but a small pleural effusion.", "pleural effusion"),
        ("No effusion; cardiomegaly.", "cardiomegaly"),
        ("No pneumothorax. There is edema.", "edema"),
        ("No effusion, however there is a nodule.", "nodule"),
        ("No fracture although there is a mass.", "mass"),
        ("No change in the effusion.", "effusion"),
        ("No increase in the mass.", "mass"),
        ("No new consolidation, stable nodule.", "nodule"),
        ("Effusion without pneumothorax.", "effusion"),
        ("Edema, no effusion, no pneumothorax.", "edema"),
        ("Not only edema but also effusion.", "edema effusion"),
        ("Catheter in place, no pneumothorax.", "catheter"),
        ("A fracture of the rib is seen.", "fracture"),
        ("Cardiomegaly with no edema and a catheter in place.", "cardiomegaly catheter"),
    ],
)  # fmt: skip
def test_reports(reports: Labeler, sentence: str, findings: str) -> None:
    expected = {finding for finding in FINDINGS if finding in findings.replace("pleural effusion", "")}
    if "pleural effusion" in findings:
        expected.add("pleural effusion")
    assert {label for label in reports([sentence])[0] if label in FINDINGS} == expected
    told = reports.explain(sentence)
    absent = [word for word in told if word.text in FINDINGS and not word.labels]
    assert all("absent" in word.why or "uncertain" in word.why for word in absent)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Sugar-free chewing gum without wrapper", "chewing_gum"),
        ("Crib mattress, free of latex", "crib mattress"),
        ("Jacket without hood", "jacket"),
        ("Table lamp, bulb not included", "table_lamp lamp"),
        ("Bed frame only, mattress sold separately", "bedstead"),
        ("Picture frame; photo not included", "picture_frame"),
        ("Backpack with no zipper", "backpack"),
        ("Leather-free wallet", "wallet"),
        ("Dress (belt excluded)", "dress"),
        ("Candle, not for children", "candle"),
        ("Tripod, does not include a camera", "tripod"),
        ("A collar instead of a leash", "collar"),
        ("No dog but a cat", "cat"),
        ("No more tangled cables: a wireless mouse", "mouse"),
        ("Shirt with pocket, no buttons", "shirt pocket"),
    ],
)  # fmt: skip
def test_product_texts(text: str, names: str) -> None:
    labeler = Labeler()
    assert {labeler.name(label) for label in labeler([text])[0]} == set(names.split())


FINDINGS_DE = (
    "Pneumothorax Erguss Pleuraerguss Kardiomegalie Infiltrat Pneumonie Fraktur Rundherd Stauung Emphysem ZVK "
    "Herzschrittmacher"
)


@pytest.fixture(scope="module")
def german(tmp_path_factory) -> Labeler:
    file = tmp_path_factory.mktemp("terms") / "befunde.tsv"
    file.write_text("".join(f"{finding}\t{finding}\n" for finding in FINDINGS_DE.split()), encoding="utf-8")
    return Labeler(language="de", lexicon=file)


@pytest.mark.parametrize(
    ("sentence", "findings"),
    [
        ("Kein Pneumothorax.", ""),
        ("Pleuraergüsse beidseits.", "Pleuraerguss"),
        ("V.a. Pneumonie.", ""),
        ("Pneumothorax nicht nachweisbar.", ""),
        ("Kein Anhalt für Infiltrate oder Ergüsse.", ""),
        ("Ausschluss Fraktur", ""),
        ("Verdacht auf Pneumonie rechts, Stauung", "Stauung"),
        ("Kein Nachweis von Rundherden", ""),
        ("Spannungspneumothorax links", "Pneumothorax"),
        ("Oberlappeninfiltrate", "Infiltrat"),
        ("Ein Pneumothorax ist rechts nicht sicher nachweisbar", ""),
        ("Erguss und Infiltrat nicht abgrenzbar", ""),
        ("Fraktur ausgeschlossen", ""),
        ("Keine Fraktur, ZVK in regelrechter Lage, keine Zeichen einer Stauung", "ZVK"),
        ("Kein Hinweis auf ein Infiltrat, jedoch Erguss links", "Erguss"),
        ("Fraglicher Rundherd links", ""),
        ("Kardiomegalie mit deutlicher Stauung", "Kardiomegalie Stauung"),
        ("Kein Erguss, jedoch Infiltrat rechts basal.", "Infiltrat"),
        ("Emphysem, kein Pneumothorax", "Emphysem"),
        ("Infiltrat im rechten Unterlappen, ein Erguss ist nicht erkennbar", "Infiltrat"),
        ("Weder Erguss noch Infiltrat", ""),
        ("Es zeigen sich keine Frakturen oder Rundherde", ""),
        ("Stauung ohne Erguss", "Stauung"),
        ("Mögliche Pneumonie rechts basal", ""),
        ("Zustand nach Rippenfraktur, Herzschrittmacher links", "Fraktur Herzschrittmacher"),
        ("KEIN PNEUMOTHORAX, ERGUSS LINKS", "Erguss"),
        ("kein pneumothorax, erguss links", "Erguss"),
    ],
)
def test_german_reports(german: Labeler, sentence: str, findings: str) -> None:
    """Also: own terms in the plural, and as the end of a compound."""
    found = {label for label in german([sentence])[0] if label in FINDINGS_DE.split()}
    assert found == set(findings.split())
