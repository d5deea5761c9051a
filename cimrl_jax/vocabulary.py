"""How ids stand for words: 0 is padding and 1 the unknown word, also where a checkpoint numbers them otherwise."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int

from cimrl_jax.errors import UserError

PADDING, UNKNOWN = 0, 1


def checkpoint_ids(size: int, padding: int, unknown: int) -> Int[np.ndarray, " size"]:
    """The checkpoint's id of each of the project's: 0 and 1 change places with the checkpoint's ids of padding and of the unknown word.

    Raises:
      UserError: the two are the same, or not below `size`.
    """
    if padding == unknown or not all(0 <= number < size for number in (padding, unknown)):
        raise UserError(f"a vocabulary of {size} words needs two ids below that for padding and the unknown word, not {padding} and {unknown}")
    ids = np.arange(size, dtype=np.int32)
    for place, number in ((PADDING, padding), (UNKNOWN, unknown)):
        other = int(np.flatnonzero(ids == number)[0])
        ids[[place, other]] = ids[[other, place]]
    return ids
