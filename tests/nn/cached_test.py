"""Features in the place of what a frozen encoder made them of: the same tokens as from it, the same start, its places."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.nn.cached import Cached
from cimrl_jax.nn.dense import Dense
from cimrl_jax.nn.encoders import base
from cimrl_jax.nn.transformer import Sizes
from cimrl_jax.nn.tuning import Tuning
from cimrl_jax.types import Feature, Slots, SlotSpec

RAW = Feature("image", (8, 4, 1), "uint8")
WIDTH, DIM, BATCH = 5, 6, 3
SIZES = Sizes(DIM, 2, 2.0, 0.0)


class Toy(nn.Module):
    """Patches of 2 x 2 through one linear map, averaged onto a grid, behind `lead` tokens that are their mean."""

    grid: tuple[int, int] | None = (4, 2)
    lead: int = 1
    tuning: Tuning = Tuning()
    runs: tuple[range, ...] = (range(1),)

    def setup(self) -> None:
        self.backbone, self.inward = Dense(WIDTH), Dense(DIM)

    @nn.nowrap
    def slot_spec(self) -> SlotSpec:
        return SlotSpec("image" if self.grid else "text", 8, 4, 1, grid=(4, 2) if self.grid else None)

    @nn.nowrap
    def token_spec(self) -> base.TokenSpec:
        rows, columns = self.grid or (8, 1)
        return base.TokenSpec(self.lead + rows * columns, WIDTH, self.lead, self.grid)

    def embed(self, inputs: Any, present: Any) -> Slots:
        patches = inputs.reshape(*inputs.shape[:-3], 4, 2, 2, 2).swapaxes(-3, -2).reshape(*inputs.shape[:-3], 8, 4) / 255
        return base.mask_slots(patches, base.everywhere(present, 8))

    def features(self, slots: Slots, *, deterministic: bool) -> Slots:
        values = self.backbone(slots.values)
        if self.grid:
            blocks = values.reshape(*values.shape[:-2], self.grid[0], 4 // self.grid[0], self.grid[1], 2 // self.grid[1], WIDTH)
            values = blocks.mean((-4, -2)).reshape(*values.shape[:-2], -1, WIDTH)
        values = jnp.concatenate([values.mean(-2, keepdims=True)] * self.lead + [values], -2)
        return base.mask_slots(values, base.everywhere(slots.mask.any(-1), values.shape[-2]))

    def encode(self, slots: Slots, *, deterministic: bool) -> Slots:
        found = self.features(slots, deterministic=deterministic)
        return Slots(self.inward(found.values), found.mask)

    @nn.nowrap
    def regions(self, mask: Any) -> Any:
        if self.grid is None:
            return mask.astype(jnp.float32)
        return mask.reshape(*mask.shape[:-2], 4, 2, 2, 2).swapaxes(-3, -2).reshape(*mask.shape[:-2], 8, 4).astype(jnp.float32).mean(-1)

    @nn.nowrap
    def render(self, values: Any) -> Any:
        return values

    @nn.nowrap
    def tensors(self) -> tuple[Any, ...]:
        return ()

    @nn.nowrap
    def architecture(self) -> dict[str, Any]:
        return {}


def whole(module: Any, inputs: Any, present: Any) -> Slots:
    return module.encode(module.embed(inputs, present), deterministic=True)


def case(*, views: int = 1, **options: Any) -> tuple[Toy, Cached, Any, Any, Any, Any]:
    """(the encoder, what reads its features, its parameters, raw inputs, present, features of `views` views, the others of noise)."""
    toy = Toy(**options)
    count = toy.token_spec().count
    cached = Cached(Feature("slots", (views * count, WIDTH), "float32", raw=RAW, views=views), toy, SIZES)
    rng = np.random.default_rng(0)
    inputs, present = jnp.asarray(rng.integers(0, 256, (BATCH, *RAW.shape), np.uint8)), jnp.array([True, False, True])
    params = toy.init(jax.random.key(0), inputs, present, method=whole)["params"]
    slots = toy.apply({"params": params}, inputs, present, method="embed")
    found: Any = toy.apply({"params": params}, slots, deterministic=True, method="features")
    others = jnp.asarray(rng.normal(size=(BATCH, (views - 1) * count, WIDTH)), jnp.float32)
    return toy, cached, params, inputs, present, jnp.concatenate([found.values, others], 1)


@pytest.mark.parametrize(("grid", "lead", "views"), [((4, 2), 1, 1), ((2, 1), 0, 1), ((4, 2), 2, 3), (None, 0, 2)])
def test_tokens_and_start_are_those_of_the_encoder(grid, lead, views):
    toy, cached, params, inputs, present, features = case(grid=grid, lead=lead, views=views)
    assert isinstance(toy, base.Pretrained) and isinstance(cached, base.Encoder) and not isinstance(cached, base.Pretrained)
    own = cached.init(jax.random.key(0), features, present, method=whole)["params"]
    assert set(own) == {"inward"}  # nothing of the backbone
    jax.tree.map(np.testing.assert_array_equal, own["inward"], params["inward"])
    expected: Any = toy.apply({"params": params}, inputs, present, method=whole)
    found: Any = cached.apply({"params": own}, features, present, method=whole)
    np.testing.assert_array_equal(found.mask, expected.mask)
    assert found.mask[0].all() and not found.mask[1].any()
    np.testing.assert_array_equal(found.values[found.mask], expected.values[expected.mask])
    spec = cached.slot_spec()
    tokens = toy.token_spec()
    assert (spec.kind, spec.count, spec.width, spec.element, spec.lead, spec.grid) == ("slots", tokens.count, WIDTH, WIDTH, lead, grid)
    assert spec.raw == toy.slot_spec().kind and found.values.shape == (BATCH, spec.count, DIM)


def test_a_token_of_zeros_is_padding_and_what_is_masked_has_no_influence():
    _, cached, _, _, _, features = case()
    everywhere = jnp.ones(BATCH, bool)
    params = cached.init(jax.random.key(1), features, everywhere, method=whole)
    features = features.at[0, 2].set(0).at[0, 3, 1:].set(0).at[0, 3, 0].set(1e-3)
    slots: Any = cached.apply(params, features, everywhere, method="embed")
    assert slots.mask[0].tolist() == [True, True, False] + [True] * 6 and slots.values.dtype == jnp.float32

    def total(values):
        tokens: Any = cached.apply(params, Slots(values, slots.mask), deterministic=True, method="encode")
        return jnp.where(tokens.mask[..., None], tokens.values**3, 0).sum()

    gradient = jax.grad(total)(slots.values.at[0, 2].set(jnp.nan))
    assert not gradient[0, 2].any() and np.isfinite(gradient).all() and (gradient[0, 3] != 0).all()
    twice = jax.grad(lambda v: (jax.grad(total)(v) ** 2).sum())(slots.values)
    assert np.isfinite(twice).all() and twice[2].any()
    np.testing.assert_array_equal(cached.apply(params, features, method="render"), features)


def test_half_precision_is_read_as_float32_and_other_views_are_not_read():
    _, cached, _, _, present, features = case(views=2)
    halves: Any = cached.apply({}, features.astype(jnp.float16), present, method="embed")
    np.testing.assert_array_equal(halves.values, jnp.where(present[:, None, None], features[:, :9].astype(jnp.float16).astype(jnp.float32), 0))
    spoiled: Any = cached.apply({}, features.at[:, 9:].set(jnp.nan), present, method="embed")
    assert np.isfinite(spoiled.values).all()


def test_members_under_vmap_equal_solo_ones():
    _, cached, _, _, present, features = case()
    params = [cached.init(jax.random.key(seed), features, present, method=whole) for seed in (0, 1)]
    together: Any = jax.vmap(lambda own: cached.apply(own, features, present, method=whole))(jax.tree.map(lambda *x: jnp.stack(x), *params))
    for number, own in enumerate(params):
        alone: Any = cached.apply(own, features, present, method=whole)
        np.testing.assert_allclose(together.values[number], alone.values, atol=1e-6)


@pytest.mark.parametrize(("grid", "lead"), [((4, 2), 1), ((2, 2), 0), ((3, 1), 2), ((8, 4), 1), ((5, 3), 0)])
def test_regions_lie_where_the_tokens_do(grid, lead):
    _, cached, *_ = case(lead=lead)
    cached = dataclasses.replace(cached, encoder=Toy(grid=grid, lead=lead))
    mask = jnp.asarray(np.random.default_rng(0).random((2, 8, 4)) < 0.3)
    shares = np.asarray(cached.regions(mask))
    assert shares.shape == (2, lead + grid[0] * grid[1]) and not shares[:, :lead].any()
    # By hand: every patch's share spread over so fine a grid that token places are made of whole cells.
    patches = np.asarray(mask).reshape(2, 4, 2, 2, 2).mean((2, 4))
    fine = np.kron(patches, np.ones((1, grid[0], grid[1])))
    expected = fine.reshape(2, grid[0], 4, grid[1], 2).mean((2, 4))
    np.testing.assert_allclose(shares[:, lead:].reshape(2, *grid), expected, atol=1e-6)
    np.testing.assert_array_equal(cached.regions(jnp.ones((8, 4), bool))[lead:], 1)


def test_regions_of_words_are_behind_the_lead():
    _, cached, *_ = case(grid=None, lead=1)
    np.testing.assert_array_equal(cached.regions(jnp.arange(8) == 3), np.arange(9) == 4)
