"""The package's data sets as builders of TFDS: what TFDS reads back, without TensorFlow, is the data set."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

from cimrl_jax.data import tokenise
from cimrl_jax.data.datasets import tfds as any_of_tfds
from cimrl_jax.data.source import Dataset
from cimrl_jax.errors import UserError
from cimrl_jax.options import component, known, make_options
from tests.data import layouts

tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed: pip install 'cimrl_jax[tfds]'")
builders = pytest.importorskip("cimrl_jax.data.tfds_builders")
SMALL = {"train": 24, "validation": 6, "test": 10}
CASES: dict[str, dict[str, Any]] = {
    "synthetic": {"slots": 3, "width": 4, "noise": 0.25, **SMALL},
    "digits": {**SMALL},
    "waterbirds": {"size": 8, "length": 3},  # pictures and words with regions
    "celeba": {"size": 8, "on_bad_row": "skip"},  # texts that are absent
}


@pytest.fixture(scope="module", params=CASES)
def prepared(request, tmp_path_factory) -> tuple[Any, Dataset]:
    """(a builder that has prepared a data set, the data set)."""
    name, options = request.param, CASES[request.param]
    given: dict[str, Any] = {}
    if hasattr(layouts, name):
        given["path"] = tmp_path_factory.mktemp(name)
        getattr(layouts, name)(given["path"])
    builder = tfds.builder(f"cimrl_{name}", options=options, data_dir=tmp_path_factory.mktemp("records"), **given)
    builder.download_and_prepare()
    module = component("data", name)
    return builder, module.build(make_options(module.Options, options, "data"), **given)


def test_what_is_read_back_is_the_data_set(prepared):
    builder, dataset = prepared
    read = builder.as_data_source()
    assert "tensorflow" not in sys.modules
    assert {name: len(source) for name, source in read.items()} == {name: len(source) for name, source in dataset.splits.items()}
    for name, source in dataset.splits.items():
        examples, records = list(read[name]), source.load(np.arange(len(source)))
        assert [example["label"] for example in examples] == source.label.tolist()
        assert [example["group"] for example in examples] == source.group.tolist()
        for modality, feature in dataset.features.items():
            values = np.stack([example[modality] for example in examples])
            np.testing.assert_array_equal(values, records["inputs"][modality])
            assert values.dtype == feature.dtype
            assert [example["present"][modality] for example in examples] == records["present"][modality].tolist()
            if feature.kind == "text":
                said = [tokenise.of(feature).decode(ids) for ids in records["inputs"][modality]]
                assert [example[f"{modality}_words"].decode() for example in examples] == said
        for target, masks in (source.regions or {}).items():
            for modality, mask in masks.items():
                np.testing.assert_array_equal(np.stack([example["regions"][target][modality] for example in examples]), mask[np.arange(len(source))])


def test_the_rest_of_the_data_set_is_in_the_metadata(prepared):
    builder, dataset = prepared
    about = builder.info.metadata
    assert builder.info.features["label"].names == list(dataset.class_names)
    for field in ("name", "notes", "class_names", "group_names", "attribute_names", "group_attribute", "synonyms", "skipped"):
        assert about[field] == json.loads(json.dumps(getattr(dataset, field)))
    assert about["features"] == json.loads(json.dumps({name: dataclasses.asdict(feature) for name, feature in dataset.features.items()}))


def test_what_is_prepared_is_read_without_the_files_it_was_made_of(prepared):
    builder, dataset = prepared
    options = builder.builder_config.options
    again = tfds.builder(builder.name, options=options, data_dir=builder.data_dir_root)
    assert again.data_dir == builder.data_dir and "dataset" not in vars(again)
    again.download_and_prepare()
    assert len(again.as_data_source("train")) == len(dataset.splits["train"]) and dict(again.info.metadata) == dict(builder.info.metadata)
    alone = tfds.builder_from_directory(builder.data_dir)
    assert list(alone.as_data_source("test"))[0]["label"] == dataset.splits["test"].label[0]


def test_every_data_set_has_a_builder_known_by_name():
    assert sorted(builders.BUILDERS) == [f"cimrl_{name}" for name in known("data")]
    assert all(tfds.builder_cls(name) is builder for name, builder in builders.BUILDERS.items())


def test_options_are_a_configuration_and_defaults_are_another(tmp_path):
    def place(**given: Any) -> pathlib.PurePath:
        return pathlib.PurePath(tfds.builder("cimrl_synthetic", data_dir=tmp_path, **given).data_dir).relative_to(tmp_path / "cimrl_synthetic")

    assert place() == place(options={}) == place(config="default") == pathlib.PurePath("default/1.0.0")
    usual = {name: value for name, value in dataclasses.asdict(component("data", "synthetic").Options()).items() if name == "width"}
    assert place(options=usual) == place()
    one, same, other = place(options=SMALL), place(options={**dict(reversed(SMALL.items())), "train": "24"}), place(options={**SMALL, "train": 25})
    assert one == same != other and one != place()
    config = tfds.builder("cimrl_synthetic", data_dir=tmp_path, options=SMALL).builder_config
    assert json.loads(config.description) == SMALL == config.options


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("waterbirds", {}, "data set 'waterbirds': it reads files; set data.path"),
        ("waterbirds", {"path": "/nowhere"}, "cannot read /nowhere/metadata.csv"),
        ("synthetic", {"path": "/nowhere"}, "reads no files; leave"),
        ("synthetic", {"options": {"trian": 3}}, "options.trian: unknown key; did you mean 'options.train'"),
        ("synthetic", {"options": {"train": 25}, "config": "default"}, "options and config are both given"),
    ],
)
def test_mistakes_are_told(tmp_path, name, given, message):
    with pytest.raises(UserError, match=message) as caught:
        tfds.builder(f"cimrl_{name}", data_dir=tmp_path, **given)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_picture_that_cannot_be_read_leaves_nothing_half_written(tmp_path):
    layouts.waterbirds(path := tmp_path / "waterbirds")
    next(path.glob("*/*.jpg")).write_bytes(b"no picture")
    with pytest.raises(UserError, match="undecodable picture"):
        tfds.builder("cimrl_waterbirds", path=path, data_dir=tmp_path / "records").download_and_prepare()
    assert not list((tmp_path / "records").rglob("*.array_record*"))


def test_without_tfds_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(UserError, match=r"cimrl_jax.data.tfds_builders: it needs TFDS, which is not installed; run: pip install 'cimrl_jax\[tfds\]'"):
        builders.register()


def test_the_data_set_tfds_reads_them_too(prepared):
    builder, dataset = prepared
    texts = tuple(f"{name}_words" for name, feature in dataset.features.items() if feature.kind == "text")
    images = tuple(name for name, feature in dataset.features.items() if feature.kind == "image")
    numbers = tuple(name for name, feature in dataset.features.items() if feature.kind == "slots")
    options = any_of_tfds.Options(text_features=texts, image_features=images, number_features=numbers, group_feature="group")
    found = any_of_tfds.read(options, pathlib.Path(builder.data_dir))
    assert found.class_names == dataset.class_names and found.group_names == dataset.group_names and found.group is not None
    for name, rows in found.splits.items():
        assert found.label[rows].tolist() == dataset.splits[name].label.tolist()
        assert found.group[rows].tolist() == dataset.splits[name].group.tolist()


def test_what_ten_people_answered_is_not_handed_on(tmp_path):
    layouts.vqa_cp(tmp_path / "files")
    builder = tfds.builder("cimrl_vqa_cp", path=tmp_path / "files", options={"size": 8}, data_dir=tmp_path / "records")
    builder.download_and_prepare()
    assert "answers" not in builder.info.metadata and len(builder.as_data_source("test")) > 0
