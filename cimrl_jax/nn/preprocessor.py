"""How a checkpoint's pictures were prepared: its preprocessor_config.json, read by every encoder of published image models."""

from __future__ import annotations

import math
from typing import Annotated, Any

from cimrl_jax.errors import UserError
from cimrl_jax.nn.model_folder import PREPROCESSOR, Checkpoint
from cimrl_jax.options import OptionError, Range, convert
from cimrl_jax.types import Expected

Side = Annotated[int, Range(low=1)]


def pictures(checkpoint: Checkpoint, *, channels: int, size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> Expected:
    """What the encoder expects of pictures; where the file does not say, as given (of mean and std as many as there are channels).

    Raises:
      UserError: values that are none, or pictures prepared in another way than scaled to 0..1, mean subtracted, divided by std.
    """
    found = checkpoint.preprocessor
    try:
        scale = convert(found.get("rescale_factor", 1 / 255), float, "rescale_factor")
        if not found.get("do_rescale", True) or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
            raise OptionError("rescale_factor", "pictures are scaled to 0..1 before they are normalised, expected 1/255")
        key = "crop_size" if found.get("do_center_crop", True) and found.get("crop_size") else "size"
        sides = _sides(found[key], key) if found.get(key) else size
        if not found.get("do_normalize", True):
            return Expected(size=sides, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
        numbers = [_numbers(found.get(key) or own[:channels], key, channels) for key, own in (("image_mean", mean), ("image_std", std))]
        if min(numbers[1]) <= 0:
            raise OptionError("image_std", f"got {numbers[1]}, expected numbers above 0")
    except OptionError as error:
        raise UserError(f"{checkpoint.folder / PREPROCESSOR}: {error}") from error
    return Expected(size=sides, channels=channels, mean=numbers[0], std=numbers[1])


def _sides(size: Any, key: str) -> tuple[int, int]:
    if isinstance(size, dict):
        size = [size["height"], size["width"]] if {"height", "width"} <= set(size) else size.get("shortest_edge")
    return convert(size if isinstance(size, list) else [size, size], tuple[Side, Side], key)


def _numbers(value: Any, key: str, channels: int) -> tuple[float, ...]:
    own = convert(value, tuple[Annotated[float, Range(above=-1e3, below=1e3)], ...], key)
    if len(own) not in (1, channels):
        raise OptionError(key, f"has {len(own)} values for {channels} channels")
    return own * (channels // len(own))
