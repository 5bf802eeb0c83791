"""What `adapter_config.json` says, read by name and by type: rank, scale, and whether A and B are the whole update.

Some ways to start LoRA (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the base they train on: from W to W - s B0 A0.
Their factors added to the unchanged W are another model, and nothing in the tensors tells. So only those settings pass
whose update is known to be `scale * B A` on the base as it is published; every other is refused by its field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.data.jsonfile import read_json
from hidecmoe_jax.port.adapters.peft import CONFIG

_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
WHOLE: dict[str, tuple] = {
    "init_lora_weights": _STARTS, "use_dora": (False, None), "bias": ("none", None), "fan_in_fan_out": (False, None),
    "lora_bias": (False, None), "use_qalora": (False, None), "target_parameters": (None, [], {}),
    "trainable_token_indices": (None, [], {}), "layer_replication": (None, [], {}), "megatron_config": (None, {}),
    "alora_invocation_tokens": (None, []), "use_bdlora": (False, None), "arrow_config": (None,),
    "kasa_config": (None,), "monteclora_config": (None,),
}  # fmt: skip
"""Settings under which A and B are the whole update, and what they may be."""
ONE_SCALE: dict[str, tuple] = {"use_rslora": (False, None), "rank_pattern": ({}, None), "alpha_pattern": ({}, None)}
"""What HiDe's and CoIN's tools do not know: one scale, alpha / r, holds everywhere."""


def read_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter folder.

    Raises:
      CheckpointError: there is none, or it is no JSON object.
      ConfigError: a kind of adapter that is no plain pair of factors (DoRA, biases, a changed base).
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            "no adapter there", where=str(folder / CONFIG), why="the file is missing: it says rank and scale",
            remedy="give the folder that the adapter was saved to, with its adapter_config.json",
        )  # fmt: skip
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise CheckpointError(
            "the adapter's config is no JSON object", where=str(folder / CONFIG), why=f"it holds {config!r:.60}",
            remedy="get the adapter_config.json it was saved with",
        )  # fmt: skip
    kind = config.get("peft_type")
    if kind not in (None, "LORA") and not str(kind).startswith("MOE_LORA_"):
        _refuse("peft_type", kind, "'LORA' or 'MOE_LORA_...'", folder)
    require(config, WHOLE, folder)
    return config


def require(config: Mapping[str, Any], allowed: Mapping[str, tuple], folder: Path) -> None:
    """Refuses settings other than those allowed, by the first one's field; one that is absent is allowed."""
    for key, values in allowed.items():
        # 1 == True, and a config that says 1 means something else.
        if key in config and not any(config[key] == value and type(config[key]) is type(value) for value in values):
            _refuse(key, config[key], " or ".join(map(repr, values)), folder)


def _refuse(key: str, found: Any, wanted: str, folder: Path) -> None:
    raise ConfigError(
        "this adapter is more than LoRA on linears", where=f"{folder / CONFIG}: {key}",
        why=f"found {found!r}, expected {wanted}: with anything else, A and B are not all that it adds to its base",
        remedy="merge it into its base with its own tool, and convert the merged model with `hidecmoe convert`",
    )  # fmt: skip


def above_zero(config: Mapping[str, Any], key: str, where: str) -> float:
    """A number above zero that must be there."""
    what = "the adapter does not say how it is scaled"
    return _number(config.get(key), lambda value: 0 < value < math.inf, what, f"{where}: {key}", "a number above zero")


def dropout(config: Mapping[str, Any], folder: Path) -> float:
    """The dropout that the adapter was trained with; none where it says none."""
    what, where = "the adapter's dropout is no share", f"{folder / CONFIG}: lora_dropout"
    value = config.get("lora_dropout") or 0.0
    return _number(value, lambda value: 0 <= value < 1, what, where, "a number from 0 to below 1")


def _number(value: Any, fits: Callable[[float], bool], what: str, where: str, wanted: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ConfigError(
            what, where=where, why=f"found {value!r}, expected {wanted}",
            remedy="get the adapter_config.json it was saved with",
        )  # fmt: skip
    return float(value)


def of_modules(config: Mapping[str, Any], key: str, modules: Mapping[Any, str], folder: Path) -> dict[Any, float]:
    """Numbers that `rank_pattern` or `alpha_pattern` gives single modules; those without one are left out.

    As in PEFT, a pattern is a regular expression for a module's whole name or for what follows one of its dots, and the
    first that matches counts.

    Args:
      modules: what to file a module under -> its name in the model that was trained.

    Raises:
      ConfigError: no object, no regular expression, no number above zero, or a pattern that matches no module.
    """
    patterns, where = config.get(key) or {}, f"{folder / CONFIG}: {key}"
    if not isinstance(patterns, dict):
        raise ConfigError("a pattern is no JSON object", where=where, why=f"found {patterns!r:.60}")
    own: dict[Any, float] = {}
    for pattern in reversed(patterns):
        try:
            matcher = re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise ConfigError(
                "a pattern is no regular expression", where=f"{where}: {pattern}", why=str(error)
            ) from error
        matched = [place for place, name in modules.items() if matcher.match(name)]
        if not matched:
            raise ConfigError(
                "a pattern of the adapter matches none of its modules", where=f"{where}: {pattern}",
                why=f"a module is called {next(iter(modules.values()), None)}",
                remedy="write it as the module is called in the adapter's tensors, or take it out",
            )  # fmt: skip
        own |= dict.fromkeys(matched, above_zero(patterns, pattern, where))
    return own
