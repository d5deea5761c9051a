"""Pictures come in the size and channels that were asked for."""

from __future__ import annotations

import colorsys
import sys

import numpy as np
import pytest

from cimrl_jax.data import pictures
from cimrl_jax.errors import UserError

Image = pytest.importorskip("PIL.Image")


def test_halving_is_the_mean_of_four_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = pictures.read(tmp_path / "a.png", height=4, width=6, channels=3, where="it")
    expected = pixels.reshape(4, 2, 6, 2, 3).mean((1, 3))
    assert found.dtype == np.uint8 and np.abs(found - expected).max() <= 1
    assert (pictures.read(tmp_path / "a.png", height=8, width=12, channels=3, where="it") == pixels).all()


def test_grey_has_one_channel_and_the_middle_is_kept(tmp_path):
    pixels = np.zeros((4, 10), np.uint8)
    pixels[:, 3:7] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = pictures.read(tmp_path / "a.png", height=4, width=4, channels=1, where="it")
    assert found.shape == (4, 4, 1) and (found == 200).all()
    assert (pictures.read(tmp_path / "a.png", height=4, width=4, channels=3, where="it") == 200).all()


def test_bad_pictures_are_named(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"no picture")
    for name in ("a.png", "b.png"):
        with pytest.raises(UserError, match=f"it: cannot read the picture .*{name}"):
            pictures.read(tmp_path / name, height=4, width=4, channels=1, where="it")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match=r"pip install 'cimrl_jax\[data\]'"):
        pictures.read(tmp_path / "a.png", height=4, width=4, channels=1, where="it")


def test_colours_are_those_of_colorsys():
    hue = np.linspace(0, 0.99, 23)
    expected = [colorsys.hsv_to_rgb(h, 0.7, 0.4) for h in hue]
    np.testing.assert_allclose(pictures.colour(hue, 0.7, np.full(23, 0.4)), expected, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (60, 60)])
def test_a_box_in_the_crop_is_the_crop_of_the_box(tmp_path, height, width):
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 4 : height // 2, width // 5 : 4 * width // 5] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    size = pictures.dimensions(tmp_path / "a.png", where="it")
    assert size == (width, height)
    box = (width // 5 / width, height // 4 / height, (4 * width // 5 - width // 5) / width, (height // 2 - height // 4) / height)
    for shape in ({"height": 20, "width": 20}, {"height": 12, "width": 24}):
        crop = pictures.read(tmp_path / "a.png", channels=1, where="it", **shape)[..., 0]
        mask = pictures.box_in_crop(box, size, **shape)
        # A pixel half covered may count as either.
        assert mask.any() and (crop[mask] >= 100).all() and (crop[~mask] <= 155).all()
