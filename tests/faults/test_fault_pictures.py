"""Pictures: the pixels that a tower reads are those of the tools that checkpoints were trained with."""

from __future__ import annotations

import random
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hidecmoe_jax as hj
from hidecmoe_jax.core.errors import CheckpointError, DataError
from hidecmoe_jax.data import images
from hidecmoe_jax.data.features import extract
from hidecmoe_jax.data.images import CLIP_MEAN, CLIP_STD, Limits, inspect, load, normalise
from hidecmoe_jax.data.items import Record, Turn
from hidecmoe_jax.data.records import Policy, read_file
from hidecmoe_jax.models.config import LlavaConfig
from hidecmoe_jax.port.checkpoints.pictures import image_fit
from hidecmoe_jax.runs.assistant import Assistant
from hidecmoe_jax.runs.config import RunConfig, as_recorded, config_of, from_mapping, to_mapping, write_config
from hidecmoe_jax.storage.files import write_json

GROUND = tuple(int(channel * 255) for channel in CLIP_MEAN)
SHAPES = [(640, 427), (427, 640), (90, 90), (37, 640), (640, 33), (11, 14), (336, 200), (301, 300)]


def photograph(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(width * 1000 + height)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def saved(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


# A10


def llava(picture: Image.Image, size: int) -> np.ndarray:
    """The published rule: a square of the longest side in the mean colour, the picture in its middle, then resized."""
    side = max(picture.size)
    square = Image.new("RGB", (side, side), GROUND)
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [56, 336])
@pytest.mark.parametrize("shape", SHAPES)
def test_fault_a10_padding_gives_the_bytes_of_llava(tmp_path, shape, size):
    picture = photograph(*shape)
    path = saved(tmp_path / "a.png", picture)
    assert np.array_equal(load(path, size), llava(picture, size))


@pytest.mark.parametrize("shape", [(640, 427), (427, 640), (90, 90), (37, 400), (301, 300)])
def test_fault_a10_both_rules_give_the_pixels_of_transformers(tmp_path, shape):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    size = 84
    sides = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    picture = photograph(*shape)
    path = saved(tmp_path / "a.png", picture)
    processors = {"crop": CLIPImageProcessorPil(**sides), "pad": LlavaImageProcessorPil(**sides, do_pad=True)}
    for fit, processor in processors.items():
        theirs = processor(picture, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
        # Back to whole levels: the mean and the deviation are applied in another order of operations.
        levels = np.rint((theirs * np.array(CLIP_STD) + np.array(CLIP_MEAN)) * 255)
        assert np.array_equal(load(path, size, fit=fit), levels)
        np.testing.assert_allclose(normalise(load(path, size, fit=fit)), theirs, atol=1e-6)


def test_fault_a10_a_giant_strip_needs_no_square_in_memory(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.png", Image.new("RGB", (12_000, 700), (255, 0, 0)))
    areas = []
    new = Image.new

    def counted(mode, size, *colour):
        areas.append(size[0] * size[1])
        return new(mode, size, *colour)

    monkeypatch.setattr(images.Image, "new", counted)
    pixels = load(path, 24)
    assert max(areas) < 12_000 * 700 and (pixels[12, :, 0] > 190).all() and (pixels[0] == GROUND).all()
    with pytest.raises(DataError, match="aspect 12000:700, at most 16:1"):
        load(path, 24, limits=Limits(max_aspect=16))


@pytest.mark.parametrize(
    ("layout", "config", "settings", "expected"),
    [
        ("llava", {"image_aspect_ratio": "pad"}, {}, "pad"),
        ("llava", {"image_aspect_ratio": "square"}, {}, "crop"),
        ("llava", {}, {}, "crop"),
        ("llava", {"image_aspect_ratio": "pad"}, {"do_center_crop": True}, "pad"),
        ("hf-llava", {}, {"do_center_crop": True}, "crop"),
        ("hf-llava", {}, {"do_center_crop": True, "do_pad": True}, "pad"),
        ("hf-llava", {}, {"image_processor": {"do_pad": True}}, "pad"),
        ("hf-llava", {}, None, "pad"),
        ("llama", {}, {"do_center_crop": True}, "pad"),
    ],
)
def test_fault_a10_a_converted_base_records_what_its_checkpoint_says(tmp_path, layout, config, settings, expected):
    if settings is not None:
        write_json(tmp_path / "preprocessor_config.json", settings)
    fit, note = image_fit(layout, tmp_path, config)
    assert fit == expected and "base.image_fit=" in note


@pytest.mark.parametrize(
    ("layout", "config", "settings"),
    [("llava", {"image_aspect_ratio": "anyres"}, {}), ("hf-llava", {}, {"do_center_crop": False})],
)
def test_fault_a10_other_rules_are_refused(tmp_path, layout, config, settings):
    write_json(tmp_path / "preprocessor_config.json", settings)
    with pytest.raises(CheckpointError, match="anyres|stretched"):
        image_fit(layout, tmp_path, config)


def test_fault_a10_a_run_keeps_its_rule_and_old_files_keep_their_bytes(tmp_path):
    plain = to_mapping(RunConfig())
    assert "image_fit" not in plain["base"] and "image_place" not in plain["template"]
    for fit in ("pad", "crop"):
        write_config(as_recorded(RunConfig(), fit), tmp_path)
        assert config_of(tmp_path).base.image_fit == fit
    chosen = from_mapping({"base": {"image_fit": "pad"}})
    assert chosen.base.image_fit == "pad" and from_mapping(to_mapping(chosen)) == chosen
    assert LlavaConfig().image_fit == "pad"


# A11: modes


def png(path: Path, width: int, depth: int, colour: int, rows: list[bytes], key: bytes) -> Path:
    """A PNG written by hand, with a transparent colour; Pillow writes none in these depths."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    signature = b"\x89PNG\r\n\x1a\n"
    body = chunk(b"IHDR", header) + chunk(b"tRNS", key) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(signature + body)
    return path


@pytest.mark.parametrize(
    ("depth", "row", "key", "shown"),
    [
        (16, struct.pack(">4H", 40_000, 40_001, 0, 65_535), 40_000, [None, 156, 0, 255]),
        (8, bytes([7, 8, 0, 255]), 7, [None, 8, 0, 255]),
        (4, bytes([0xA1, 0x0F]), 10, [None, 17, 0, 255]),
        (2, bytes([0b10_01_00_11]), 2, [None, 85, 0, 255]),
        (1, bytes([0b1010_0000]), 1, [None, 0, None, 0]),
    ],
)
def test_fault_a11_grey_of_any_depth_keeps_its_transparency(tmp_path, depth, row, key, shown):
    path = png(tmp_path / "a.png", 4, depth, 0, [row] * 4, struct.pack(">H", key))
    pixels = load(path, 4)
    truth = [GROUND if level is None else (level,) * 3 for level in shown]
    assert pixels[0].tolist() == [list(colour) for colour in truth]


def test_fault_a11_sixteen_bit_colour_keeps_its_transparency(tmp_path):
    row = struct.pack(">6H", 65_535, 0, 300, 65_535, 65_535, 65_535)
    path = png(tmp_path / "a.png", 2, 16, 2, [row] * 2, struct.pack(">3H", 65_535, 0, 300))
    assert load(path, 2)[0].tolist() == [list(GROUND), [255, 255, 255]]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "I;16", "I"]
)
def test_fault_a11_every_mode_shows_its_colour_and_its_holes(mode):
    from hidecmoe_jax.data.colour import to_rgb

    if mode.startswith("I"):
        dtype = np.uint16 if mode == "I;16" else np.int32
        image = Image.fromarray(np.full((2, 2), 257 * 200, dtype))
        assert image.mode == mode
        assert (np.asarray(to_rgb(image, "", GROUND)) == 200).all()
        return
    solid = Image.new("RGBA", (2, 2), (255, 255, 255, 255))
    clear = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    route = {
        "La": ("LA", "La"),
        "PA": ("P", "PA"),
        "HSV": ("RGB", "HSV"),
        "CMYK": ("RGB", "CMYK"),
        "YCbCr": ("RGB", "YCbCr"),
    }
    for step in route.get(mode, (mode,)):
        solid = solid.convert(step)
    assert (np.asarray(to_rgb(solid, "", GROUND)) == 255).all()
    if mode in ("LA", "La", "RGBA", "RGBa"):
        for step in route.get(mode, (mode,)):
            clear = clear.convert(step)
        assert (np.asarray(to_rgb(clear, "", GROUND)) == GROUND).all()


def test_fault_a11_levels_without_a_defined_brightness_are_refused(tmp_path):
    floats = saved(tmp_path / "a.tif", Image.fromarray(np.full((4, 4), 0.5, np.float32)))
    with pytest.raises(DataError, match=r"floats(.|\n)*8 or 16 bits"):
        load(floats, 4)
    deep = saved(tmp_path / "b.tif", Image.fromarray(np.full((4, 4), 70_000, np.int32)))
    with pytest.raises(DataError, match="70000"):
        load(deep, 4)


def test_fault_a11_deep_grey_with_white_as_zero_is_turned_round(tmp_path):
    raw = saved(tmp_path / "a.tif", Image.fromarray(np.full((4, 4), 65_535, np.uint16))).read_bytes()
    as_written = struct.pack("<HHLHH", 262, 3, 1, 1, 0)
    assert raw.count(as_written) == 1
    (tmp_path / "a.tif").write_bytes(raw.replace(as_written, struct.pack("<HHLHH", 262, 3, 1, 0, 0)))
    assert (load(tmp_path / "a.tif", 4) == 0).all()


# A8


def record(path: Path) -> Record:
    return Record("a", (str(path),), (Turn("<image>\nWhat is it?", "red"),), "train.json#0")


@pytest.fixture(scope="module")
def pocket() -> Assistant:
    return hj.load("pocket")


OUTSIDE = {
    "max_aspect": ({"max_aspect": 40.0}, (900, 30), "a.png"),
    "max_side": ({"max_side": 20_000}, (17_000, 900), "a.png"),
    "min_side": ({"min_side": 1}, (16, 1), "a.png"),
    "formats": ({"formats": ("PPM",)}, (16, 16), "a.ppm"),
}


@pytest.mark.parametrize("field", OUTSIDE)
def test_fault_a8_limits_hold_from_reading_to_answering(tmp_path, pocket, field):
    changes, size, name = OUTSIDE[field]
    path = saved(tmp_path / name, Image.new("RGB", size, (200, 10, 10)))
    item = {"id": "a", "image": name, "conversations": [{"from": "human", "value": "<image>\nWhat?"}]}
    item["conversations"].append({"from": "gpt", "value": "red"})
    write_json(tmp_path / "train.json", [item])
    limits = replace(Limits(), **changes)
    assert len(read_file(tmp_path / "train.json", tmp_path, test=False, policy=Policy(limits=limits)).records) == 1
    # Two of everything: patches that exceed the budget are decoded a second time.
    features = extract(pocket.base, pocket.tokenizer, [record(path)], batch=1, budget_gib=0.0, limits=limits)
    assert features.patches(np.array([0])).shape[:2] == (1, 1)
    config = pocket.run
    stream = replace(config.stream, policy=Policy(limits=limits))
    allowed = replace(pocket, run=replace(config, stream=stream))
    assert allowed.engine([record(path)]).inputs([record(path)]).features.paths == (str(path),)
    with pytest.raises(DataError, match=name):
        pocket.engine([record(path)]).inputs([record(path)])


def test_fault_a8_the_errors_file_of_a_config_is_written(tmp_path):
    from hidecmoe_jax.runs.opening import checked_stream

    write_json(tmp_path / "train.json", [{"id": "a", "conversations": []}])
    listed = tmp_path / "all.jsonl"
    mapping = {"stream": {"pocket": None, "tasks": [{"folder": str(tmp_path)}], "policy": {"errors": str(listed)}}}
    with pytest.raises(DataError):
        checked_stream(from_mapping(mapping)).require()
    assert "conversations" in listed.read_text(encoding="utf-8")


# C2


def exif_block(entries: list[tuple[int, int, int, bytes]], order: str = "<") -> bytes:
    base = 8 + 2 + 12 * len(entries) + 4
    body = b""
    tail = b""
    for tag, kind, count, value in sorted(entries):
        body += struct.pack(f"{order}HHL", tag, kind, count)
        if len(value) <= 4:
            body += value.ljust(4, b"\0")
        else:
            body += struct.pack(f"{order}L", base + len(tail))
            tail += value
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}L", 8) + struct.pack(f"{order}H", len(entries))
    return b"Exif\0\0" + head + body + b"\0\0\0\0" + tail


SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}
TAGS = [0x10E, 0x10F, 0x110, 0x11A, 0x11B, 0x128, 0x131, 0x132, 0x13B, 0x213, 0x8298, 0x8769, 0x8825, 0x9C9B, 0xC4A5]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_fault_c2_thousands_of_odd_exif_blocks_give_upright_pictures(tmp_path, kind):
    draw = random.Random(kind)
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    path = tmp_path / "a"
    for _ in range(1000):
        order = draw.choice("<>")
        # Shown after a quarter turn clockwise: left becomes top.
        entries = [(0x112, 3, 1, struct.pack(f"{order}H", 6))]
        for tag in draw.sample(TAGS, draw.randint(1, 4)):
            number = draw.choice(list(SIZES))
            count = draw.choice([0, 1, 1, 2, 5])
            entries.append((tag, number, count, draw.randbytes(count * SIZES[number])))
        image.save(path, kind, exif=exif_block(entries, order))
        pixels = load(path, 8).astype(int)
        assert pixels[1, 4].min() > 200 and pixels[6, 4].max() < 50 and abs(pixels[4, 0] - GROUND).max() < 12


@pytest.mark.parametrize("value", range(1, 9))
def test_fault_c2_every_orientation_is_that_of_pillow(tmp_path, value):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x112] = value
    for kind in ("PNG", "TIFF"):
        path = saved(tmp_path / f"a.{kind}", photograph(9, 6), format=kind, exif=exif)
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
        assert np.array_equal(load(path, 12), llava(upright, 12))


def test_fault_c2_a_tiff_with_a_mistyped_tag_is_upright(tmp_path):
    info = {0x112: 6, 306: "x", 315: "y"}
    image = Image.new("RGB", (40, 20), (0, 0, 0))
    image.paste((255, 255, 255), (0, 0, 20, 20))
    raw = saved(tmp_path / "a.tif", image, tiffinfo=info).read_bytes()
    # DateTime as one double at the end of the file, an IFD pointer that leads nowhere in the place of the artist.
    raw = raw.replace(struct.pack("<HHL", 306, 2, 2), struct.pack("<HHL", 306, 12, 9))
    raw = raw.replace(struct.pack("<HHL", 315, 2, 2), struct.pack("<HHL", 34_665, 4, 1))
    path = tmp_path / "b.tif"
    path.write_bytes(raw)
    pixels = load(path, 8).astype(int)
    assert pixels[1, 4].min() > 200 and pixels[6, 4].max() < 50


# D8, D9


def test_fault_d8_tiff_is_read_by_default_and_a_preview_is_not(tmp_path):
    scan = saved(tmp_path / "a.tif", photograph(12, 12))
    assert np.array_equal(load(scan, 12), np.asarray(photograph(12, 12)))
    pages = [photograph(12, 12), photograph(8, 8)]
    document = saved(tmp_path / "b.tif", pages[0], save_all=True, append_images=pages[1:], compression="tiff_lzw")
    assert np.array_equal(load(document, 12), np.asarray(pages[0]))
    raw_file = saved(tmp_path / "c.tif", photograph(12, 12), tiffinfo={254: 1})
    with pytest.raises(DataError, match="preview"):
        inspect(raw_file)


def test_fault_d9_a_large_camera_picture_is_scaled_while_it_is_decoded(tmp_path, monkeypatch):
    """The sizes of a camera with 81 megapixels, all limits and sides a tenth of the real ones."""
    limits = Limits(max_pixels=400_000, max_reduced_pixels=1_700_000)
    picture = photograph(104, 78).resize((1040, 780), Image.Resampling.BICUBIC)
    path = saved(tmp_path / "a.jpg", picture, quality=95)
    assert inspect(path, limits).width == 1040
    difference = np.abs(load(path, 56, limits=limits).astype(int) - load(path, 56))
    assert difference.mean() < 2
    with pytest.raises(DataError, match=r"811200 pixels, at most 400000 are decoded(.|\n)*JPEG"):
        load(saved(tmp_path / "a.png", picture), 56, limits=limits)
    bomb = saved(tmp_path / "b.jpg", Image.new("L", (1400, 1300)))
    with pytest.raises(DataError, match="1820000 pixels in a JPEG, at most 1700000 are read"):
        load(bomb, 56, limits=limits)
    progressive = saved(tmp_path / "c.jpg", Image.new("RGB", (1040, 900)), progressive=True)
    with pytest.raises(DataError, match="progressive JPEG, at most half of 1700000"):
        load(progressive, 56, limits=limits)


def test_fault_d9_an_81_megapixel_jpeg_is_within_the_limits(tmp_path):
    path = saved(tmp_path / "a.jpg", Image.new("L", (10_392, 7_794), 200), quality=30)
    assert inspect(path).width == 10_392
    pixels = load(path, 8)
    assert (np.abs(pixels[4].astype(int) - 200) <= 2).all()
