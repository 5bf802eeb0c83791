"""`hidecmoe config list`, `config show` and `config schema`: which configs are shipped, and what one says in full."""

from __future__ import annotations

import json
import textwrap
from typing import Annotated, Literal

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Assignments, Config, Folders, read_config
from hidecmoe_jax.core.errors import ConfigError, nearest

WIDTH = 118


def list_configs(group: Annotated[str, Positional, arg(metavar="FOLDER")] = "") -> None:
    """List the configs that are shipped, by the names that `run`, `compare` and `plan` take.

    Examples:
      $ hidecmoe config list
      $ hidecmoe config list ucit

    Args:
      group: show those of one folder alone.
    """
    configs = hj.shipped_configs()
    wanted = group.strip("/")
    chosen = {name: sentence for name, sentence in configs.items() if not wanted or name.startswith(f"{wanted}/")}
    if not chosen:
        folders = sorted({name.rpartition("/")[0] for name in configs})
        raise ConfigError(
            "no config is in that folder", where=group, why=f"folders are {', '.join(folders)}",
            remedy=nearest(wanted, folders),
        )  # fmt: skip
    column = max(map(len, chosen)) + 2
    for name, sentence in chosen.items():
        print_text(f"{name:<{column}}{textwrap.shorten(sentence, WIDTH - column, placeholder=' ...')}")


def show(config: Config, /, *, tasks: Folders = (), set: Assignments = ()) -> None:
    """Show a config with all of its values, also those that it leaves at their defaults, as YAML that `run` takes.

    Examples:
      $ hidecmoe config show pocket/hidecmoe
      $ hidecmoe config show pocket/hide --set tune.epochs=1 --tasks my/birds > mine.yaml

    Args:
      config: YAML file or name of a shipped one.
      tasks: task folders in the order to learn them, instead of the config's. (repeatable)
      set: config values that replace those of the file, such as tune.epochs=2. (repeatable)
    """
    print_text(hj.full_config_text(read_config(config, sets=set, tasks=tasks)), end="")


def schema(*, of: Literal["config", "ask", "data check", "doctor", "inspect", "overlap", "plan"] = "config") -> None:
    """Print the JSON Schema of configs, with which an editor completes keys and marks mistakes while one writes.

    For the YAML extension of VS Code and other editors with yaml-language-server, write it to a file and let the first
    line of a config name it: `# yaml-language-server: $schema=hidecmoe.schema.json`.

    Examples:
      $ hidecmoe config schema > hidecmoe.schema.json
      $ hidecmoe config schema --of inspect > inspect.schema.json

    Args:
      of: config, or a command: the schema of the JSON that it prints.
    """
    wanted = hj.config_schema() if of == "config" else hj.record_schema(of)
    print_text(json.dumps(wanted, indent=1, ensure_ascii=False))
