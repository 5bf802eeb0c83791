"""`hidecmoe completion`: the script by which a shell completes commands, options and their values."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.commands import COMMANDS, OPTIONS, PREFIXES, function_of
from hidecmoe_jax.cli.terminal import print_text

TAKES_CONFIG = ("run", "compare", "plan", "config show", "data check", "audit")

SCRIPT = """\
# Completion of hidecmoe; made by `hidecmoe completion`. Make it again after an update.
_hidecmoe() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}"
  local command="${{COMP_WORDS[1]}}" words="" first=2
  COMPREPLY=()
  if (( COMP_CWORD == 1 )); then
    COMPREPLY=( $(compgen -W "{commands}" -- "$current") )
    return
  fi
  case "$command" in
{prefixes}
  esac
  if (( COMP_CWORD >= first )); then
    case "$command $previous" in
{values}
    esac
    if [[ -z "$words" && "$current" == -* ]]; then
      case "$command" in
{options}
      esac
    elif [[ -z "$words" ]] && (( COMP_CWORD == first )); then
      case "$command" in
{configs}
      esac
    fi
  fi
  # No reply: the shell completes names of files.
  [[ -z "$words" ]] || COMPREPLY=( $(compgen -W "$words" -- "$current") )
}}
complete -o default -F _hidecmoe hidecmoe
"""
# zsh reads completions of bash with its own module.
FOR_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: Annotated[Literal["bash", "zsh"], Positional, arg(metavar="SHELL")], /) -> None:
    """Print the script by which bash or zsh completes commands, options, their values and names of configs.

    bash reads it from `~/.local/share/bash-completion/completions/hidecmoe` when it is first needed; for zsh, let
    `.zshrc` source the file.

    Examples:
      $ hidecmoe completion bash > ~/.local/share/bash-completion/completions/hidecmoe
      $ hidecmoe completion zsh > ~/.hidecmoe.zsh

    Args:
      shell: bash or zsh.
    """
    print_text((FOR_ZSH if shell == "zsh" else "") + script(), end="")


def script() -> str:
    """The function of bash and its registration."""
    firsts = dict.fromkeys(name.partition(" ")[0] for name in COMMANDS)
    everywhere = [option.partition(" ")[0] for option in OPTIONS]
    prefixes = []
    for prefix in sorted(PREFIXES):
        inner = " ".join(name.partition(" ")[2] for name in COMMANDS if name.startswith(f"{prefix} "))
        prefixes.append(
            f'    {prefix}) first=3; command="$command ${{COMP_WORDS[2]}}"; (( COMP_CWORD > 2 )) || words="{inner}" ;;'
        )
    options = []
    values = []
    for name in COMMANDS:
        of_command = options_of(name)
        flags = " ".join(["--help", *of_command, *everywhere])
        options.append(f'        "{name}") words="{flags}" ;;')
        for option, choices in of_command.items():
            if choices:
                values.append(f'      "{name} {option}") words="{" ".join(choices)}" ;;')
    named = "|".join(f'"{name}"' for name in TAKES_CONFIG)
    names = " ".join(hj.shipped_configs())
    # A file that begins so is completed too: where no name of a config fits, there is no reply.
    configs = f'        {named}) words="{names}"; [[ -n "$(compgen -W "$words" -- "$current")" ]] || words="" ;;'
    return SCRIPT.format(
        commands=" ".join(firsts), prefixes="\n".join(prefixes), values="\n".join(values),
        options="\n".join(options), configs=configs,
    )  # fmt: skip


def options_of(command: str) -> dict[str, tuple[str, ...]]:
    """The options of a command by name, each with the values that it can take where they are a fixed choice."""
    return dict(_options(function_of(command)))


def _options(call: Callable) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Keyword arguments of a command's function, as tyro names them."""
    hints = typing.get_type_hints(call, include_extras=True)
    for name, parameter in inspect.signature(call).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        hint = hints[name]
        names = [extra.name for extra in getattr(hint, "__metadata__", ()) if getattr(extra, "name", None)]
        option = "--" + (names or [name.strip("_")])[0].replace("_", "-")
        plain = typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint
        choices = typing.get_args(plain) if typing.get_origin(plain) is Literal else ()
        # A choice of two words is not completed: the shell would split it.
        yield option, tuple(choice for choice in map(str, choices) if " " not in choice)
