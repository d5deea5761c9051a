"""Pictures come upright, in the size and channels that were asked for, whatever form they lie in; damage is refused in one line."""

from __future__ import annotations

import colorsys
import concurrent.futures
import io
import sys
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cimrl_jax.data import pictures
from cimrl_jax.errors import UserError
from tests.data.damage import hurt

Image = pytest.importorskip("PIL.Image")
ImageOps = pytest.importorskip("PIL.ImageOps")
ORIENTATION = 0x0112


def _smooth(height: int, width: int, channels: int = 3) -> np.ndarray:
    """A picture without sharp edges, which JPEG keeps well."""
    small = np.random.default_rng(height * width).integers(0, 256, (height // 12 + 2, width // 12 + 2, channels), np.uint8)
    planes = [np.asarray(Image.fromarray(small[..., c]).resize((width, height), Image.Resampling.BICUBIC)) for c in range(channels)]
    return np.stack(planes, -1) if channels > 1 else planes[0]


def _content(pixels: np.ndarray, kind: str = "PNG", *, mode: str | None = None, orientation: int | None = None, **how) -> bytes:
    buffer, picture = io.BytesIO(), Image.fromarray(pixels)
    if orientation is not None:
        how["exif"] = Image.Exif()
        how["exif"][ORIENTATION] = orientation
    (picture.convert(mode) if mode else picture).save(buffer, kind, **how)
    return buffer.getvalue()


def _decode(content: bytes, height: int, width: int, channels: int = 3) -> np.ndarray:
    found = pictures.decode(content, height=height, width=width, channels=channels, where="it")
    assert found.shape == (height, width, channels) and found.dtype == np.uint8
    return found


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


def test_nothing_but_pictures_is_opened(tmp_path):
    # Pillow reads EPS by starting another program.
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    for content in ((tmp_path / "a.eps").read_bytes(), b""):
        with pytest.raises(UserError, match="^it: cannot read the picture .it is none of JPEG, PNG"):
            _decode(content, 4, 4)


def test_a_picture_that_claims_to_be_huge_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    for kind in ("PNG", "JPEG"):
        with pytest.raises(UserError, match="exceeds limit of 80 pixels"):
            _decode(_content(_smooth(10, 10), kind), 4, 4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_file_that_was_cut_short_is_refused(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    content = _content(pixels, kind)
    _decode(content, 8, 8)
    for share in (0.2, 0.7):
        with pytest.raises(UserError, match="^it: cannot read the picture [^\n]*$"):
            _decode(content[: int(len(content) * share)], 8, 8)


@pytest.mark.parametrize("shape", [(61, 83), (200, 301)])
@pytest.mark.parametrize("how", [{"subsampling": 0}, {"subsampling": 2, "progressive": True}, {"subsampling": 1, "mode": "L"}, {"mode": "CMYK"}])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpegs_are_the_same_with_and_without_simplejpeg(monkeypatch, shape, how, channels):
    simplejpeg = pytest.importorskip("simplejpeg")
    used, decode_jpeg = [], simplejpeg.decode_jpeg
    monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *given, **options: used.append(1) or decode_jpeg(*given, **options))
    content = _content(_smooth(*shape), "JPEG", quality=90, **how)
    fast = [_decode(content, h, w, channels) for h, w in (shape, (8, 8), (64, 64))]
    assert len(used) == (channels == {"L": 1, "CMYK": 0}.get(how.get("mode", ""), 3)), "only what is not resized or converted is quicker that way"
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    for found in fast:
        assert (found == _decode(content, found.shape[0], found.shape[1], channels)).all()


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_large_jpegs_are_decoded_small_and_look_the_same(monkeypatch, factor):
    drafted, draft = [], pytest.importorskip("PIL.JpegImagePlugin").JpegImageFile.draft

    def spy(self, mode, size):
        found = draft(self, mode, size)
        drafted.append(self.size)
        return found

    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.draft", spy)
    pixels, size = _smooth(32 * factor, 48 * factor), (16, 20)
    found = _decode(_content(pixels, "JPEG", quality=95, orientation=1), *size)
    whole = _decode(_content(pixels), *size)
    assert drafted == [(48, 32)]
    assert np.abs(found.astype(int) - whole).mean() < 4
    # One pixel less than twice the wanted size, and the next reduction is too much.
    _decode(_content(pixels[: 32 * factor - 1], "JPEG"), *size)
    assert drafted[1][0] == 96


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_upright(tmp_path, kind, orientation):
    (tmp_path / "a").write_bytes(_content(_smooth(40, 70), kind, orientation=orientation))
    with Image.open(tmp_path / "a") as file:
        upright = ImageOps.exif_transpose(file.convert("RGB") if kind == "TIFF" else file).convert("RGB")
    assert upright.size == ((40, 70) if orientation > 4 else (70, 40))
    assert pictures.dimensions(tmp_path / "a", where="it") == upright.size
    for height, width in ((35, 40), (40, 30)):
        expected = np.asarray(ImageOps.fit(upright, (width, height), Image.Resampling.BOX))
        assert (pictures.read(tmp_path / "a", height=height, width=width, channels=3, where="it") == expected).all()


def test_exif_that_cannot_be_read_turns_nothing(tmp_path):
    pixels = _smooth(20, 30)
    content = _content(pixels, "JPEG", orientation=6)
    damaged = content.replace(b"Exif\0\0MM", b"Exif\0\0XX").replace(b"Exif\0\0II", b"Exif\0\0XX")
    assert damaged != content
    assert (_decode(damaged, 20, 30) == _decode(_content(pixels, "JPEG"), 20, 30)).all()
    (tmp_path / "a.jpg").write_bytes(damaged)
    assert pictures.dimensions(tmp_path / "a.jpg", where="it") == (30, 20)


def test_damaged_exif_does_not_reach_the_screen(tmp_path):
    pixels = _smooth(20, 30)
    content = _content(pixels, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0")  # its directory is broken off
    (tmp_path / "a.jpg").write_bytes(content)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with Image.open(io.BytesIO(content)) as file:
            file.getexif()
        assert [str(own.message)[:12] for own in told] == ["Corrupt EXIF"]
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: _decode(content, 20, 30), range(8)))
        assert pictures.dimensions(tmp_path / "a.jpg", where="it") == (30, 20)
        warnings.warn("of something else", UserWarning, stacklevel=1)
        assert len(told) == 2  # no other warning is lost
    assert all((own == _decode(_content(pixels, "JPEG"), 20, 30)).all() for own in found)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_grey_of_many_bits_is_scaled_by_its_bits(kind, bits):
    pixels = np.linspace(0, 2**bits - 1, 12 * 12).round().astype(np.uint16).reshape(12, 12)
    for channels in (1, 3):
        found = _decode(_content(pixels, kind), 12, 12, channels)
        assert (found == np.round(pixels[..., None] * (255 / (2**bits - 1)))).all()
    assert (_decode(_content(pixels // 2 + 2 ** (bits - 1), kind), 12, 12, 1).min() // 2) == 128 // 2, "a bright picture was stretched"


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.float32, -2.5, 7.0), (np.float32, 0.0, 1.0), (np.int32, -1000, 3000), (np.float32, 3.0, 3.0)])
def test_grey_that_is_no_brightness_is_scaled_from_its_least_to_its_largest(dtype, low, high):
    pixels = np.linspace(low, high, 100).astype(dtype).reshape(10, 10)
    found = _decode(_content(pixels, "TIFF"), 10, 10, 1)[..., 0]
    expected = (pixels - low) * (255 / (high - low or 1))
    assert np.abs(found - expected).max() <= 0.51
    with pytest.raises(UserError, match="no numbers"):
        _decode(_content(np.full((4, 4), np.nan, np.float32), "TIFF"), 4, 4)


def test_what_is_transparent_is_white():
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[:, 3:] = (200, 10, 60, 255)
    pixels[:, 2] = (100, 100, 100, 128)
    found = _decode(_content(pixels), 4, 6)
    assert (found[:, :2] == 255).all() and (found[:, 3:] == (200, 10, 60)).all() and (np.abs(found[:, 2].astype(int) - 177) <= 1).all()
    assert (_decode(_content(pixels[..., [0, 3]]), 4, 6, 1)[:, :2] == 255).all()
    indices = np.array([[0, 1, 1, 0]] * 4, np.uint8)
    picture, buffer = Image.frombytes("P", (4, 4), indices.tobytes()), io.BytesIO()
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(buffer, "PNG", transparency=0)
    assert _decode(buffer.getvalue(), 4, 4)[0].tolist() == [[255] * 3, [40, 50, 60], [40, 50, 60], [255] * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "RGBX"])
def test_every_mode_is_what_pillow_makes_of_it(mode):
    picture = Image.fromarray(_smooth(12, 12)).convert(mode)
    buffer = io.BytesIO()
    picture.save(buffer, "TIFF")
    assert (_decode(buffer.getvalue(), 12, 12) == np.asarray(picture.convert("RGB"))).all()
    assert np.abs(_decode(buffer.getvalue(), 12, 12, 1)[..., 0].astype(int) - np.asarray(picture.convert("RGB").convert("L"))).max() <= 1


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [Image.new("RGB", (8, 8), (shade, shade, shade)) for shade in (40, 200, 90)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {}))
    assert (_decode(buffer.getvalue(), 4, 4) == 40).all()


HURT = {"JPEG": _content(_smooth(30, 40), "JPEG", orientation=1), "PNG": _content(_smooth(12, 15), "PNG", orientation=3)}


@pytest.mark.parametrize("kind", list(HURT))
@settings(max_examples=100, deadline=2000)
@given(data=st.data(), size=st.sampled_from([(7, 5), (30, 40)]))
def test_damaged_pictures_are_read_or_refused_alike_with_and_without_simplejpeg(kind, data, size):
    content = hurt(HURT[kind], data)

    def outcome() -> bytes | str:
        try:
            return _decode(bytes(content), *size).tobytes()
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            return "refused"

    fast = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "simplejpeg", None)
        assert outcome() == fast


def test_colours_are_those_of_colorsys():
    hue = np.linspace(0, 0.99, 23)
    expected = [colorsys.hsv_to_rgb(h, 0.7, 0.4) for h in hue]
    np.testing.assert_allclose(pictures.colour(hue, 0.7, np.full(23, 0.4)), expected, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40), (60, 60)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_box_in_the_crop_is_the_crop_of_the_box(tmp_path, height, width, turned):
    pixels = np.zeros((height, width), np.uint8)
    pixels[height // 4 : height // 2, width // 5 : 4 * width // 5] = 255
    # Lying on its side in the file: boxes are of the picture turned upright.
    (tmp_path / "a.png").write_bytes(_content(np.rot90(pixels).copy() if turned else pixels, orientation=6 if turned else None))
    size = pictures.dimensions(tmp_path / "a.png", where="it")
    assert size == (width, height)
    box = (width // 5 / width, height // 4 / height, (4 * width // 5 - width // 5) / width, (height // 2 - height // 4) / height)
    for shape in ({"height": 20, "width": 20}, {"height": 12, "width": 24}):
        crop = pictures.read(tmp_path / "a.png", channels=1, where="it", **shape)[..., 0]
        mask = pictures.box_in_crop(box, size, **shape)
        # A pixel half covered may count as either.
        assert mask.any() and (crop[mask] >= 100).all() and (crop[~mask] <= 155).all()
