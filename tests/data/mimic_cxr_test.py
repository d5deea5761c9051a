"""MIMIC-CXR on hand-made files of its form: which sections of a report are shown, labels, views, splits, balanced splits, and what is damaged."""

from __future__ import annotations

import gzip
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data.datasets import mimic_cxr
from cimrl_jax.data.datasets.mimic_cxr import Options
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from tests.data import layouts

pytest.importorskip("PIL")
METADATA, SPLIT, LABELS = "mimic-cxr-2.0.0-metadata.csv", "mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-chexpert.csv.gz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    layouts.mimic_cxr(path := tmp_path_factory.mktemp("mimic"))
    return path


@pytest.fixture
def copy(folder, tmp_path) -> pathlib.Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    given: dict[str, Any] = {"size": 8}
    return mimic_cxr.build(Options(**(given | changes)), path=folder)


def _edit(folder: pathlib.Path, name: str, old: str, new: str) -> None:
    path = folder / name
    content = gzip.decompress(path.read_bytes()).decode() if name.endswith(".gz") else path.read_text()
    assert old in content
    content = content.replace(old, new)
    path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())


def _counts(dataset: Dataset, split: str) -> list[int]:
    return np.bincount(dataset.split(split).group, minlength=len(dataset.group_names)).tolist()


REPORTS = {
    "one a paragraph": (
        "                     FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old woman with cough // infection?\n"
        " \n TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___\n \n FINDINGS: \n \n Leak.\n \n IMPRESSION: \n \n Leak.",
        "year old woman with cough // infection?",
    ),
    "over several lines": (
        " HISTORY:  ___-year-old male with\n  chest pain, question of\n  pneumothorax.\n\n FINDINGS:  Leak.",
        "year-old male with chest pain, question of pneumothorax.",
    ),
    "text under its heading": (" INDICATION:\n ___M with fever.\n FINDINGS:  Leak.", "M with fever."),
    "several on one line": (" HISTORY: fever. COMPARISON: None. FINDINGS: Leak. IMPRESSION: Leak.", "fever."),
    "two sections": (" CLINICAL INFORMATION: Smoker.\n\n REASON FOR EXAM: Cough.\n\n IMPRESSION: Leak.", "Smoker. Cough."),
    "small letters": ("Reason for examination: Cough. Comparison: none. Findings: Leak.", "Cough."),
    "in capitals throughout": ("CLINICAL HISTORY: COUGH AND FEVER COMPARISON: NONE FINDINGS: LEAK IMPRESSION: LEAK", "COUGH AND FEVER"),
    "findings without a heading": (
        " REASON FOR EXAMINATION:  Followup after surgery.\n\n Portable AP radiograph of the chest: leak.",
        "Followup after surgery.",
    ),
    "nothing but findings without a heading": (" INDICATION:\n\n Leak.", None),
    "de-identified throughout": (" INDICATION:  ___\n\n FINDINGS: Leak.", None),
    "a heading without a colon": (" INDICATION: Cough.\n FINDINGS\n Leak.", "Cough."),
    "a heading within a sentence of the impression": (
        " INDICATION:  Cough.\n\n IMPRESSION:  No change.  Indication: as above pneumonia persists.\n",
        "Cough.",
    ),
    "a history within the findings": (
        " HISTORY: Fever.\n\n FINDINGS:\n\n Pneumonia in this patient with history: smoking. Clear opacity.\n",
        "Fever.",
    ),
    "pictures named in the next line": (
        " INDICATION:  Cough.\n PA and lateral views of the chest show right lower lobe pneumonia.\n",
        "Cough.",
    ),
    "a wet read before": ("WET READ: ___ ___ 9:09 AM\n  Leak.\n ____________\n FINAL REPORT\n INDICATION:  Cough.\n", "Cough."),
    "findings and something shown in one": (" FINDINGS AND HISTORY: Leak.\n CLINICAL CORRELATION: Leak.\n CLINICAL FINDINGS: Leak.", None),
    "variants of headings": (
        "INDICATION/HISTORY: a\nCLINICAL INDICATION: b\nReason for the exam: c\nPATIENT HISTORY: d\nINDICATIONS: e",
        "a b c d e",
    ),
    "Windows lines": (" INDICATION: Cough.\r\n\r\n Leak.\r\n", "Cough."),
    "no heading": ("Leak and leak.", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize("name", list(REPORTS))
def test_only_what_was_written_beforehand_is_shown(name):
    report, expected = REPORTS[name]
    assert mimic_cxr.text_of(report, Options()) == expected


def test_other_sections_are_shown_if_asked_for():
    report = REPORTS["one a paragraph"][0]
    assert mimic_cxr.text_of(report, Options(sections=("technique",))) == "CHEST (PA AND LAT) Chest PA and lateral"
    assert mimic_cxr.text_of(report, Options(sections=("findings", "impression"))) == "Leak. Leak."
    assert [kind for kind, _ in mimic_cxr.sections(report)] == [None, "technique", "indication", "technique", "comparison", "findings", "impression"]


def test_a_long_report_in_capitals_is_cut_in_no_time():
    assert mimic_cxr.sections("COUGH AND " * 20_000) == []


def test_labels_views_and_splits_are_the_official_ones(folder):
    dataset = _build(folder)
    assert dataset.class_names == ("no Pneumonia", "Pneumonia") and dataset.attribute_names == ("PA", "AP")
    assert dataset.group_names[1] == "label=no Pneumonia, attribute=AP"
    assert _counts(dataset, "train") == [16, 4, 4, 16] and _counts(dataset, "validation") == _counts(dataset, "test") == [4, 1, 1, 4]
    assert "20 pictures left out: not from the front" in dataset.notes
    assert dataset.features["image"].shape == (8, 8, 1) and not dataset.features["image"].flip


def test_balanced_splits_leave_the_view_nothing_to_tell(folder):
    dataset = _build(folder)
    assert _counts(dataset, "train_randomised") == [20] * 4 and _counts(dataset, "test_balanced") == [1] * 4


def test_findings_and_impression_are_in_no_text(folder):
    words = set(_build(folder).features["text"].vocabulary)
    assert {"year", "old", "with", "cough"} <= words and not {"secret0", "secret1", "pa", "ap"} & words
    assert "secret1" in _build(folder, sections=("findings",)).features["text"].vocabulary


@pytest.mark.parametrize(
    ("uncertain", "unmentioned", "expected"),
    [("ignore", "negative", (20, 20)), ("negative", "negative", (40, 20)), ("positive", "ignore", (0, 40)), ("ignore", "ignore", (0, 20))],
)
def test_what_is_uncertain_or_not_mentioned(folder, uncertain, unmentioned, expected):
    listing = mimic_cxr.read(Options(finding="Edema", uncertain=uncertain, unmentioned=unmentioned), folder)
    rows = np.concatenate([listing.splits[name] for name in ("train", "validation", "test")])
    assert tuple(np.bincount(listing.label[rows], minlength=2)) == expected
    assert (sum(expected) == 60) != (f"{60 - sum(expected)} pictures left out: Edema is uncertain or not mentioned" in listing.notes)


@pytest.mark.parametrize("attribute", ["portable", "sex"])
def test_other_attributes(folder, attribute):
    dataset = _build(folder, attribute=attribute)
    assert dataset.attribute_names == mimic_cxr.ATTRIBUTES[attribute]
    if attribute == "portable":
        assert _counts(dataset, "train") == [16, 4, 4, 16]
    else:
        assert sum(_counts(dataset, "train")[1::2]) == sum(number % 7 > 3 for number in range(40))


def test_tables_may_be_packed_or_not(folder, copy):
    (copy / METADATA).with_suffix(".csv.gz").write_bytes(gzip.compress((copy / METADATA).read_bytes()))
    (copy / METADATA).unlink()
    (copy / LABELS.removesuffix(".gz")).write_bytes(gzip.decompress((copy / LABELS).read_bytes()))
    (copy / LABELS).unlink()
    one, other = _build(folder), _build(copy)
    assert all((one.split(name).group == other.split(name).group).all() for name in one.splits)


def test_text_is_absent_where_a_report_has_none_of_the_sections(copy):
    (copy / "files/p10/p10000033/s50000001.txt").write_text(" FINDINGS: secret.\n")
    dataset = _build(copy)
    assert dataset.split("train").load(np.arange(40))["present"]["text"].tolist() == [number != 1 for number in range(40)]


def test_reports_are_not_needed_without_sections(copy):
    for report in copy.glob("files/p10/*/*.txt"):
        report.unlink()
    with pytest.raises(UserError, match=r"there are no reports such as .*s50000000\.txt; unpack mimic-cxr-reports\.zip"):
        _build(copy)
    assert set(_build(copy, sections=()).features) == {"image"}


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (METADATA, None, "", r"cannot read .*metadata\.csv .*fetch it from physionet\.org"),
        (SPLIT, None, "", r"cannot read .*split\.csv"),
        (LABELS, None, "", r"cannot read .*chexpert\.csv"),
        ("patients.csv", None, "", r"cannot read .*patients\.csv .*MIMIC-IV"),
        (METADATA, "ViewPosition", "View", r"metadata\.csv has no column 'ViewPosition'"),
        (SPLIT, "subject_id,split", "subject_id,part", r"split\.csv has no column 'split'"),
        (LABELS, "Pneumonia", "Pneumo", r"chexpert\.csv\.gz has no column 'Pneumonia'"),
        (METADATA, ",AP,", ",LL,", None),
        (METADATA, ",PA,", ",LL,", None),
    ],
)
def test_damaged_tables_are_named(copy, name, old, new, message):
    if old is None:
        (copy / name).unlink()
    else:
        _edit(copy, name, old, new)
    if message is None:  # a view that nobody has: nothing can be balanced, which is no error
        assert set(_build(copy).splits) == {"train", "validation", "test"}
        return
    with pytest.raises(UserError, match=message) as error:
        _build(copy, attribute="sex")
    assert "\n" not in str(error.value) and str(error.value).startswith(mimic_cxr.WHERE)


def test_a_table_that_is_cut_off_is_named(copy):
    whole = (copy / LABELS).read_bytes()
    for content in (whole[: len(whole) // 2], b"no gzip", whole[:30] + b"\0" * 20 + whole[50:]):
        (copy / LABELS).write_bytes(content)
        with pytest.raises(UserError, match=r"cannot read .*chexpert\.csv\.gz"):
            _build(copy)


@pytest.mark.parametrize("what", list(mimic_cxr.PUBLISHED))
def test_more_rows_than_published_are_refused(folder, monkeypatch, what):
    monkeypatch.setitem(mimic_cxr.PUBLISHED, what, 59)
    with pytest.raises(UserError, match=rf"has (60|80) different {what}, but only 59 were published"):
        _build(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (SPLIT, "f3-a,50000003,10000035,train", "f3-a,50000003,10000035,trial", r"metadata\.csv, line 6: no split: .* says 'trial' of f3-a"),
        (SPLIT, "f3-a,50000003,10000035,train", "x,50000003,10000035,train", "line 6: no split: .* says None of f3-a"),
        (LABELS, "10000035,50000003,,,1.0", "10000035,50000003,,,maybe", "line 6: unknown label: Pneumonia of study 50000003 is 'maybe'"),
        (METADATA, "f3-a,10000035,", "f3-a,../../etc,", r"line 6: bad number: subject_id is '\.\./\.\./etc'"),
        (METADATA, "f3-a,", "../../../../../f3-a,", "line 6: file outside"),
        (METADATA, "f4-a,10000036,50000004", "f3-a,10000035,50000003", "line 8: duplicate id: 'f3-a' is that of .*line 6 too"),
        ("files/p10/p10000035/s50000003.txt", None, "", r"line 6: missing file: there is no .*s50000003\.txt"),
        ("files/p10/p10000035/s50000003/f3-a.jpg", None, "", r"line 6: missing file: there is no .*f3-a\.jpg"),
    ],
)
def test_bad_rows_are_named_or_left_out(copy, name, old, new, message):
    if old is None:
        (copy / name).unlink()
    else:
        _edit(copy, name, old, new)
        if "file outside" in message:
            _edit(copy, SPLIT, "f3-a,", "../../../../../f3-a,")
    with pytest.raises(UserError, match=message) as error:
        _build(copy)
    assert "\n" not in str(error.value)
    dataset = _build(copy, on_bad_row="skip")
    assert len(dataset.split("train")) == 39 and len(dataset.skipped) == 1
    assert _counts(dataset, "train_randomised")[0] + _counts(dataset, "train_randomised")[1] in (38, 40)


def test_an_unknown_finding_is_refused(folder):
    with pytest.raises(UserError, match="data.finding is 'pneumonia'; did you mean 'Pneumonia'"):
        _build(folder, finding="pneumonia")


def test_side_views_alone_are_too_little(copy):
    _edit(copy, METADATA, ",AP,", ",LL,")
    _edit(copy, METADATA, ",PA,", ",LL,")
    with pytest.raises(UserError, match="no row of .*metadata.csv can be used .*not from the front.*: 80"):
        _build(copy)


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        mimic_cxr.build(Options())
