"""What XLA is told is known to it, and changes numbers by rounding only."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from cimrl_jax.train import compiler


def test_options_are_known_to_the_compiler_and_change_no_more_than_rounding():
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((50, 40), (40, 30)))
    lowered = jax.jit(lambda x, w: jnp.tanh(x @ w).sum(0)).lower(x, w)
    told = lowered.compile(compiler_options=compiler.options())
    np.testing.assert_allclose(told(x, w), lowered.compile()(x, w), rtol=1e-5, atol=1e-5)
    if jax.default_backend() == "cpu":
        assert "ynn" not in str(told.as_text())
