"""VQA-CP on hand-made files of its form: answers as the official evaluation compares them, classes, labels, groups, splits, and what is damaged."""

from __future__ import annotations

import collections
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data.datasets import vqa_cp
from cimrl_jax.data.datasets.vqa_cp import Options
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.evaluate import robustness
from tests.data import layouts

pytest.importorskip("PIL")
KINDS = ("how many", "is there", "what color")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    layouts.vqa_cp(path := tmp_path_factory.mktemp("vqa_cp"))
    return path


@pytest.fixture
def copy(folder, tmp_path) -> pathlib.Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    given: dict[str, Any] = {"size": 8}
    return vqa_cp.build(Options(**(given | changes)), path=folder)


def _change(folder: pathlib.Path, name: str, edit: Callable[[Any], Any]) -> None:
    path = folder / name
    content = json.loads(path.read_text())
    path.write_text(json.dumps(edited if (edited := edit(content)) is not None else content))


def _texts(dataset: Dataset, split: str) -> list[str]:
    words = np.array(dataset.features["text"].vocabulary)
    source = dataset.split(split)
    return [" ".join(words[ids[ids > 0]]) for ids in source.load(np.arange(len(source)))["inputs"]["text"]]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("Yes", "yes"),
        ("  The  Dog. ", "dog"),
        ("2.5", "2.5"),
        ("no. 5", "no 5"),
        ("st. mary's", "st mary's"),
        ("100,978", "100978"),
        ("red,white", "red white"),
        ("red, white", "red white"),
        ("two", "2"),
        ("none", "0"),
        ("ten of a kind", "10 of kind"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("it’s", "it's"),
        ("2:50 pm", "2:50 pm"),
        ("girl's", "girl's"),
        ("black/white", "black white"),
        ("t-shirt", "t shirt"),
        ("what?!", "what"),
        ("ill", "ill"),
        ("a", ""),
    ],
)
def test_answers_are_normalised_as_published(raw, expected):
    assert vqa_cp.normalise(raw) == expected
    assert vqa_cp.normalise(expected) == expected


def test_priors_change_between_training_and_test(folder):
    dataset = _build(folder, group_least=1)
    assert set(dataset.class_names) == {"red", "blue", "yes", "no", "2", "3"} and dataset.attribute_names == KINDS
    label = {name: collections.Counter(np.array(dataset.class_names)[source.label].tolist()) for name, source in dataset.splits.items()}
    assert label["train"] == {"red": 27, "yes": 27, "2": 27, "blue": 9, "no": 9, "3": 9}
    assert label["validation"] == {"red": 3, "yes": 3, "2": 3, "blue": 1, "no": 1, "3": 1}
    assert label["test"] == {"red": 2, "yes": 2, "2": 2, "blue": 6, "no": 6, "3": 6}
    assert set(dataset.splits) == {"train", "validation", "test"}


def test_groups_are_label_and_question_type(folder):
    dataset = _build(folder, group_least=1)
    for name, source in dataset.splits.items():
        for text, label, group in zip(_texts(dataset, name), source.label, source.group, strict=True):
            kind = KINDS[dataset.group_attribute[group]]
            assert text.startswith(kind)
            assert dataset.group_names[group] == f"label={dataset.class_names[label]}, attribute={kind}"


def test_rare_pairs_are_of_unknown_group(folder):
    dataset = _build(folder, group_least=11)
    assert {name.split(",")[0] for name in dataset.group_names} == {"label=red", "label=yes", "label=2"}
    for source in dataset.splits.values():
        frequent = np.isin(source.label, [dataset.class_names.index(answer) for answer in ("red", "yes", "2")])
        assert ((source.group >= 0) == frequent).all()


def test_no_picture_is_both_in_training_and_in_validation(folder):
    seen = {}
    for seed in (0, 1):
        listing = vqa_cp.read(Options(validation=0.3, data_seed=seed), folder)
        column = listing.columns["image"]
        files = {name: {column.files[row] for row in rows} for name, rows in listing.splits.items()}  # pyright: ignore[reportAttributeAccessIssue]
        assert len(files["validation"]) == 3 and not files["train"] & files["validation"] and len(files["train"] | files["validation"]) == 10
        seen[seed] = files["validation"]
    assert seen[0] != seen[1]


def test_questions_about_one_picture_share_its_path(folder):
    files: Any = vqa_cp.read(Options(), folder).columns["image"]
    assert len({id(file) for file in files.files}) == len(set(files.files)) == 12


def test_the_label_is_the_class_that_most_people_gave(copy):
    def edit(content: list[dict[str, Any]]) -> None:
        ten = (["no"] * 5 + ["two"] * 5, ["3"] * 4 + ["rare"] * 6, ["rare"] * 10, ["no"] * 6 + ["yes"] * 4)
        for entry, said in zip(content, ten, strict=False):
            entry["answers"] = [{"answer": text} for text in said]
            entry["multiple_choice_answer"] = said[-1]

    _change(copy, "vqacp_v2_test_annotations.json", edit)
    listing = vqa_cp.read(Options(), copy)
    first = [listing.class_names[label] if label >= 0 else "" for label in listing.label[120:124]]
    assert first == ["2", "3", "", "no"]
    assert listing.splits["test"].tolist() == [120, 121, *range(123, 144)]
    assert "1 of 24 test questions left out: none of their answers is a class" in listing.notes


def test_the_ten_answers_are_kept_and_questions_without_a_class_counted(copy):
    def edit(content: list[dict[str, Any]]) -> None:
        content[0]["answers"] = [{"answer": text} for text in ["rare"] * 10]  # the first asks for a colour
        content[1]["answers"] = [{"answer": text} for text in ["No!"] * 4 + ["yes"] * 5 + ["rare"]]

    _change(copy, "vqacp_v2_test_annotations.json", edit)
    dataset = _build(copy)
    answers = dataset.answers["test"]
    assert answers.left_out.tolist() == [0, 0, 1] and answers.kinds == ("yes/no", "number", "other") and len(answers.kind) == 23
    assert np.bincount(answers.kind).tolist() == [8, 8, 7]
    names = [*dataset.class_names, "?"]
    assert [names[number] for number in answers.classes[0]] == ["no"] * 4 + ["yes"] * 5 + ["?"]
    source = dataset.split("test")
    perfect = robustness.evaluate_split(np.eye(len(dataset.class_names), dtype=np.float32)[source.label], source, None, dataset.group_names, answers)
    assert perfect["accuracy"] == 1.0 and perfect["vqa_accuracy"] == pytest.approx(23 / 24) and perfect["vqa_accuracy/other"] == pytest.approx(7 / 8)


def test_classes_are_answers_with_enough_training_questions(folder):
    assert set(_build(folder, least=30).class_names) == {"red", "yes", "2"}
    capped = _build(folder, answers=2)
    assert capped.class_names == ("2", "red")  # ties by spelling
    assert "72 of 108 train questions left out" not in capped.notes and len(capped.split("train")) == 36 + 36


def test_a_class_that_only_validation_has_is_none(copy):
    held_out = {entry for entry in vqa_cp.read(Options(), copy).splits["validation"].tolist()}

    def edit(content: list[dict[str, Any]]) -> None:
        for row in held_out:
            content[row]["multiple_choice_answer"] = "unheard"
            content[row]["answers"] = [{"answer": "unheard"}] * 10

    _change(copy, "vqacp_v2_train_annotations.json", edit)
    listing = vqa_cp.read(Options(least=1), copy)
    assert "unheard" not in listing.class_names and "12 of 12 validation questions left out" in listing.notes


def test_flat_pictures_and_the_other_release(folder, copy):
    for split in ("train2014", "val2014"):
        for file in list((copy / split).iterdir()):
            file.rename(copy / file.name)
        (copy / split).rmdir()
    for part, official in (("train", "train2014"), ("test", "val2014")):
        for kind, name in (("questions", "v2_OpenEnded_mscoco_{}_questions.json"), ("annotations", "v2_mscoco_{}_annotations.json")):
            content = json.loads((copy / f"vqacp_v2_{part}_{kind}.json").read_text())
            (copy / name.format(official)).write_text(json.dumps({"info": {}, kind: content}))
    flat, whole, other = _build(copy), _build(folder), _build(copy, version="v2")
    for name, source in whole.splits.items():
        rows = np.arange(len(source))
        for again in (flat, other):
            assert (again.split(name).label == source.label).all()
            assert (again.split(name).load(rows)["inputs"]["image"] == source.load(rows)["inputs"]["image"]).all()
    assert "of the 443757 published training questions" in other.notes


def test_left_and_right_are_not_swapped(folder):
    assert not _build(folder).features["image"].flip


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        ("train_questions", None, r"cannot read .*vqacp_v2_train_questions\.json \(No such file or directory\); it is a file of VQA-CP v2"),
        ("test_annotations", "{", r"vqacp_v2_test_annotations\.json is damaged .*a list of records: fetch it again"),
        ("train_questions", lambda rows: {"questions": rows}, "is damaged .*a list of records"),
        ("train_questions", lambda rows: rows[0].pop("image_id") and None, "record 1: 'image_id' is missing, expected a whole number"),
        ("test_annotations", lambda rows: rows[2].update(question_type=7), "record 3: 'question_type' is 7, expected a text"),
        ("test_annotations", lambda rows: rows[2].update(answer_type="colour"), r"question 1122: 'answer_type' is 'colour', expected yes/no, number"),
        ("test_annotations", lambda rows: rows[2].update(answers=["yes"]), None),
        ("test_annotations", lambda rows: rows[2].update(answers=[{"answer": 3}]), r"question 1122: expected 'answers' to be records"),
        ("test_questions", lambda rows: rows[1].update(coco_split="../val2014"), r"question 1121: 'coco_split' is '\.\./val2014'"),
        ("train_annotations", lambda rows: [row | {"multiple_choice_answer": "yes"} for row in rows], "two answers are needed"),
    ],
)
def test_damaged_files_are_named(copy, name, edit, message):
    path = copy / f"vqacp_v2_{name}.json"
    if edit is None:
        path.unlink()
    elif isinstance(edit, str):
        path.write_text(edit)
    else:
        _change(copy, path.name, edit)
    if message is None:
        assert len(_build(copy).split("test")) == 24  # answers that are texts already do as well
        return
    with pytest.raises(UserError, match=message) as error:
        _build(copy)
    assert "\n" not in str(error.value) and str(error.value).startswith(vqa_cp.WHERE)


def test_more_questions_than_published_are_refused(folder, monkeypatch):
    monkeypatch.setitem(vqa_cp.RELEASES, "cp_v2", vqa_cp.RELEASES["cp_v2"]._replace(published=(119, 24)))
    with pytest.raises(UserError, match="has 120 questions, but only 119 were published"):
        _build(folder)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (
            "test_annotations",
            lambda rows: rows[1:],
            r"test_questions\.json, question 1120: no answer: vqacp_v2_test_annotations\.json has",
        ),
        ("test_questions", lambda rows: rows[1:], r"vqacp_v2_test_annotations\.json, question 1120: no question: vqacp_v2_test_questions\.json has"),
        ("test_annotations", lambda rows: rows[3].update(image_id=5), "question 1123: another picture: it is about picture 11, .* about picture 5"),
        ("train_questions", lambda rows: [*rows, rows[7]], "question 1007: duplicate id: '1007' is that of .*question 1007"),
        ("train_questions", lambda rows: rows[7].update(question="  "), "question 1007: empty text"),
        ("train_questions", None, r"question 1000: missing file: there is no .*COCO_val2014_000000000001\.jpg \(and 11 more"),
    ],
)
def test_bad_rows_are_named_or_left_out(copy, name, edit, message):
    if edit is None:
        (copy / "val2014" / "COCO_val2014_000000000001.jpg").unlink()
    else:
        _change(copy, f"vqacp_v2_{name}.json", edit)
    with pytest.raises(UserError, match=message):
        _build(copy)
    count = 12 if edit is None else 1
    dataset = _build(copy, on_bad_row="skip")
    assert len(dataset.skipped) == count
    duplicate = count if edit is not None and "duplicate" in message else 0
    assert sum(map(len, dataset.splits.values())) == 144 - count + duplicate


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        vqa_cp.build(Options())
