"""What becomes of files on their way."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st


def hurt(whole: bytes, data: Any) -> bytearray:
    """A file's bytes with one to four places changed, added or lost, as hypothesis draws them from `data`."""
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        # The head, where damage does most, is hit as often as all the rest.
        place = data.draw(st.integers(0, 64) | st.integers(0, len(content)))
        how = data.draw(st.sampled_from(["flip", "splice", "cut", "take out"]))
        if how == "flip":
            content[place : place + 1] = bytes([data.draw(st.integers(0, 255))])
        elif how == "splice":
            content[place:place] = data.draw(st.binary(max_size=16))
        elif how == "cut":
            del content[place:]
        else:
            del content[place : place + data.draw(st.integers(1, 64))]
    return content
