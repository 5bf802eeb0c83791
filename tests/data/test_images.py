"""Pictures against a numpy truth, and every file that must never reach a decoder."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.images import CLIP_MEAN, CLIP_STD, Limits, file_digest, inspect, load, normalise

GROUND = (122, 116, 104)


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def png_header_only(path: Path, width: int, height: int) -> Path:
    """A one-bit grey PNG that is all zeros: tiny on disk, huge in memory."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress(bytes((width + 7) // 8 + 1) * 64, 9)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def test_wide_picture_is_centred_on_the_mean_colour(tmp_path):
    pixels = load(saved(tmp_path / "a.png", Image.new("RGB", (40, 20), (255, 0, 0))), 16)
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    # Padded first and resized then, so that the two rows on each side of an edge are blends.
    assert (pixels[6:10] == (255, 0, 0)).all()
    assert (pixels[:2] == GROUND).all() and (pixels[14:] == GROUND).all()


def test_square_picture_of_the_wanted_size_is_unchanged(tmp_path):
    truth = np.random.default_rng(0).integers(0, 256, (12, 12, 3), np.uint8)
    assert np.array_equal(load(saved(tmp_path / "a.png", Image.fromarray(truth)), 12), truth)


def bicubic(count: int, size: int) -> np.ndarray:
    """Weights [size, count] of antialiased cubic convolution, a = -1/2 (Keys 1981), edges renormalised."""
    scale = count / size
    distance = (np.arange(count) + 0.5 - (np.arange(size)[:, None] + 0.5) * scale) / max(scale, 1)
    x = np.abs(distance)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("side", [10, 40])
def test_resizing_is_antialiased_cubic_convolution(tmp_path, side):
    picture = np.random.default_rng(0).integers(64, 192, (side, side, 3), np.uint8)
    weights = bicubic(side, 16)
    truth = np.einsum("ij,jkc,lk->ilc", weights, picture.astype(float), weights)
    pixels = load(saved(tmp_path / "a.png", Image.fromarray(picture)), 16)
    assert np.abs(pixels - truth).max() <= 1.5  # Pillow rounds after each of its two passes


def test_normalise_is_the_formula():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 3, 3), np.uint8)
    truth = (pixels / 255.0 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)
    assert normalise(pixels).dtype == np.float32
    np.testing.assert_allclose(normalise(pixels), truth, atol=1e-6)


def test_digest_follows_content_not_name(tmp_path):
    a = saved(tmp_path / "a.png", Image.new("L", (4, 4), 1))
    b = saved(tmp_path / "b.png", Image.new("L", (4, 4), 1))
    c = saved(tmp_path / "c.png", Image.new("L", (4, 4), 2))
    assert file_digest(a) == file_digest(b) != file_digest(c)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"positives/12.jpg 1 249", "begins with"),
    ],
)
@pytest.mark.parametrize("judge", [inspect, lambda path: load(path, 8)])
def test_what_is_no_picture_is_named(tmp_path, content, why, judge):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError, match=why) as caught:
        judge(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"])
def test_truncated_file_is_refused(tmp_path, kind):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = saved(tmp_path / "whole", Image.fromarray(noise), format=kind)
    assert load(path, 8).shape == (8, 8, 3)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="damaged|known format"):
        load(path, 8)


def test_flipped_bytes_never_give_another_error(tmp_path):
    rng = np.random.default_rng(1)
    noise = rng.integers(0, 256, (24, 24, 3), np.uint8)
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "TIFF"):
        path = saved(tmp_path / "a", Image.fromarray(noise), format=kind)
        raw = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(40):
            broken = raw.copy()
            broken[rng.integers(0, len(raw), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(broken.tobytes())
            try:
                assert load(path, 8).shape == (8, 8, 3)
            except DataError:
                pass


@pytest.mark.parametrize("side", [9_000, 13_000, 40_000])
def test_decompression_bomb_is_refused_before_decoding(tmp_path, side):
    path = png_header_only(tmp_path / "bomb.png", side, side)
    assert path.stat().st_size < 30_000
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns between its two own limits
        with pytest.raises(DataError, match="pixels|px on a side"):
            load(path, 8)


def test_extreme_aspect_and_tiny_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match="px on a side, at most 16384"):
        inspect(png_header_only(tmp_path / "a.png", 65_000, 2))
    with pytest.raises(DataError, match="aspect 6500:2, at most 20:1"):
        inspect(png_header_only(tmp_path / "b.png", 6_500, 2))
    with pytest.raises(DataError, match="1 px on a side, at least 2"):
        inspect(saved(tmp_path / "c.png", Image.new("RGB", (1, 1))))
    strip = saved(tmp_path / "d.png", Image.new("RGB", (200, 10), (255, 255, 255)))
    assert load(strip, 8).shape == (8, 8, 3)
    with pytest.raises(DataError, match="aspect 200:10, at most 10:1"):
        inspect(saved(tmp_path / "e.png", Image.new("RGB", (200, 10))), Limits(max_aspect=10))


def test_sixteen_bit_grey_is_rescaled_not_clipped(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 40_000, np.uint16))
    assert (load(saved(tmp_path / "a.png", grey), 8) == round(40_000 / 257)).all()


def test_transparency_shows_the_mean_colour(tmp_path):
    clear = saved(tmp_path / "a.png", Image.new("RGBA", (8, 8), (255, 0, 0, 0)))
    assert (load(clear, 8) == GROUND).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert (load(saved(tmp_path / "b.png", palette, transparency=0), 8) == GROUND).all()


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (16, 8), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: left becomes top
    pixels = load(saved(tmp_path / "a.png", image, exif=exif), 16)
    assert (pixels[:8, 4:12] == 255).all() and (pixels[8:, 4:12] == 0).all()
    assert (pixels[:, :4] == GROUND).all()


def test_cmyk_grey_one_bit_and_first_frame(tmp_path):
    cmyk = saved(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)), quality=100)
    assert np.abs(load(cmyk, 8).astype(int) - (255, 0, 0)).max() <= 3
    assert (load(saved(tmp_path / "b.png", Image.new("1", (8, 8), 1)), 8) == 255).all()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((0, 0, 255), (0, 255, 0))]
    path = saved(tmp_path / "c.gif", frames[0], save_all=True, append_images=frames[1:])
    assert (load(path, 8) == (0, 0, 255)).all()


def test_only_regular_files_are_read(tmp_path):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, Path("/dev/zero"), tmp_path / "none.png"):
        with pytest.raises(DataError, match="regular files|No such file"):
            inspect(path)


def test_formats_outside_the_list_are_refused(tmp_path):
    path = saved(tmp_path / "a.ppm", Image.new("RGB", (8, 8)))
    with pytest.raises(DataError, match="JPEG, PNG"):
        inspect(path)
