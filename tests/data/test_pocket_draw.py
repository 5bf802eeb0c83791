"""Drawn pictures against their own pixels: what the truth says is what an eye without it would measure."""

from __future__ import annotations

import numpy as np
import pytest

from hidecmoe_jax.core.errors import DataError
from hidecmoe_jax.data.pocket.draw import draw
from hidecmoe_jax.data.pocket.picture import COLOURS, FAMILIES, SHAPES, SIDE, UPPER, Picture

NAMES = list(COLOURS)
CENTRES = np.array(list(COLOURS.values()), float)


def paper_of(picture: Picture) -> np.ndarray:
    """The most frequent colour of a clean picture."""
    colours, counts = np.unique(picture.pixels.reshape(-1, 3), axis=0, return_counts=True)
    return colours[counts.argmax()].astype(int)


def ink_of(picture: Picture, least: int = 40) -> np.ndarray:
    """True where a clean picture is not paper."""
    return np.abs(picture.pixels.astype(int) - paper_of(picture)).sum(-1) > least


def extent(mask: np.ndarray) -> np.ndarray:
    """Box (x0, y0, x1, y1) of what is True, in pixels."""
    y, x = np.nonzero(mask)
    return np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], float)


def nearest_name(rgb: np.ndarray) -> str:
    """The colour name that an RGB value lies closest to."""
    return NAMES[int(np.abs(CENTRES - rgb).sum(-1).argmin())]


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_are_a_function_of_the_generator(family):
    one, same, other = (draw(family, np.random.default_rng([seed, 5])) for seed in (3, 3, 4))
    assert one.pixels.dtype == np.uint8 and one.pixels.shape == (SIDE, SIDE, 3)
    np.testing.assert_array_equal(one.pixels, same.pixels)
    assert one.things == same.things and one.extra == same.extra and one.ground == same.ground
    assert not np.array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("family", FAMILIES)
def test_boxes_lie_in_the_picture_and_have_an_inside(family):
    for seed in range(30):
        for thing in draw(family, np.random.default_rng([seed, 6])).things:
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1, (seed, thing)


@pytest.mark.parametrize(
    ("family", "constraints", "slack"),
    [
        ("scene", {"count": 1, "filled": True}, 1.6),
        ("scene", {"count": 1, "filled": False}, 2.6),  # half of the pen stands outside
        ("character", {}, 2.1),
        ("word", {}, 1.1),
        ("handwriting", {"look": "pen"}, 2.1),
        ("lines", {"count": 1}, 2.6),  # ends of a tilted stroke are cut square
    ],
)
def test_boxes_are_tight_around_the_ink(family, constraints, slack):
    for seed in range(25):
        picture = draw(family, np.random.default_rng([seed, 7]), worn=0, **constraints)
        boxes = np.array([thing.box for thing in picture.things]) * SIDE
        whole = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
        assert np.abs(extent(ink_of(picture)) - whole).max() <= slack, (seed, extent(ink_of(picture)), whole)


def test_a_scene_shows_every_thing_it_counts_and_nothing_else():
    for count in range(1, 7):
        for seed in range(6):
            picture = draw("scene", np.random.default_rng([seed, count]), count=count, filled=True, worn=0)
            assert len(picture.things) == count == picture.extra["count"]
            ink, claimed = ink_of(picture), np.zeros((SIDE, SIDE), int)
            for thing in picture.things:
                box = np.array(thing.box) * SIDE
                x0, y0, x1, y1 = (int(v) for v in (*np.floor(box[:2]), *np.ceil(box[2:])))
                assert np.abs(extent(ink[y0:y1, x0:x1]) + [x0, y0, x0, y0] - box).max() <= 2, (seed, thing)
                claimed[max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] += 1
            assert not ink[claimed == 0].any(), (seed, "ink that belongs to nothing")


def test_a_scene_has_the_colours_and_shapes_it_was_asked_for():
    rng = np.random.default_rng(8)
    picture = draw("scene", rng, shapes=["star", "ring"], colours=["red", "blue"], sizes=["small", "large"])
    assert [(t.name, t.colour, t.size) for t in picture.things] == [
        ("star", "red", "small"),
        ("ring", "blue", "large"),
    ]


def test_colours_are_those_of_the_pixels():
    for seed in range(40):
        picture = draw("scene", np.random.default_rng([seed, 9]), filled=True, worn=0)
        assert nearest_name(paper_of(picture)) == picture.ground
        ink = ink_of(picture)
        for thing in picture.things:
            x0, y0, x1, y1 = (round(v * SIDE) for v in thing.box)
            inside = picture.pixels[y0:y1, x0:x1][ink[y0:y1, x0:x1]]
            assert nearest_name(np.median(inside, axis=0)) == thing.colour, (seed, thing)


def test_cells_of_a_grid_are_what_the_table_says():
    for seed in range(20):
        picture = draw("grid", np.random.default_rng([seed, 10]), worn=0)
        k, cells = picture.extra["k"], picture.extra["cells"]
        middle = [int((i + 0.5) * SIDE / k) for i in range(k)]
        assert [[nearest_name(picture.pixels[y, x]) for x in middle] for y in middle] == cells
        assert [thing.colour for thing in picture.things] == [colour for row in cells for colour in row]


def test_bars_are_as_high_as_their_values():
    for seed in range(20):
        picture = draw("chart", np.random.default_rng([seed, 11]), values=[1, 9, 4, 6], worn=0)
        bars = [thing for thing in picture.things if thing.kind == "bar"]
        heights = []
        for bar in bars:
            x, floor = int(bar.centre[0] * SIDE), round(bar.box[3] * SIDE)
            column = picture.pixels[:floor, x].astype(int)
            same = np.abs(column - column[floor - 1]).sum(-1) == 0
            heights.append(floor - 1 - int(np.flatnonzero(~same).max()))
            assert nearest_name(column[floor - 1]) == bar.colour
        assert [bar.value for bar in bars] == [1, 9, 4, 6] == picture.extra["values"]
        unit = heights[1] / 9
        np.testing.assert_allclose(np.array(heights) / unit, [1, 9, 4, 6], atol=0.2)
        assert [bar.name for bar in bars] == picture.extra["labels"] == [t.name for t in picture.things[4:]]


def test_words_read_from_left_to_right():
    for seed in range(10):
        picture = draw("word", np.random.default_rng([seed, 12]), length=4, alphabet=UPPER)
        assert "".join(thing.name for thing in picture.things) == picture.extra["text"]
        assert np.all(np.diff([thing.centre[0] for thing in picture.things]) > 0)


def test_wear_only_changes_pixels():
    changed = 0
    for seed in range(20):
        clean, worn = (draw("scene", np.random.default_rng([seed, 13]), count=2, worn=w) for w in (0, 1))
        assert clean.things == worn.things
        changed += not np.array_equal(clean.pixels, worn.pixels)
    assert 8 <= changed <= 20


def test_every_shape_can_be_told_from_every_other():
    pictures = {
        shape: ink_of(
            draw(
                "scene",
                np.random.default_rng(14),
                shapes=[shape],
                colours=["black"],
                sizes=["large"],
                ground="white",
                worn=0,
            )
        )
        for shape in SHAPES
    }
    for one in SHAPES:
        for two in SHAPES:
            if one != two:
                assert (pictures[one] ^ pictures[two]).sum() > 10, (one, two)


@pytest.mark.parametrize(
    ("family", "constraints", "said"),
    [
        ("seen", {}, "scene"),
        ("scene", {"cuont": 2}, "count"),
        ("scene", {"shapes": ["star"], "count": 2}, "disagree"),
    ],
)
def test_wrong_wishes_are_refused(family, constraints, said):
    with pytest.raises(DataError, match=said):
        draw(family, np.random.default_rng(0), **constraints)
