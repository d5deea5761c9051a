"""Data sets of TFDS: what is read is what TFDS itself decodes, without TensorFlow; splits, groups and recordings; and each mistake in one line."""

from __future__ import annotations

import io
import json
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest

from cimrl_jax.assembly import assemble
from cimrl_jax.config import load
from cimrl_jax.data import columns, recordings, tokenise
from cimrl_jax.data.datasets import tfds
from cimrl_jax.data.datasets.tfds import Options
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from tests import tiny
from tests.data import layouts

library = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed: pip install 'cimrl_jax[tfds]'")
PLACE = {"attribute_features": ("where/place",)}
AUDIO = "tensorflow_datasets.core.features.audio_feature.Audio"


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """TFDS's data_dir."""
    path = tmp_path_factory.mktemp("tfds")
    layouts.tfds(path / "tiny_birds" / "1.2.0")
    return path


@pytest.fixture(scope="module")
def folder(root) -> pathlib.Path:
    return root / "tiny_birds" / "1.2.0"


@pytest.fixture(scope="module")
def oracle(folder) -> dict[str, list[Any]]:
    """The examples as TFDS decodes them."""
    return {name: list(source) for name, source in library.builder_from_directory(folder).as_data_source().items()}


def _build(path: pathlib.Path, **changes: Any) -> Dataset:
    return tfds.build(Options(**changes), path=path)


def _copy(folder: pathlib.Path, to: pathlib.Path, change: Any) -> pathlib.Path:
    """The data set with its features described otherwise."""
    shutil.copytree(folder, to)
    content = json.loads((to / "features.json").read_text())
    change(content["featuresDict"]["features"])
    (to / "features.json").write_text(json.dumps(content))
    return to


def test_what_is_read_is_what_tfds_decodes(folder, oracle):
    inputs = {
        "image_features": ("image", "grey"),
        "text_features": ("caption", "remarks/text"),
        "number_features": ("where/metres", "where/Far_away", "where/box", "ringed"),
    }
    dataset = _build(folder, size=8, **inputs)
    assert dataset.features["numbers"].columns == ("where/metres", "where/Far_away", *(f"where/box[{i}]" for i in range(4)), "ringed")
    assert dataset.features["grey"].shape == (8, 8, 1) and "tensorflow" not in sys.modules
    for split in ("train", "validation", "test"):
        source, examples = dataset.splits[split], oracle[split]
        read = source.load(np.arange(len(source)))["inputs"]
        assert source.label.tolist() == [example["label"] for example in examples]
        for name in ("image", "grey"):
            np.testing.assert_array_equal(read[name], np.stack([example[name] for example in examples]))
        for name, texts in {
            "caption": [example["caption"].decode() for example in examples],
            "remarks_text": [" ".join(text.decode() for text in example["remarks"]["text"]) for example in examples],
        }.items():
            tokeniser = tokenise.of(dataset.features[name])
            np.testing.assert_array_equal(read[name], tokeniser.encode(texts))
        where = [example["where"] for example in examples]
        numbers = [[own["metres"], own["Far_away"], *own["box"], example["ringed"]] for own, example in zip(where, examples, strict=True)]
        np.testing.assert_allclose(read["numbers"], np.array(numbers, np.float32))


def test_pictures_are_decoded_as_they_are_asked_for(folder, oracle):
    found = tfds.read(Options(image_features=("photo",)), folder)
    column = found.columns["photo"]
    assert isinstance(column, columns.Pictures)
    from PIL import Image

    for row in (0, len(oracle["train"]) - 1):
        content: Any = column.files[row]
        assert content.is_file() and str(content) == f"photo of train, record {row}"
        assert content.read_bytes().startswith(b"\xff\xd8")  # still the JPEG file
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content.read_bytes()))), oracle["train"][row]["photo"])


def test_without_names_the_supervised_input_is_read_and_the_licence_told(folder):
    dataset = _build(folder)
    assert set(dataset.features) == {"image"} and dataset.class_names == ("landbird", "waterbird")
    assert dataset.group_names == () and (dataset.splits["train"].group == -1).all()
    assert dataset.notes == "tiny_birds/1.2.0, as TFDS distributes it; licence: CC0, of course"


@pytest.mark.parametrize(
    ("feature", "names"), [("label", ("landbird", "waterbird")), ("where/Far_away", ("not Far away", "Far away")), ("ringed", ("0", "3", "6")),
                           ("species", ("auk", "gull", "teal", "wren"))]
)  # fmt: skip
def test_classes_truth_values_whole_numbers_and_texts_are_labels(folder, oracle, feature, names):
    dataset = _build(folder, label_feature=feature)
    assert dataset.class_names == names
    values = [example["where"]["Far_away"] if feature == "where/Far_away" else example[feature] for example in oracle["train"]]
    said = [names[label] for label in dataset.splits["train"].label]
    plain = {b"auk": "auk", b"gull": "gull", b"teal": "teal", b"wren": "wren", 0: "0", 3: "3", 6: "6"}
    expected = [names[int(value)] if feature in ("label", "where/Far_away") else plain[value] for value in values]
    assert said == expected


def test_groups_are_label_times_attributes_and_independent_in_the_splits_made(folder, oracle):
    dataset = _build(folder, **PLACE)
    assert dataset.attribute_names == ("land", "water") and dataset.group_names[1] == "label=landbird, attribute=water"
    train = dataset.splits["train"]
    assert train.group.tolist() == [2 * example["label"] + example["where"]["place"] for example in oracle["train"]]
    counts = {name: np.bincount(source.group, minlength=4).reshape(2, 2) for name, source in dataset.splits.items()}
    assert counts["train"].tolist() == [[18, 6], [6, 18]] and counts["train_randomised"].tolist() == [[24, 24], [24, 24]]
    test = counts["test"]
    assert (test[0] == test[1]).all() and "test_balanced" not in counts  # there it says nothing already
    turned = _build(folder, train="test", test="train", **PLACE).splits
    assert np.bincount(turned["test_balanced"].group, minlength=4).tolist() == [6, 6, 6, 6]
    crossed = _build(folder, attribute_features=("where/place", "where/Far_away"))
    assert crossed.attribute_names == ("land, not Far away", "land, Far away", "water, not Far away", "water, Far away")
    both = [4 * example["label"] + 2 * example["where"]["place"] + example["where"]["Far_away"] for example in oracle["train"]]
    assert crossed.splits["train"].group.tolist() == both


def test_a_feature_may_be_the_group(folder, oracle):
    dataset = _build(folder, group_feature="species")
    assert dataset.group_names == ("auk", "gull", "teal", "wren") and not dataset.attribute_names
    said = [dataset.group_names[group].encode() for group in dataset.splits["train"].group]
    assert said == [example["species"] for example in oracle["train"]]


@pytest.mark.parametrize(
    ("changes", "sizes", "note"),
    [
        ({"train": "train[:50%]", "validation": "train[75%:]"}, (24, 12, 16), ""),
        ({"train": "train+validation", "validation": "test[:4]", "test": "test[4:]"}, (56, 4, 12), ""),
        ({"train": "train[:40]", "validation": "train[40:]", "test": "validation"}, (40, 8, 8), ""),
    ],
)
def test_splits_are_written_as_for_tfds(folder, changes, sizes, note):
    dataset = _build(folder, **changes)
    assert tuple(len(dataset.splits[name]) for name in ("train", "validation", "test")) == sizes
    assert "held out" not in dataset.notes


@pytest.mark.parametrize(
    ("kept", "sizes", "note"),
    [
        (("train", "test"), (43, 5, 16), "validation held out of train: 0.1 of its rows each, drawn by data_seed"),
        (("train", "validation"), (43, 5, 8), "test is the official validation split; validation held out of train"),
        (("train",), (38, 5, 5), "validation and test held out of train"),
    ],
)
def test_what_a_data_set_lacks_is_held_out_of_training(folder, tmp_path, kept, sizes, note):
    path = tmp_path / "less"
    shutil.copytree(folder, path)
    content = json.loads((path / "dataset_info.json").read_text())
    content["splits"] = [split for split in content["splits"] if split["name"] in kept]
    (path / "dataset_info.json").write_text(json.dumps(content))
    dataset, again, other = (_build(path, data_seed=seed, number_features=("where/metres",), **PLACE) for seed in (0, 0, 1))
    assert tuple(len(dataset.splits[name]) for name in ("train", "validation", "test")) == sizes
    assert note in dataset.notes.replace(" and validation held", "; validation held")

    def metres(own: Dataset, name: str) -> set[float]:
        source = own.splits[name]
        return set(source.load(np.arange(len(source)))["inputs"]["numbers"][:, 0].tolist())

    assert metres(dataset, "validation") == metres(again, "validation") != metres(other, "validation")
    held = [name for name in ("train", "validation", "test") if name != "test" or "test held" in note]
    assert sum(len(metres(dataset, name)) for name in held) == 48  # each training row is in one of them
    share = np.bincount(dataset.splits["validation"].group, minlength=4)
    assert np.abs(share - 5 * np.array([18, 6, 6, 18]) / 48).max() < 1.5


def test_rows_without_a_class_are_refused_or_left_out(folder):
    with pytest.raises(UserError, match=r"data set 'tfds': unlabelled, record 0: unknown label: label is -1: no class \(and 7 more bad rows\)"):
        _build(folder, train="train+validation", validation="unlabelled")
    dataset = _build(folder, train="train+unlabelled", on_bad_row="skip", **PLACE)
    assert len(dataset.splits["train"]) == 48 and len(dataset.skipped) == 8
    assert np.bincount(dataset.splits["train_randomised"].group).tolist() == [24, 24, 24, 24]


@pytest.mark.parametrize(("lazy", "rate", "option"), [(False, "8000", 0), (False, None, 8000), (True, "8000", 0)])
def test_recordings_are_heard_without_tensorflow(folder, oracle, tmp_path, lazy, rate, option):
    """The features of TFDS that are recordings cannot be made without TensorFlow, so that the description is written here as TFDS writes it."""
    soundfile = pytest.importorskip("soundfile", reason="recordings are read by soundfile: pip install 'cimrl_jax[data]'")
    node = {"shape": {"dimensions": ["-1"]}, "dtype": "int64", "encoding": "NONE", **({"sampleRate": rate} if rate else {}), "lazyDecode": lazy}
    name = "image/name" if lazy else "call"  # what is no sound file stands for one that cannot be decoded
    path = _copy(folder, tmp_path / "audio", lambda features: features.update({name: {"pythonClassName": AUDIO, "audio": node}}))
    chosen = Options(audio_features=(name,), audio_rate=option, recording=recordings.Options(seconds=0.1))
    column = tfds.read(chosen, path).columns[name.replace("/", "_")]
    assert isinstance(column, columns.Recordings)
    content: Any = column.files[0]
    if lazy:
        assert content.read_bytes() == oracle["train"][0]["image/name"]
        with pytest.raises(UserError, match="undecodable recording: image/name of train, record 0"):
            tfds.build(chosen, path=path)
        return
    samples, found = soundfile.read(io.BytesIO(content.read_bytes()), dtype="int16")
    assert found == 8000
    np.testing.assert_array_equal(samples, oracle["train"][0][name])
    dataset = tfds.build(chosen, path=path)
    assert dataset.features["call"].kind == "spectrogram" and dataset.features["call"].shape == (10, 64)


@pytest.mark.parametrize(("samples", "said"), [([0.5, -1.0, 0.25], [16384, -32767, 8192]), ([[1, 2], [3, -4]], [[1, 2], [3, -4]])])
def test_fractions_of_full_scale_and_two_channels_are_recordings_too(samples, said):
    soundfile = pytest.importorskip("soundfile", reason="recordings are read by soundfile: pip install 'cimrl_jax[data]'")
    found, rate = soundfile.read(io.BytesIO(tfds._recording(np.array(samples), rate=44100)), dtype="int16")
    assert rate == 44100 and found.tolist() == said


@pytest.mark.parametrize("samples", [np.array([40000]), np.array([1.5]), np.array([np.nan])])
def test_samples_beyond_full_scale_are_refused(samples):
    with pytest.raises(UserError, match="beyond"):
        tfds._recording(samples, rate=8000)


def test_a_data_set_is_found_by_name_configuration_and_version(root, folder, tmp_path):
    for place in ("tiny_birds/1.10.0", "tiny_birds/1.9.0", "many/a/1.0.0", "many/b/1.0.0", "one/only/2.0.0"):
        shutil.copytree(folder, tmp_path / place)
    for name, place in {
        "tiny_birds": "tiny_birds/1.10.0",
        "tiny_birds:1.9.0": "tiny_birds/1.9.0",
        "tiny_birds:1.*.*": "tiny_birds/1.10.0",
        "many/b": "many/b/1.0.0",
        "one": "one/only/2.0.0",
    }.items():
        assert tfds.tfds_records.locate(name, tmp_path, download=False, where="x") == tmp_path / place
    with pytest.raises(UserError, match="has the configurations a, b; name one, as in --data.dataset many/a"):
        _build(tmp_path, dataset="many")
    assert len(_build(root, dataset="tiny_birds").splits["train"]) == 48


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_feature": "lable"}, "has no feature 'lable', which data.label_feature names; it has call \\(Tensor\\), caption \\(Text\\), "),
        ({"image_features": ("caption",)}, "caption \\(Text\\), which data.image_features names, is object of the shape \\(\\); expected uint8 of"),
        ({"text_features": ("image",)}, "image \\(Image\\), which data.text_features names, is no text"),
        ({"audio_features": ("call",)}, "call \\(Tensor\\), which data.audio_features names, does not say its sample rate; set --data.audio-rate"),
        ({"audio_features": ("species",)}, "is no recording"),
        ({"number_features": ("call",)}, "is not a fixed count of numbers"),
        ({"number_features": ("remarks/score",)}, "is a list in every example"),
        ({"text_features": ("caption", "caption")}, "caption, which data.text_features names, is there twice"),
        ({"number_features": ("label",)}, "label, which data.number_features names, is what is to be told"),
        ({"label_feature": "where/metres"}, "where/metres \\(Tensor\\) cannot tell rows apart; expected one class"),
        ({"group_feature": "where/place"}, "group 'land' of where/place has rows of 'landbird' and 'waterbird', but a group has one label"),
        ({"group_feature": "species", **PLACE}, "data.group_feature and data.attribute_features are both given"),
        ({"attribute_features": ("label",)}, "label is the label, and data.attribute_features names it too"),
        ({"train": "training"}, "data.train is 'training', but tiny_birds/1.2.0 has the splits train, validation, test, unlabelled"),
        ({"test": "train[50%"}, "data.test is 'train\\[50%', but tiny_birds/1.2.0 has the splits"),
        ({"validation": "train[:25%]"}, "data.train \\(train\\) and data.validation \\(train\\[:25%\\]\\) have 12 records in common"),
    ],
)  # fmt: skip
def test_each_mistake_is_told_in_one_line(folder, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        _build(folder, **changes)
    assert str(caught.value).startswith("data set 'tfds': ") and "\n" not in str(caught.value)


def test_what_is_not_there_is_told_with_what_to_do(root, folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="name one by --data.dataset .* or set data.path to a folder with a data set's dataset_info.json"):
        tfds.build(Options())
    with pytest.raises(UserError, match=r"tiny_birdz is not prepared in .*tfds.builder\('tiny_birdz', data_dir=.*file_format='array_record'\)"):
        _build(root, dataset="tiny_birdz")
    with pytest.raises(UserError, match="expected a name as TFDS writes it"):
        _build(root, dataset="tiny birds")
    with pytest.raises(UserError, match=r"TFDS cannot prepare tiny_birdz in .* \(DatasetNotFoundError: .*; prepare it by hand"):
        _build(root, dataset="tiny_birdz", download=True)
    unnamed = _copy(folder, tmp_path / "unnamed", lambda features: None)
    content = json.loads((unnamed / "dataset_info.json").read_text())
    del content["supervisedKeys"]
    (unnamed / "dataset_info.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"name the inputs of tiny_birds/1.2.0 by data.image_features, .* it has .*caption \(Text\)"):
        _build(unnamed)
    (unnamed / "dataset_info.json").write_text(json.dumps(content | {"fileFormat": "tfrecord"}))
    with pytest.raises(UserError, match="holds tfrecord files, which cannot be read by row; prepare tiny_birds/1.2.0 again"):
        _build(unnamed, image_features=("image",))
    (unnamed / "features.json").write_text("{")
    with pytest.raises(UserError, match="cannot read dataset_info.json and features.json in .*prepare the data set again"):
        _build(unnamed)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"it needs TFDS, which is not installed; run: pip install 'cimrl_jax\[tfds\]'"):
        _build(folder)


def test_a_data_set_is_prepared_if_that_is_wanted(tmp_path):
    class OddNumbers(library.core.GeneratorBasedBuilder):
        VERSION = library.core.Version("1.0.0")
        code_path = None  # beside it TFDS looks for checksums of downloads, with a package that it may lack

        def _info(self):
            return library.core.DatasetInfo(
                builder=self, features=library.features.FeaturesDict({"number": library.features.Scalar(np.float32), "odd": np.bool_})
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(40), "test": self._generate_examples(10)}

        def _generate_examples(self, count):
            for number in range(count):
                yield number, {"number": number, "odd": number % 2 == 1}

    chosen = {"dataset": OddNumbers.name, "number_features": ("number",), "label_feature": "odd"}
    with pytest.raises(UserError, match="odd_numbers is not prepared in"):
        _build(tmp_path, **chosen)
    for download in (True, False):  # and then it is there
        test = _build(tmp_path, download=download, **chosen).splits["test"]
        numbers = test.load(np.arange(10))["inputs"]["numbers"][:, 0]
        assert sorted(numbers) == list(range(10)) and (test.label == numbers % 2).all()


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_damaged_records_are_told(folder, tmp_path, damage):
    path = tmp_path / "damaged"
    shutil.copytree(folder, path)
    file = next(path.glob("*-train.array_record*"))
    file.write_bytes(file.read_bytes()[:2000]) if damage == "cut" else file.unlink()
    with pytest.raises(UserError, match=r"data set 'tfds': (cannot read train|data.train is 'train')") as caught:
        _build(path)
    assert "\n" not in str(caught.value)


def test_a_run_trains_on_it(root, tmp_path):
    data = {"name": "tfds", "path": str(root), "dataset": "tiny_birds", "text_features": "caption"}
    model = {"dim": 8, "heads": 2, "fusion_layers": 1, "causal_layers": 0, "caption": {"encoder": "text_transformer", "depth": 0}}
    program = assemble(load(tiny.STUDY | {"data": data, "model": model, "seeds": (0,)}, {"workdir": str(tmp_path)})).programs[0]
    trained = tiny.train(program, tmp_path)
    assert set(trained.selected) == {tiny.RULE}
