"""The cards of the gallery: features are shown as what they were made of, with the evidence where the tokens lie."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

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
    _, cards = explain.examine(own, data, "test", shown=4)
    source = data.splits["test"]
    assert len(cards) == 4
    for card in cards:
        raw = source.raw.load(np.array([int(card["id"].split("/")[1])]))["inputs"]  # type: ignore[attr-defined]
        np.testing.assert_array_equal(card["image"], raw["left"][0])
        assert card["words"] == [TEXT.vocabulary[k] for k in raw["right"][0] if k]
        assert card["edited_image"] is None and card["edited_words"] is None and card["edited_predicted"] in ("x", "y")
        assert card["evidence"]["left"].tolist() == [3, 1] and card["chosen"]["left"].tolist() == [1, 0]  # the class token is at no place
        assert card["evidence"]["right"].tolist() == [1, 2, 1] and card["grid"] == {"left": (1, 2)}
        assert card["features"] == {"left": 0.6, "right": 1 - [1, 3][len(card["words"]) - 1] / 4}  # behind the words lie markers
