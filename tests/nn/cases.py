"""Small features of every kind, with inputs, and models on them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from cimrl_jax.nn.model import build_model
from cimrl_jax.types import Feature, Model

WORDS = ("", "?", "a", "b", "c", "d", "e")
FEATURES = {
    "image": Feature("image", (8, 4, 3), "uint8", mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5)),
    "text": Feature("text", (5,), "int32", vocabulary=WORDS),
    "spectrogram": Feature("spectrogram", (6, 4), "float32"),
    "table": Feature("table", (3,), "float32", columns=("x", "y", "z"), mean=(1.0, 2.0, 3.0), std=(2.0,)),
    "slots": Feature("slots", (4, 6), "float32"),
}
OPTIONS = {
    "vit": {"patch": 2, "depth": 1},
    "spectrogram": {"patch_time": 3, "patch_mel": 2, "depth": 1},
    "hf_vit": {"patch_size": 2, "hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8},
    "hf_resnet": {"depth": (1,), "hidden_sizes": (8,), "embedding_size": 8, "patch": 2},
    "hf_bert": {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "intermediate_size": 8, "max_position_embeddings": 9},
}
BATCH = 3


def draw_inputs(feature: Feature, batch: int = BATCH, seed: int = 0):
    """Raw inputs; a text's last two words are padding."""
    rng = np.random.default_rng(seed)
    if feature.kind == "image":
        return jnp.asarray(rng.integers(0, 256, (batch, *feature.shape), dtype=np.uint8))
    if feature.kind == "text":
        ids = rng.integers(2, len(feature.vocabulary), (batch, *feature.shape), dtype=np.int32)
        ids[:, -2:] = 0
        return jnp.asarray(ids)
    return jnp.asarray(rng.normal(size=(batch, *feature.shape)), jnp.float32)


def make(features, modalities=None, **changes) -> Model:
    sizes = {"dim": 8, "dtype": "float32", "heads": 2, "mlp_ratio": 2.0, "dropout": 0.0, "fusion_layers": 2, "connect_every": 2, "causal_layers": 1}
    return build_model(
        features=features, num_classes=3, modalities=modalities or {}, views=lambda _: lambda inputs, key: dict(inputs), **{**sizes, **changes}
    )


def present_everywhere(features, batch: int = BATCH):
    return {m: jnp.ones(batch, bool) for m in features}
