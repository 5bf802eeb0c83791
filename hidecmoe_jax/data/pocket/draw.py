"""Drawing of a picture of any family: the one entry of the drawing engine.

`draw("scene", rng)` returns a picture with its ground truth. All randomness comes from `rng`, so equal generators give
equal pictures. Constraints fix what is otherwise random: `draw("chart", rng, values=[3, 7, 5])`. One core draws well
over a thousand pictures a second.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np

from hidecmoe_jax.core.errors import DataError, nearest
from hidecmoe_jax.data.pocket.draw_chart import chart
from hidecmoe_jax.data.pocket.draw_fields import grid, texture
from hidecmoe_jax.data.pocket.draw_mixed import mixed
from hidecmoe_jax.data.pocket.draw_shapes import lines, scene
from hidecmoe_jax.data.pocket.draw_text import character, handwriting, word
from hidecmoe_jax.data.pocket.picture import SIDE, Picture

FAMILY_DRAWERS: dict[str, Callable[..., Picture]] = {
    "scene": scene,
    "character": character,
    "handwriting": handwriting,
    "word": word,
    "chart": chart,
    "grid": grid,
    "texture": texture,
    "lines": lines,
    "mixed": mixed,
}


def draw(family: str, rng: np.random.Generator, size: int = SIDE, **constraints) -> Picture:
    """Draws one picture.

    Args:
      family: one of `FAMILIES`.
      rng: the only source of randomness.
      size: side in pixels. The sizes "small" and "large" scale with it, but noise is made for at most `SIDE`; larger
        pictures need `worn=0`.
      **constraints: keyword arguments of the family's drawer, for example `count=3` of a scene; `worn=0` gives a
        picture without noise and blur.

    Raises:
      DataError: unknown family or constraint, or one that cannot be met.
    """
    if family not in FAMILY_DRAWERS:
        raise DataError(f"no family of pictures called {family!r}", why=nearest(family, FAMILY_DRAWERS))
    drawer = FAMILY_DRAWERS[family]
    # Looking at the signature costs about as much as drawing, so it happens only where there is something to check.
    if constraints:
        _check_constraints(family, drawer, constraints)
    return drawer(rng, size, **constraints)


def _check_constraints(family: str, drawer: Callable[..., Picture], constraints: dict) -> None:
    parameters = inspect.signature(drawer).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for name in constraints:
        if name not in known:
            raise DataError(f"a {family} cannot be asked for {name!r}", why=nearest(name, known))
