"""Pictures on the host: read from files to one size, and the colours that are planted in them."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cimrl_jax.errors import UserError
from cimrl_jax.types import Expected, Feature


def read(path: pathlib.Path, *, height: int, width: int, channels: int, where: str) -> UInt8[np.ndarray, "{height} {width} {channels}"]:
    """A picture file, cropped about its centre to the shape's proportions and resized (area average): uint8, 1 channel of grey or 3 of colour.

    Raises:
      UserError: Pillow is not installed, or there is no such picture.
    """
    with _opened(path, where) as file:
        from PIL import Image, ImageOps

        picture = ImageOps.fit(file.convert("RGB" if channels == 3 else "L"), (width, height), Image.Resampling.BOX)
    return np.asarray(picture).reshape(height, width, channels)


@contextlib.contextmanager
def _opened(path: pathlib.Path, where: str) -> Iterator[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise UserError(f"{where}: reading pictures needs Pillow, which is not installed; run: pip install 'cimrl_jax[data]'") from error
    try:
        with Image.open(path) as file:
            yield file
    except (OSError, Image.DecompressionBombError) as error:
        raise UserError(f"{where}: cannot read the picture {path} ({error}); fetch it again from where the data set is distributed") from error


def as_expected(feature: Feature, expected: Expected | None) -> Feature:
    """An image feature of the size, channels, mean and standard deviation that a pretrained encoder of pictures was trained with, if there is one."""
    if expected is None or not expected.channels:
        return feature
    shape = (*expected.size, expected.channels)
    return dataclasses.replace(feature, shape=shape, mean=expected.mean, std=expected.std)


def if_expected(feature: Feature, expected: Expected | None, *, modality: str, where: str) -> Feature:
    """The same for pictures that are made in one shape.

    Raises:
      UserError: the pretrained encoder expects another shape.
    """
    if expected is not None and expected.channels and (*expected.size, expected.channels) != feature.shape:
        shape, wanted = (" x ".join(map(str, sizes)) for sizes in (feature.shape, (*expected.size, expected.channels)))
        raise UserError(f"{where}: {modality} is {shape} only, but its pretrained encoder expects {wanted}; choose another encoder for {modality}")
    return as_expected(feature, expected)


def colour(hue: Float[np.ndarray, " n"], saturation: float, value: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
    """HSV to RGB; a whole turn of the hue is 1."""
    turn = (np.array([5, 3, 1]) + hue[:, None] * 6) % 6
    return value[:, None] * (1 - saturation * np.minimum(turn, 4 - turn).clip(0, 1))


def dimensions(path: pathlib.Path, *, where: str) -> tuple[int, int]:
    """(width, height) of a picture file, without decoding it.

    Raises:
      UserError: as in `read`.
    """
    with _opened(path, where) as file:
        return file.size


def box_in_crop(
    box: tuple[float, float, float, float], dimensions: tuple[int, int], *, height: int, width: int
) -> Bool[np.ndarray, "{height} {width}"]:
    """The pixels of a picture that `read` gave whose centres lie in a box of the file's picture: left, top, width, height as shares of the latter's
    width and height (`dimensions`)."""
    have_width, have_height = dimensions
    scale = min(have_width / width, have_height / height)
    across = ((np.arange(width) + 0.5 - width / 2) * scale + have_width / 2) / have_width
    down = ((np.arange(height) + 0.5 - height / 2) * scale + have_height / 2) / have_height
    left, top, wide, tall = box
    return ((down >= top) & (down < top + tall))[:, None] & ((across >= left) & (across < left + wide))
