"""The one exception for what a user can mend: a line that says what, where, what was expected and how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input. The command line prints its message as one line and exits with code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A phrase for the end of a message: the closest known name if one is close, and the whole list otherwise."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(known)}" if known else "nothing is known here"
