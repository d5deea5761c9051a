"""What XLA is told is known to it, changes numbers by rounding only, and lets it compile products of every size."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cimrl_jax.train import compiler


def attention(rows, contracted, columns):
    """The traced product of a batch of matrices, and what it is given."""
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32) for shape in ((rows, contracted), (contracted, columns))]
    return jax.jit(lambda x, w: jnp.tanh(jax.lax.map(lambda own: own @ w, x[None])).sum(0)).trace(*given), given


@pytest.mark.parametrize(("sizes", "library"), [((50, 40, 30), False), ((17, 17, 12), True), ((16, 16, 8), False), ((4, 197, 12), False)])
def test_options_are_known_to_the_compiler_and_change_no_more_than_rounding(sizes, library):
    traced, given = attention(*sizes)
    told = compiler.compiled(traced)
    np.testing.assert_allclose(told(*given), traced.lower().compile()(*given), rtol=1e-5, atol=1e-5)
    if jax.default_backend() == "cpu":
        assert ("ynn" in str(told.as_text())) == library


AWKWARD = """
import resource
few = 8 << 30  # of addresses, most of which are never used
resource.setrlimit(resource.RLIMIT_AS, (few, few))
import jax, jax.numpy as jnp
from cimrl_jax.train import compiler
for rows, contracted, columns in ((17, 17, 12), (16, 17, 13), (18, 17, 12), (17, 16, 14)):
    x, w = jnp.ones((32, 4, rows, contracted)), jnp.ones((32, 4, contracted, columns))
    compiler.compiled(jax.jit(jnp.matmul).trace(x, w))
"""


def test_products_that_xla_would_write_out_without_end_are_compiled_in_little_memory():
    # As users compile: with little optimisation, as in the rest of the suite, the same products are no trouble.
    environ = {name: value for name, value in os.environ.items() if name != "JAX_DISABLE_MOST_OPTIMIZATIONS"}
    done = subprocess.run([sys.executable, "-c", AWKWARD], capture_output=True, text=True, timeout=300, env=environ)
    assert done.returncode == 0, done.stderr[-2000:]
