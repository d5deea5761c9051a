"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import pathlib
import tempfile

from cimrl_jax.errors import UserError


def write_whole(path: pathlib.Path, content: str | bytes) -> None:
    """Writes `content` beside `path`, flushes it to the disk, and renames it into place: readers see the old file or the new one.

    Raises:
      UserError: the disk is full, or the folder cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            temporary = pathlib.Path(file.name)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another --workdir") from error
