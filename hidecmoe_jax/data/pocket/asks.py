"""Questions with known answers about drawn pictures, for general instruction tuning.

Each function yields (question, answer) turns about a picture; `ASKS` lists the functions of every family. Questions are
short, because several turns share one picture and one sequence, and the vision tokens are the larger part of it. Yes
and no are balanced, and a question names a thing only by a description that fits nothing else on the picture.
"""

from __future__ import annotations

from hidecmoe_jax.data.pocket import ask_reading, ask_scene
from hidecmoe_jax.data.pocket.ask_base import Asker

SCENE: tuple[Asker, ...] = (
    ask_scene.describe_things,
    ask_scene.locate_things,
    ask_scene.exist_things,
    ask_scene.relate_things,
    ask_scene.count_things,
    ask_scene.list_things,
)

# The order of the functions is part of the data: they draw from one generator.
ASKS: dict[str, tuple[Asker, ...]] = {
    "scene": SCENE,
    "mixed": SCENE,
    "character": (ask_reading.read_character,),
    "handwriting": (ask_reading.read_character,),
    "word": (ask_reading.read_word,),
    "chart": (ask_reading.read_chart,),
    "grid": (ask_reading.read_grid,),
    "texture": (ask_reading.read_texture,),
    "lines": (ask_reading.read_lines,),
}
