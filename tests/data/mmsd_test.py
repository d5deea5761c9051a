"""MMSD, MMSD2.0 and DMSD-CL: the published counts where the files are, and on hand-made files the readers, the balanced splits and the refusals."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import tokenise
from cimrl_jax.data.datasets import mmsd
from cimrl_jax.data.datasets.mmsd import Options
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import make_options
from cimrl_jax.types import Expected

REAL = pathlib.Path(os.environ.get("CIMRL_DATA", pathlib.Path(__file__).parents[3] / "shared" / "data")) / "mmsd"
real = pytest.mark.skipif(not REAL.exists(), reason=f"no real files at {REAL}; set CIMRL_DATA to a folder that holds mmsd/")
COUNTS = {(0, 0): 30, (0, 1): 10, (1, 0): 12, (1, 1): 28}
"""Hand-made training posts by label and '#'."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("mmsd")
    for name in ("mmsd1", "mmsd2", "dmsd_cl"):
        (path / name).mkdir()

    def posts(first: int, counts: dict[tuple[int, int], int]) -> list[tuple[str, str, int]]:
        kinds = [kind for kind, n in counts.items() for _ in range(n)]
        return [
            (str(first + i), f"post {i} don 't {'# tag' if mark else 'tag'} {'<num>' if label else i} emoji_{i % 3}", label)
            for i, (label, mark) in enumerate(kinds)
        ]

    train, valid, test = posts(1000, COUNTS), posts(2000, {kind: 4 for kind in COUNTS}), posts(3000, {(0, 0): 20, (0, 1): 12, (1, 0): 8, (1, 1): 16})
    telling = [("900", "so much # irony here", 1), ("901", "see <url> now", 0), ("902", 'ironically "quoted"\n', 0)]
    (path / "mmsd1" / "train.txt").write_text("".join(f"{list(row)!r}\n" for row in train + telling))
    for name, rows in (("valid2", valid), ("test2", test)):
        (path / "mmsd1" / f"{name}.txt").write_text("".join(f"{[*row[:2], 1 - row[2], row[2]]!r}\n" for row in rows))
    words = [[number, "dog", "tree", f"w{int(number) % 7}", "sky", "blue"] for number, *_ in train + valid + test if number != "3001"]
    (path / "mmsd1" / "extract_all").write_text("".join(f"{row!r}\n" for row in words))
    for name, rows in (("train", train), ("valid", valid), ("test", test)):
        content = [{"image_id": int(number), "text": text.replace("# ", ""), "label": 1 - label} for number, text, label in rows]
        (path / "mmsd2" / f"{name}.json").write_text(json.dumps(content))
    (path / "dmsd_cl" / "ood_all.txt").write_text("[3000,well, [that's] fun, isn't it,1]\n[3002,fail,0]\n")
    return path


def _build(folder: pathlib.Path, **changes: Any) -> Dataset:
    return mmsd.build(Options(**changes), path=folder)


def _split(dataset: Dataset, name: str) -> ArraySource:
    source = dataset.split(name)
    assert isinstance(source, ArraySource)
    return source


def _counts(dataset: Dataset, name: str) -> list[int]:
    return np.bincount(_split(dataset, name).group, minlength=4).tolist()


def _texts(dataset: Dataset, name: str, modality: str = "text") -> list[str]:
    vocabulary = np.array(dataset.features[modality].vocabulary)
    return [" ".join(vocabulary[row[row > 0]]) for row in _split(dataset, name).inputs[modality]]


def test_labels_and_marks_are_read_and_telling_posts_left_out(folder):
    dataset = _build(folder)
    assert _counts(dataset, "train") == [31, 10, 12, 28]  # 902 stays: "ironically" is not "ironic"
    assert _counts(dataset, "validation") == [4, 4, 4, 4] and _counts(dataset, "test") == [20, 12, 8, 16]
    assert _counts(dataset, "test_v2") == [24, 0, 32, 0] and _counts(dataset, "test_ood") == [1, 0, 1, 0]
    assert dataset.group_names[3] == "label=sarcastic, attribute=#"
    assert any(text.startswith("post 0 don ' t tag 0 emoji_0") for text in _texts(dataset, "train"))


def test_the_human_label_counts(folder):
    assert [post.label for post in mmsd.read_lists(folder / "mmsd1" / "test2.txt", columns=4)] == [0] * 32 + [1] * 24


def test_training_posts_of_one_kind_cannot_be_balanced(folder):
    with pytest.raises(UserError, match="with and without a '#'"):
        _build(folder, train_on="mmsd2")  # the hand-made one has no '#' at all


def test_balanced_and_flipped_posts_are_posts_of_the_test(folder):
    dataset = _build(folder)
    assert _counts(dataset, "test_balanced") == [12, 12, 8, 8]
    share = [10 / 41, 28 / 40]
    flipped = _counts(dataset, "test_flipped")
    assert abs(flipped[1] / sum(flipped[:2]) - share[1]) < 0.05 and abs(flipped[3] / sum(flipped[2:]) - share[0]) < 0.05
    known = {row.tobytes() for row in _split(dataset, "test").inputs["text"]}
    for name in ("test_balanced", "test_flipped"):
        rows = [row.tobytes() for row in _split(dataset, name).inputs["text"]]
        assert set(rows) <= known and len(set(rows)) == len(rows)


def test_randomised_training_posts_are_as_many_as_can_be(folder):
    dataset = _build(folder)
    counts, share = np.array(_counts(dataset, "train_randomised")).reshape(2, 2), 38 / 81
    assert np.abs(counts[:, 1] - share * counts.sum(1)).max() <= 1
    full = np.array(_counts(dataset, "train")).reshape(2, 2)
    assert (counts <= full).all() and (np.abs(counts - full).min(1) == 0).all()
    known = {row.tobytes() for row in _split(dataset, "train").inputs["text"]}
    assert {row.tobytes() for row in _split(dataset, "train_randomised").inputs["text"]} <= known


def test_training_posts_can_be_capped_without_shifting_the_groups(folder):
    whole, capped = _build(folder), _build(folder, train=40)
    for name in ("train", "train_randomised"):
        full, part = np.array(_counts(whole, name)), np.array(_counts(capped, name))
        assert part.sum() == 40 and np.abs(part - full * 40 / full.sum()).max() <= 1


def test_words_are_normalised_as_asked():
    text = "# Fun I don't don 't pay 20 <num> #Tag emoji_12 7th"
    assert mmsd.words_of(text, Options()) == ["#", "fun", "i", "don", "'", "t", "don", "'", "t", "pay", "20", "<num>", "#tag", "emoji_12", "7th"]
    assert mmsd.words_of(text, Options(normalise_numbers=True))[10:12] == ["<num>", "<num>"]
    assert mmsd.words_of(text, Options(mask_hashtags=True))[:2] == ["fun", "i"] and "tag" in mmsd.words_of(text, Options(mask_hashtags=True))
    assert "emoji_12" not in mmsd.words_of(text, Options(mask_emoji=True))


def test_number_tokens_give_labels_away_until_normalised(folder):
    for normalise, told in ((False, True), (True, False)):
        dataset = _build(folder, normalise_numbers=normalise)
        source = _split(dataset, "test")
        has = np.array(["<num>" in text for text in _texts(dataset, "test")])
        assert (has == source.label).all() == told


def test_attribute_words_are_absent_where_there_are_none(folder):
    dataset = _build(folder)
    present = _split(dataset, "test").present["attributes"]
    assert present.tolist() == [i != 1 for i in range(56)]
    assert (_split(dataset, "test").inputs["attributes"][1] == 0).all()
    assert _texts(dataset, "test", "attributes")[0] == "dog tree w4 sky blue"  # 3000 % 7
    # 3001 once among the test posts of either kind, and 902.
    assert "3 of" in dataset.notes


def test_the_shortcut_is_where_the_hashtags_are(folder):
    dataset = _build(folder)
    for name in dataset.splits:
        source = _split(dataset, name)
        assert source.regions is not None
        mask = source.regions["shortcut"]["text"]
        words = np.array(dataset.features["text"].vocabulary)[source.inputs["text"]]
        assert ((words == "#") == mask).all()
        assert (mask.any(1) == source.group % 2).all()
    hidden = _split(_build(folder, mask_hashtags=True), "train")
    assert hidden.regions is not None and not hidden.regions["shortcut"]["text"].any()
    assert _counts(_build(folder, mask_hashtags=True), "train") == [31, 10, 12, 28]


def test_rewritten_posts_are_matched_to_those_of_the_test_by_their_numbers(folder):
    keys = _build(folder).keys
    assert list(keys) == ["test", "test_v2", "test_ood"]
    assert (keys["test"] == keys["test_v2"]).all() and len(set(keys["test"].tolist())) == 56
    assert keys["test_ood"].tolist() == keys["test"][[0, 2]].tolist()  # 3000 and 3002


def test_unquoted_lines_keep_commas_and_brackets(folder):
    posts = mmsd.read_unquoted(folder / "dmsd_cl" / "ood_all.txt")
    assert posts == [mmsd.Post("3000", "well, [that's] fun, isn't it", 1), mmsd.Post("3002", "fail", 0)]


def test_later_data_sets_may_be_absent(folder, tmp_path):
    shutil.copytree(folder / "mmsd1", tmp_path / "mmsd1")
    assert not {"test_v2", "test_ood"} & set(_build(tmp_path).splits)
    with pytest.raises(UserError, match=r"cannot read .*mmsd2.*train\.json"):
        _build(tmp_path, train_on="mmsd2")


def test_without_a_path_it_says_what_to_set():
    with pytest.raises(UserError, match="set data.path"):
        mmsd.build(Options())


@pytest.mark.parametrize(
    ("changes", "message"), [({"train_on": "mmsd3"}, "train_on.*mmsd2"), ({"train": -1}, "train.*at least 0"), ({"vocabulary": 2}, "vocabulary")]
)
def test_bad_options_are_refused(folder, changes, message):
    with pytest.raises(UserError, match=message):
        mmsd.build(make_options(Options, dataclasses.asdict(Options()) | changes, "data"), path=folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("mmsd1/train.txt", None, r"cannot read .*train\.txt"),
        ("mmsd1/train.txt", "['1', 'a', 1]\n['2', 'a', __import__('os')]\n", r"train\.txt, line 2: expected lists \[number, text, label\]"),
        ("mmsd1/train.txt", "['1', 'a']\n", "line 1: .*not a list of 3"),
        ("mmsd1/train.txt", "['1', 'a', 2]\n", "line 1: .*the label 2"),
        ("mmsd1/test2.txt", "['1', 'a', 1]\n", "line 1: .*human label"),
        ("mmsd1/extract_all", "['1', 'a']\n", "line 1: .*a number and 5 words"),
        ("mmsd2/test.json", "[{}]", r"test\.json is no JSON list"),
        ("mmsd2/test.json", "{", r"test\.json is no JSON list"),
        ("dmsd_cl/ood_all.txt", "3000,fun,1\n", r"line 1: expected \[number,text,label\]"),
    ],
)
def test_bad_files_are_named(folder, tmp_path, name, content, message):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    if content is not None:
        (tmp_path / "copy" / name).write_text(content)
    with pytest.raises(UserError, match=message):
        _build(tmp_path / "copy")


@real
def test_the_published_counts():
    dataset = _build(REAL)
    assert {name: len(dataset.split(name)) for name in ("train", "validation", "test", "test_v2", "test_ood")} == {
        "train": 19816, "validation": 2410, "test": 2409, "test_v2": 2409, "test_ood": 400,
    }  # fmt: skip
    assert _counts(dataset, "train") == [7439, 3735, 2927, 5715]
    assert np.isin(dataset.keys["test_ood"], dataset.keys["test"]).all() and len(np.unique(dataset.keys["test_ood"])) == 400
    assert int(_split(dataset, "test_v2").label.sum()) == 1037 and int(_split(dataset, "test_ood").label.sum()) == 158
    assert all(source.present["attributes"].all() for source in dataset.splits.values() if isinstance(source, ArraySource))
    second = _build(REAL, train_on="mmsd2")
    assert _counts(second, "train") == [9269, 971, 8518, 1058]
    assert len(second.split("validation")) == 2410 and int(_split(second, "validation").label.sum()) == 1042
    assert len(mmsd.read_lists(REAL / "mmsd1" / "train.txt", columns=3)) == 29040


@real
def test_number_tokens_stand_in_sarcastic_training_posts_only():
    posts = [post for post in mmsd.keep(mmsd.read_lists(REAL / "mmsd1" / "train.txt", columns=3)) if "<num>" in post.text]
    assert len(posts) == 404 and all(post.label for post in posts)


def test_both_texts_are_made_by_their_checkpoints_tokenisers(folder, tmp_path):
    pytest.importorskip("transformers", reason="checkpoints' tokenisers are read by transformers: pip install 'cimrl_jax[text]'")
    checkpoint = str(pytest.importorskip("tests.tokenisers").bytes_of(tmp_path))
    expected = {"text": Expected(tokeniser=checkpoint, length=60), "attributes": Expected(tokeniser=checkpoint, length=8)}
    plain, pieces = _build(folder), mmsd.build(Options(), path=folder, expected=expected)
    assert pieces.features["attributes"].shape == (8,) and pieces.features["text"].shape[0] <= 60
    reader = tokenise.of(pieces.features["text"])
    for name in plain.splits:
        one, other = _split(plain, name), _split(pieces, name)
        assert (one.group == other.group).all() and (one.present["attributes"] == other.present["attributes"]).all()
        assert one.regions is not None and other.regions is not None
        marks, again = one.regions["shortcut"]["text"], other.regions["shortcut"]["text"]
        assert (marks.any(1) == again.any(1)).all()
        for mask, ids in zip(again, other.inputs["text"], strict=True):
            assert set(reader.decode(np.where(mask, ids, 0)).split()) <= {"#"}


@pytest.fixture
def shown(folder, tmp_path) -> pathlib.Path:
    """The posts with pictures, but for those of 3002 and 1000."""
    layouts = pytest.importorskip("tests.data.layouts")
    pytest.importorskip("PIL.Image")
    shutil.copytree(folder, path := tmp_path / "shown")
    for number in (*range(1000, 1080), 902, *range(2000, 2016), *range(3000, 3056)):
        if number not in (3002, 1000):
            layouts.picture(path / "dataset_image" / f"{number}.jpg", number, width=12, height=10)
    return path


@pytest.mark.parametrize("changes", [{}, {"train_on": "mmsd1", "train": 40, "mask_emoji": True}])
def test_with_pictures_all_else_stays_as_it_is(folder, shown, changes):
    plain, whole = _build(folder, **changes), mmsd.build(Options(size=8, **changes), path=shown)
    assert {name: feature for name, feature in whole.features.items() if name != "image"} == plain.features
    assert whole.features["image"].shape == (8, 8, 3) and set(whole.splits) == set(plain.splits)
    assert (whole.group_names, whole.attribute_names, whole.class_names) == (plain.group_names, plain.attribute_names, plain.class_names)
    for name, source in whole.splits.items():
        own, rows = _split(plain, name), np.arange(len(source))
        assert (source.label == own.label).all() and (source.group == own.group).all()
        records = source.load(rows)
        for modality, values in own.inputs.items():
            assert (records["inputs"][modality] == values).all() and (records["present"][modality] == own.present[modality]).all()
        assert source.regions is not None and own.regions is not None
        assert (source.regions["shortcut"]["text"][rows] == np.asarray(own.regions["shortcut"]["text"])).all()
    assert whole.keys.keys() == plain.keys.keys() and all((whole.keys[name] == plain.keys[name]).all() for name in plain.keys)


def test_a_post_has_its_own_picture_and_without_one_it_stays(shown):
    from PIL import Image

    dataset = mmsd.build(Options(size=10), path=shown)
    records = dataset.split("test").load(np.arange(56))
    present = records["present"]["image"]
    assert present.tolist() == [number != 3002 for number in range(3000, 3056)] and not records["inputs"]["image"][2].any()
    for number in (3000, 3055):
        expected = np.asarray(Image.open(shown / "dataset_image" / f"{number}.jpg"))[:, 1:-1]
        assert np.abs(records["inputs"]["image"][number - 3000].astype(int) - expected).max() <= 2
    # 1000 in training, 3002 among the test posts of all three kinds.
    assert "image is absent in 4 of" in dataset.notes and not dataset.skipped


def test_pictures_may_be_demanded_or_left_alone(folder, shown):
    assert "image" not in mmsd.build(Options(pictures="no"), path=shown).features
    with pytest.raises(UserError, match="pictures is yes, but .* has no folder dataset_image; .*--data.pictures no"):
        _build(folder, pictures="yes")


def test_pictures_that_cannot_be_read_are_named(shown):
    (shown / "dataset_image" / "1001.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"train of mmsd1, post 1001: undecodable picture: .*1001\.jpg"):
        mmsd.build(Options(size=8), path=shown)
    dataset = mmsd.build(Options(size=8, on_bad_row="skip"), path=shown)
    assert len(dataset.split("train")) == 80 and len(dataset.skipped) == 1


def test_fewer_posts_than_published_are_said_and_more_refused(folder, tmp_path):
    assert "train has 81 posts of 19816 as published" in _build(folder).notes and "test_ood has 2 posts of 400 as published" in _build(folder).notes
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "dmsd_cl" / "ood_all.txt").write_text("".join(f"[{number},fun,1]\n" for number in range(401)))
    with pytest.raises(UserError, match="test_ood has 401 posts of 400 as published"):
        _build(tmp_path / "copy")
