"""Every file in data/datasets keeps the promises of `Dataset`. One that needs its authors' files is skipped, with that reason."""

from __future__ import annotations

import dataclasses
import inspect
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cimrl_jax.data.datasets
from cimrl_jax import options
from cimrl_jax.data.source import Dataset, Source, class_counts
from cimrl_jax.errors import UserError
from tests.data import layouts

NAMES = sorted(options.modules(pathlib.Path(cimrl_jax.data.datasets.__path__[0])))
RAW = {"image": 2, "text": 1, "spectrogram": 2, "table": 1, "slots": 1}
"""How many of a feature's leading dimensions a region's mask has."""


@pytest.fixture(scope="module", params=NAMES)
def build(request, tmp_path_factory) -> Callable[[], Dataset]:
    """Makes the data set of the default options: of those in files, from a miniature of what their authors distribute, if there is one."""
    module, write = options.component("data", request.param), getattr(layouts, request.param, None)
    given: dict[str, pathlib.Path] = {}
    if write is not None:
        given["path"] = tmp_path_factory.mktemp(request.param)
        write(given["path"])
    return lambda: module.build(module.Options(), **given)


@pytest.fixture(scope="module")
def dataset(build) -> Dataset:
    try:
        return build()
    except UserError as error:
        if "data.path" not in str(error) and "pip install" not in str(error):
            raise
        pytest.skip(f"it needs files that are not part of this project: {error}")


@pytest.mark.parametrize("name", NAMES)
def test_options_are_a_frozen_dataclass_with_every_field_documented(name):
    chosen: Any = options.component("data", name).Options
    assert dataclasses.fields(chosen)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options.component("data", name).Options(), dataclasses.fields(chosen)[0].name, None)
    own = [base for base in inspect.getmro(chosen) if dataclasses.is_dataclass(base)]  # what data sets in files have in common is inherited
    lines = [line.strip() for base in own for line in inspect.getsource(base).splitlines()]
    for field in dataclasses.fields(chosen):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{field.name}:"))
        assert lines[at + 1].startswith('"""'), f"{name}.{field.name} has no docstring"


def test_there_are_the_splits_that_a_run_needs(dataset):
    assert {"train", "validation", "test"} <= set(dataset.splits)
    assert all(len(source) > 0 for source in dataset.splits.values())
    assert dataset.notes and len(dataset.class_names) > 1


def test_rows_have_the_declared_shapes_and_types(dataset):
    for name, source in dataset.splits.items():
        assert isinstance(source, Source)
        rows = np.array([0, len(source) - 1, 0])
        records = source.load(rows)
        assert set(records["inputs"]) == set(records["present"]) == set(dataset.features), name
        for modality, feature in dataset.features.items():
            values = records["inputs"][modality]
            assert values.shape == (3, *feature.shape) and values.dtype == feature.dtype, (name, modality)
            assert records["present"][modality].shape == (3,) and records["present"][modality].dtype == bool
            if values.dtype.kind == "f" and feature.kind != "table":  # an unknown cell of a table is NaN
                assert np.isfinite(values).all()


def test_labels_and_groups_are_in_range(dataset):
    for name, source in dataset.splits.items():
        assert source.label.dtype == source.group.dtype == np.int32, name
        assert source.label.shape == source.group.shape == (len(source),)
        assert source.label.min() >= 0 and source.label.max() < len(dataset.class_names)
        assert source.group.min() >= -1 and source.group.max() < len(dataset.group_names)
    assert min(class_counts(dataset.splits["train"], len(dataset.class_names))) > 0, "a class has no training example"


def test_a_group_belongs_to_one_class(dataset):
    pairs = {(int(g), int(y)) for source in dataset.splits.values() for g, y in zip(source.group, source.label, strict=True) if g >= 0}
    assert len({g for g, _ in pairs}) == len(pairs)


def test_what_is_in_memory_is_what_is_loaded(dataset):
    for source in dataset.splits.values():
        if source.arrays is not None:
            rows = np.array([len(source) - 1, 0])
            for part, columns in source.load(rows).items():
                for name, values in columns.items():
                    assert (values == source.arrays[part][name][rows]).all()


def test_texts_are_padded_at_the_end_with_ids_of_the_vocabulary(dataset):
    for name, feature in dataset.features.items():
        if feature.kind == "text":
            assert len(set(feature.vocabulary)) == len(feature.vocabulary) > 2
            for source in dataset.splits.values():
                ids = source.load(np.arange(len(source)))["inputs"][name]
                assert ids.min() >= 0 and ids.max() < len(feature.vocabulary)
                assert ((ids[:, :-1] > 0) | (ids[:, 1:] == 0)).all()


def test_regions_cover_the_raw_inputs(dataset):
    for source in dataset.splits.values():
        if source.regions is not None:
            assert set(source.regions) <= {"cause", "shortcut"}
            for masks in source.regions.values():
                for name, mask in masks.items():
                    feature = dataset.features[name]
                    assert mask.dtype == bool and mask.shape == (len(source), *feature.shape[: RAW[feature.kind]])


def test_synonyms_are_words_of_some_vocabulary(dataset):
    words = {word for feature in dataset.features.values() for word in feature.vocabulary}
    assert all(any(word in words for word in group) for group in dataset.synonyms)


def test_building_twice_gives_the_same(dataset, build):
    again = build()
    assert again.features == dataset.features
    for name, source in dataset.splits.items():
        rows = np.arange(min(len(source), 50))
        other = again.splits[name]
        assert (other.label == source.label).all() and (other.group == source.group).all()
        for modality, values in source.load(rows)["inputs"].items():
            assert (other.load(rows)["inputs"][modality] == values).all()
