"""Pictures on the host: read from files to one size, and the colours that are planted in them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from cimrl_jax.errors import UserError
from cimrl_jax.types import Expected, Feature

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000")
"""What is read; Pillow knows more, some of which start other programs. The content tells, not the file's name."""
METADATA = r"PIL\.TiffImagePlugin"
"""The module that warns of damaged EXIF data, which are no part of the picture (see `_orientation`). It is silenced for good: `catch_warnings` would
hold for all threads, and end at random where several read pictures."""
WHITE = (255, 255, 255, 255)


def read(path: pathlib.Path, *, height: int, width: int, channels: int, where: str) -> UInt8[np.ndarray, "{height} {width} {channels}"]:
    """A picture file as uint8, 1 channel of grey or 3 of colour: turned upright as its EXIF orientation says, cropped about its centre to the shape's
    proportions, and resized (area average).

    What is transparent is white; of an animation the first frame is taken. Grey of more than 8 bits is scaled: its white is that of the fewest bits
    that hold the largest value (so that X-rays of 12 bits in a file of 16 are not black); grey with negative or fractional values is scaled from its
    least to its largest. JPEGs are decoded at 1/2, 1/4 or 1/8 of their size if that is still twice the wanted one at least.

    Raises:
      UserError: Pillow is not installed, or there is no such picture.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot read the picture {path} ({error.strerror or error}); mend its name or fetch it again") from error
    return _decode(content, (width, height), channels, f"{where}: cannot read the picture {path}")


def decode(content: bytes, *, height: int, width: int, channels: int, where: str) -> UInt8[np.ndarray, "{height} {width} {channels}"]:
    """The same of a file's bytes."""
    return _decode(content, (width, height), channels, f"{where}: cannot read the picture")


def dimensions(path: pathlib.Path, *, where: str) -> tuple[int, int]:
    """(width, height) of a picture file turned upright, without decoding it.

    Raises:
      UserError: as in `read`.
    """
    # What is no path has its bytes (see `columns.Pictures`).
    source = path if isinstance(path, pathlib.Path) else io.BytesIO(path.read_bytes())
    with _opened(source, f"{where}: cannot read the picture {path}") as file:
        return file.size[::-1] if _orientation(file) in SIDEWAYS else file.size


def _decode(content: bytes, size: tuple[int, int], channels: int, where: str) -> UInt8[np.ndarray, "h w {channels}"]:
    with _opened(io.BytesIO(content), where) as file:
        from PIL import Image, ImageOps

        orientation = _orientation(file)
        file.draft(None, [2 * side for side in (size[::-1] if orientation in SIDEWAYS else size)])
        if (file.size, file.mode, orientation) == (size, {1: "L", 3: "RGB"}[channels], 1) and (pixels := _jpeg(file, content)) is not None:
            return pixels
        picture = _eight_bits(file)
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture)
        grey = channels == 1 or picture.mode in ("1", "L")
        if picture.mode != (mode := "L" if grey else "RGB"):
            picture = picture.convert(mode)
        if orientation in TURNS:
            picture = picture.transpose(Image.Transpose[TURNS[orientation]])
        pixels = np.asarray(ImageOps.fit(picture, size, Image.Resampling.BOX))
    return np.repeat(pixels[..., None], channels, -1) if grey else pixels


TURNS = {
    2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE", 6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90",
}  # fmt: skip
"""What turns a picture of this EXIF orientation upright."""
SIDEWAYS = (5, 6, 7, 8)


def _orientation(file: Any) -> int:
    from PIL import Image

    # Pillow itself turns TIFFs. Its own getexif would decode a PNG to look behind the pixels.
    if file.format == "TIFF" or not file.info.get("exif"):
        return 1
    tags = Image.Exif()
    try:
        tags.load(file.info["exif"])
        return tags.get(0x0112, 1)
    except Exception:  # damage of all kinds; a camera's notes that cannot be read are no part of the picture
        return 1


def _jpeg(file: Any, content: bytes) -> UInt8[np.ndarray, "h w c"] | None:
    """The pixels of a JPEG that is not resized, in half of Pillow's time (to what is resized Pillow's own decoder has the shorter way). None: that is
    left to Pillow, which gives the same."""
    if file.format != "JPEG":
        return None
    try:
        import simplejpeg
    except ImportError:
        return None
    width, height = file.size
    try:
        pixels = simplejpeg.decode_jpeg(content, "GRAY" if file.mode == "L" else "RGB", min_height=height, min_width=width)
    except ValueError:  # damaged, or only odd: Pillow knows what can be read all the same
        return None
    return pixels if pixels.shape[:2] == (height, width) else None


def _eight_bits(picture: Any) -> Any:
    from PIL import Image

    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    values = np.asarray(picture)
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(high - low):
        raise ValueError("it has values that are no numbers")
    if picture.mode != "F" and low >= 0:
        low, high = 0, 2 ** max(int(high).bit_length(), 8) - 1
    scaled = (values.astype(np.float32) - low) * (255 / (high - low or 1))
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


@contextlib.contextmanager
def _opened(source: Any, where: str) -> Iterator[Any]:
    """The picture in a file, named by its path or given itself; whatever Pillow raises while it is in use is a `UserError`."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise UserError(f"{where}: reading pictures needs Pillow, which is not installed; run: pip install 'cimrl_jax[data]'") from error
    if not any(getattr(own[3], "pattern", None) == METADATA for own in warnings.filters):
        warnings.filterwarnings("ignore", module=METADATA)
    try:
        with Image.open(source, formats=FORMATS) as file:
            yield file
    except Exception as error:  # Pillow's readers raise nearly anything on a damaged file
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = f"it is none of {', '.join(FORMATS)}"
        raise UserError(f"{where} ({reason}); fetch it again from where the data set is distributed, or convert it") from error


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
