"""The cards of the gallery (features are shown as what they were made of, with the evidence where the tokens lie), and the router's choices."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.data import feature_store
from cimrl_jax.data.source import ArraySource, Dataset
from cimrl_jax.evaluate import explain
from cimrl_jax.evaluate.predict import Members
from cimrl_jax.types import Feature, Method, Slots, SlotSpec
from tests import tiny

LAYOUT = {
    "left": SlotSpec("slots", 3, 4, 4, grid=(1, 2), lead=1, raw="image"),  # a class token, then two places
    "right": SlotSpec("slots", 3, 4, 4, raw="text"),
}
IMAGE, TEXT = Feature("image", (2, 4, 1), "uint8"), Feature("text", (3,), "int32", vocabulary=("", "?", "a", "b"))


def dataset(folder):
    rng = np.random.default_rng(0)
    inputs = {"left": rng.integers(1, 256, (6, *IMAGE.shape), np.uint8), "right": np.array([[2, 3, 0]] * 3 + [[3, 0, 0]] * 3, np.int32)}
    regions = {"cause": {"left": inputs["left"][..., 0] > 99}}
    test = ArraySource(inputs, np.array([0, 1] * 3, np.int32), np.array([0, 1] * 3, np.int32), regions=regions)
    found = Dataset("toy", {"left": IMAGE, "right": TEXT}, ("x", "y"), ("g", "h"), {"test": test})
    made = {
        "left": lambda x, present: np.repeat(x.reshape(len(x), 2, 4)[:, :1] / 255, 3, 1),
        "right": lambda x, present: np.repeat((x != 0)[..., None], 4, -1) / 2,
    }
    for m, compute in made.items():
        found = feature_store.build(found, m, compute, feature=Feature("slots", (3, 4), "float32"), weights="", cache=folder)
    return found


def test_a_card_of_features_shows_the_raw_example(tmp_path):
    evidence = {"left": jnp.array([6.0, 3.0, 1.0]), "right": jnp.array([1.0, 2.0, 1.0])}

    def tell(state, hyper, model, params, batch, key):
        told = {m: jnp.broadcast_to(value, (len(batch.label), 3)) for m, value in evidence.items()}
        edited = {m: Slots(jnp.zeros((len(batch.label), 3, 4)), jnp.ones((len(batch.label), 3), bool)) for m in evidence}
        return {"evidence": told, "chosen": {m: (value > 1).astype(jnp.float32) for m, value in told.items()}, "edited": edited}

    model = tiny.shallow(2, LAYOUT)
    params = jax.tree.map(lambda x: x[None], {"model": model.init(jax.random.key(0)), "method": {}})
    method = Method(init=None, stages=(), hyper={}, explain=tell)  # type: ignore[arg-type]
    own, data = explain.Explained("toy", method, model, Members(params, (), {"rate": jnp.zeros(1)})), dataset(tmp_path)
    cards = explain.examine(own, data, "test", shown=4).cards
    source = data.splits["test"]
    assert len(cards) == 4
    for card in cards:
        raw = source.raw.load(np.array([int(card["id"].split("/")[1])]))["inputs"]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(card["pictures"]["left"], raw["left"][0])
        assert card["words"] == {"right": [TEXT.vocabulary[k] for k in raw["right"][0] if k]}
        assert card["edited_pictures"] == card["edited_words"] == {} and card["edited_predicted"] in ("x", "y")
        assert card["evidence"]["left"].tolist() == [3, 1] and card["chosen"]["left"].tolist() == [1, 0]  # the class token is at no place
        assert card["evidence"]["right"].tolist() == [1, 2, 1] and card["grid"] == {"left": (1, 2)}
        assert card["features"] == {"left": 0.6, "right": 1 - [1, 3][len(card["words"]["right"]) - 1] / 4}  # behind the words lie markers


EXPERTS, EFFECTS = ("none", "right", "left"), ("TE", "NDE right", "NDE left")


def mediated(state, hyper, model, params, batch, key):
    """Explains as causal mediation does: what each number is follows from the row and the member."""
    n, rate = len(batch.label), hyper["rate"]
    told = {m: jnp.ones((n, spec.count)) for m, spec in LAYOUT.items()}
    first = (batch.index % 2).astype(jnp.float32) * rate  # rate 1: the expert "none" has the odd rows; 0: never
    return {
        "evidence": told,
        "chosen": told,
        "gates": {"none": first, "right": 1 - first, "left": jnp.zeros(n)},
        "effects": {name: i + batch.index.astype(jnp.float32) for i, name in enumerate(EFFECTS)},
        "quality": {"left": jnp.full(n, 0.25), "right": jnp.full(n, 0.75)},
    }


@pytest.mark.parametrize("grouped", [True, False])
def test_what_mediation_tells_reaches_the_cards_and_the_router_is_counted_over_groups(tmp_path, grouped):
    model = tiny.shallow(2, LAYOUT)
    params = jax.tree.map(lambda x: jnp.stack([x, x]), {"model": model.init(jax.random.key(0)), "method": {}})
    method = Method(init=None, stages=(), hyper={}, explain=mediated)  # type: ignore[arg-type]
    data = dataset(tmp_path)
    source = data.splits["test"]
    if not grouped:
        source = dataclasses.replace(source, raw=dataclasses.replace(source.raw, group=np.full(6, -1, np.int32)))  # type: ignore[attr-defined]
        data = dataclasses.replace(data, splits={"test": source})
    own = explain.Explained("toy", method, model, Members(params, (), {"rate": jnp.array([1.0, 0.0])}))
    found = explain.examine(own, data, "test", shown=2)
    one, other = found.routing
    assert one is not None and other is not None
    odd, even = ("h", "g") if grouped else ("y", "x")  # rows alternate between groups as between classes
    assert (one["split"], one["of"], list(one["all"]["gates"])) == ("test", "groups" if grouped else "classes", list(EXPERTS))
    assert one["groups"][odd]["gates"] == {"none": 1, "right": 0, "left": 0} and one["groups"][even]["top"] == {"none": 0, "right": 1, "left": 0}
    assert one["all"] == {"n": 6, "gates": {"none": 0.5, "right": 0.5, "left": 0}, "top": {"none": 0.5, "right": 0.5, "left": 0}}
    assert other["all"]["gates"] == {"none": 0, "right": 1, "left": 0}
    for card in found.cards:
        row = int(card["id"].split("/")[1])
        assert list(card["effects"].items()) == [(name, i + row) for i, name in enumerate(EFFECTS)]
        assert list(card["gates"].items()) == [("none", row % 2), ("right", 1 - row % 2), ("left", 0)]
        assert card["quality"] == {"left": 0.25, "right": 0.75}
    assert found.identification[0].keys() == {"left", "right"}  # nothing was edited


def test_a_modality_that_is_absent_has_no_picture(tmp_path):
    data = dataset(tmp_path)
    raw = data.splits["test"].raw  # type: ignore[attr-defined]
    plain = Dataset(
        "toy", {"left": IMAGE, "right": TEXT}, ("x", "y"), ("g", "h"), {"test": dataclasses.replace(raw, present={"left": np.arange(6) > 2})}
    )
    layout = {"left": SlotSpec("image", 2, 4, 4, grid=(1, 2)), "right": SlotSpec("text", 3, 1, 1)}
    model = tiny.shallow(2, layout)
    model = model._replace(embed=lambda params, inputs, present: model_slots(inputs, present))
    params = jax.tree.map(lambda x: x[None], {"model": model.init(jax.random.key(0)), "method": {}})

    def tell(state, hyper, model, params, batch, key):
        told = {m: jnp.ones((len(batch.label), spec.count)) for m, spec in layout.items()}
        return {"evidence": told, "chosen": told}

    method = Method(init=None, stages=(), hyper={}, explain=tell)  # type: ignore[arg-type]
    own = explain.Explained("toy", method, model, Members(params, (), {"rate": jnp.zeros(1)}))
    found = explain.examine(own, plain, "test", shown=6)
    assert found.routing == [None]
    assert {int(card["id"].split("/")[1]): list(card["pictures"]) for card in found.cards} == {i: ["left"] if i > 2 else [] for i in range(6)}


def test_a_word_that_was_masked_is_told_from_one_that_was_swapped(tmp_path):
    raw = dataset(tmp_path).splits["test"].raw  # type: ignore[attr-defined]
    data = Dataset(
        "toy", {"right": TEXT}, ("x", "y"), ("g", "h"), {"test": dataclasses.replace(raw, inputs={"right": raw.inputs["right"]}, present={})}
    )
    layout, table = {"right": SlotSpec("text", 3, 4, 4)}, jnp.array([[0.0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, 0]])
    model = tiny.shallow(2, layout)
    model = model._replace(
        embed=lambda params, inputs, present: {"right": Slots(table[inputs["right"]], inputs["right"] > 0)},
        render=lambda params, values: {m: jnp.argmax(v @ table.T, -1) for m, v in values.items()},
    )
    params = jax.tree.map(lambda x: x[None], {"model": model.init(jax.random.key(0)) | {"blank": {"right": 0.9 * table[3]}}, "method": {}})

    def tell(state, hyper, model, params, batch, key):
        slots, blank = model.embed(params["model"], batch.inputs, batch.present)["right"], params["model"]["blank"]["right"]
        masked = slots.values + 1.0 * (blank - slots.values) * (1 + 1e-7)  # as a soft edit rounds
        edited = jnp.where(jnp.arange(3)[:, None] == 0, masked, table[2])
        told = {"right": slots.mask.astype(jnp.float32)}
        return {"evidence": told, "chosen": told, "edited": {"right": Slots(edited, slots.mask)}}

    method = Method(init=None, stages=(), hyper={}, explain=tell)  # type: ignore[arg-type]
    own = explain.Explained("toy", method, model, Members(params, (), {"rate": jnp.zeros(1)}))
    cards = explain.examine(own, data, "test", shown=6).cards
    assert {tuple(card["words"]["right"]): card["edited_words"]["right"] for card in cards} == {("a", "b"): ["□", "a"], ("b",): ["□"]}


def model_slots(inputs, present):
    left = inputs["left"].astype(jnp.float32).reshape(-1, 2, 4)
    right = inputs["right"].astype(jnp.float32)[..., None]
    return {
        "left": Slots(left, jnp.broadcast_to(present["left"][:, None], left.shape[:2])),
        "right": Slots(right, (right[..., 0] > 0) & present["right"][:, None]),
    }
