"""Settings of `adapter_config.json`: rank, scale, dropout, and whether A and B are the whole update.

Some initialisations of LoRA (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) also change the base from W to W - s B0 A0. Their
factors on the unchanged W are another model, and nothing in the tensors shows it. So only settings are accepted whose
update is known to be `scale * B A` on the published base; all others are refused by field name. So is a field that is
on (true, a number, a text) and not in a table here: a later PEFT may have given it any meaning.
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

WHOLE: dict[str, tuple] = {
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
    # Where biases were trained they are tensors of the file, which are refused as unknown; LLaMA's linears have none.
    "bias": ("none", "lora_only", "all", None),
    # It changes the scale, so that a text such as "false", which Python takes for true, must not pass.
    "use_rslora": (True, False, None),
}
"""Fields and the values under which A and B are the whole update."""
ONE_EXPERT: dict[str, tuple] = {"expert_num": (1, None), "cur_task": (0, None)}
"""The same of an adapter with a single pair of factors at every linear, which is no mixture of experts."""
READ = (
    "peft_type", "r", "lora_alpha", "lora_dropout", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save",
    "base_model_name_or_path", "expert_num", "cur_task",
)  # fmt: skip
"""Fields that reading an adapter uses or compares with its tensors."""
HARMLESS: dict[str, str] = {
    "task_type": "names the class around the model, which adds nothing to a language model",
    "auto_mapping": "names the class and library of the base",
    "peft_version": "names the writer",
    "revision": "names a version of the base; shapes and, if recorded, the SHA-256 are compared",
    "inference_mode": "whether the factors train",
    "merge_weights": "when an old PEFT folded the factors in; they are stored apart",
    "target_modules": "where factors are, which the tensors' names say",
    "exclude_modules": "where none are",
    "layers_to_transform": "which layers have factors",
    "layers_pattern": "the name of the list of layers",
    "runtime_config": "where numbers are computed",
    "megatron_core": "the module of a parallel layer; its settings are in `megatron_config`, which is refused",
    "qalora_group_size": "has an effect with `use_qalora` alone, which is refused",
    "ensure_weight_tying": "of tables that are saved whole, which are refused",
    "loftq_config": "how factors began; `init_lora_weights` decides",
    "eva_config": "how factors began; the ranks it chose are in `rank_pattern`",
    "corda_config": "how factors began; `init_lora_weights` decides",
    "lora_ga_config": "how factors began; `init_lora_weights` decides",
    "velora_config": "memory of activations in training",
    "lora_dtype": "dtype of the factors in training; the file has its own",
    "lorap_lr_ratio": "a learning rate",
    "lorap_emb_lr": "a learning rate",
    "task_embedding_dim": "width of a table that no forward pass of HiDe or CoIN reads",
}
"""Fields that may have any value, with the reason why the update does not depend on them."""
OF_EXPERTS = "MOE_LORA_"  # begins the `peft_type` of HiDe's and CoIN's tools
PROJECTORS = ("mm_projector", "multi_modal_projector")
ONE_SCALE: dict[str, tuple] = {
    "use_rslora": (False, None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
}
"""Fields that HiDe's and CoIN's tools ignore: they use one scale, alpha / r, for every module."""


def read_config(folder: Path) -> dict[str, Any]:
    """The config of an adapter folder.

    Raises:
      CheckpointError: it is missing, or not a JSON object.
      ConfigError: the adapter is more than a pair of factors (DoRA, a changed base), or has a setting that is unknown.
    """
    if not (folder / CONFIG).is_file():
        raise CheckpointError(
            "no adapter there",
            where=str(folder / CONFIG),
            why="the file with its rank and scale is missing",
            remedy="give the folder that the adapter was saved to, with its adapter_config.json",
        )
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise CheckpointError(
            "the adapter's config is no JSON object",
            where=str(folder / CONFIG),
            why=f"it holds {config!r:.60}",
            remedy="get the adapter_config.json it was saved with",
        )
    kind = config.get("peft_type")
    of_coin_or_hide = str(kind).startswith(OF_EXPERTS)
    if kind not in (None, "LORA") and not of_coin_or_hide:
        _refuse("peft_type", kind, "'LORA' or 'MOE_LORA_...'", folder)
    require(config, WHOLE, folder)
    _refuse_unknown(config, folder)
    return config


def _refuse_unknown(config: Mapping[str, Any], folder: Path) -> None:
    """Refuses a setting that is on and that nothing here reads: it may change what the factors mean."""
    for key, value in config.items():
        is_known = key in WHOLE or key in READ or key in HARMLESS
        if value and not is_known:
            _refuse(key, value, "null, false, 0 or empty", folder)


def require_saved_modules(config: Mapping[str, Any], *, has_projector: bool, folder: Path) -> None:
    """Refuses an adapter that names a module in `modules_to_save` whose weights the folder does not hold.

    Args:
      has_projector: the folder holds weights of the projector, the one module beside the factors that can be adopted.
    """
    names = config.get("modules_to_save") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        _refuse("modules_to_save", names, "a list of module names", folder)
    for name in names:
        parts = name.split(".")
        is_projector = any(part in PROJECTORS for part in parts)
        if is_projector and has_projector:
            continue
        raise CheckpointError(
            "a trained module of the adapter is missing",
            where=f"{folder / CONFIG}: modules_to_save",
            why=f"it names {name!r}, and no tensor of the folder belongs to it",
            remedy="copy the whole folder, non_lora_trainables included; modules other than the projector cannot be "
            "adopted: merge them into the base with their own tool, and convert the merged model",
        )


def require(config: Mapping[str, Any], allowed: Mapping[str, tuple], folder: Path) -> None:
    """Refuses the first field with another value than those allowed; absent fields are allowed."""
    for key, values in allowed.items():
        if key not in config:
            continue
        value = config[key]
        # Types are compared as well: 1 == True in Python, but 1 is another setting.
        is_allowed = False
        for option in values:
            if type(value) is type(option) and value == option:
                is_allowed = True
        if not is_allowed:
            expected = " or ".join(map(repr, values))
            _refuse(key, value, expected, folder)


def _refuse(key: str, value: Any, expected: str, folder: Path) -> None:
    raise ConfigError(
        "this adapter is more than LoRA on linears",
        where=f"{folder / CONFIG}: {key}",
        why=f"found {value!r:.80}, expected {expected}: with anything else, A and B may not be all that it adds to its "
        "base",
        remedy="merge it into its base with its own tool, and convert the merged model with `hidecmoe convert`",
    )


def above_zero(config: Mapping[str, Any], key: str, where: str) -> float:
    """The field's value, a finite number above zero; raises ConfigError for any other."""
    what = "the adapter does not say how it is scaled"
    value = config.get(key)
    return _number(value, lambda value: 0 < value < math.inf, what, f"{where}: {key}", "a number above zero")


def dropout(config: Mapping[str, Any], folder: Path) -> float:
    """Dropout during training; 0 if the field is absent."""
    what = "the adapter's dropout is no share"
    where = f"{folder / CONFIG}: lora_dropout"
    value = config.get("lora_dropout") or 0.0
    return _number(value, lambda value: 0 <= value < 1, what, where, "a number from 0 to below 1")


def _number(value: Any, fits: Callable[[float], bool], what: str, where: str, expected: str) -> float:
    # bool is a subclass of int.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not fits(value):
        raise ConfigError(
            what,
            where=where,
            why=f"found {value!r}, expected {expected}",
            remedy="get the adapter_config.json it was saved with",
        )
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
    patterns = config.get(key) or {}
    where = f"{folder / CONFIG}: {key}"
    if not isinstance(patterns, dict):
        raise ConfigError("a pattern is no JSON object", where=where, why=f"found {patterns!r:.60}")
    numbers: dict[Any, float] = {}
    # Reversed, so that an earlier pattern overwrites a later one.
    for pattern in reversed(patterns):
        try:
            matcher = re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise ConfigError(
                "a pattern is no regular expression", where=f"{where}: {pattern}", why=str(error)
            ) from error
        matched = []
        for module, name in modules.items():
            if matcher.match(name):
                matched.append(module)
        if not matched:
            example = next(iter(modules.values()), None)
            raise ConfigError(
                "a pattern of the adapter matches none of its modules",
                where=f"{where}: {pattern}",
                why=f"a module is called {example}",
                remedy="write the module's name as in the adapter's tensors, or remove the pattern",
            )
        number = above_zero(patterns, pattern, where)
        numbers |= dict.fromkeys(matched, number)
    return numbers
