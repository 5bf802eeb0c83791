"""Entry point of `hidecmoe COMMAND ...`: selects the command's function, has tyro parse its arguments, prints errors.

Only the module of the selected command is imported, and command modules reach the library through the lazy
`hidecmoe_jax` facade. Help and usage errors therefore need no JAX and appear at once.
"""

from __future__ import annotations

import contextlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence

import tyro

from hidecmoe_jax import __version__
from hidecmoe_jax.cli.commands import COMMANDS, PREFIXES, function_of, group_overview, overview
from hidecmoe_jax.cli.last_net import as_error
from hidecmoe_jax.core import processes
from hidecmoe_jax.core.deterministic import use_deterministic
from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.core.plugins import import_trusted
from hidecmoe_jax.core.printable import printable
from hidecmoe_jax.core.verbosity import Level, at_level

INTERRUPTED = 130
TRUST = "--trust"
DETERMINISTIC = "--deterministic"
LEVELS = ("--quiet", "--verbose")
CLOSED = 141  # as a shell reports SIGPIPE


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake ends in a message on stderr, not in a traceback.

    The codes are `commands.EXIT_CODES`.
    """
    # A stream that was closed before the start (`>&-`) is None.
    if sys.stdout is not None and sys.stderr is not None:
        return _until_closed(words)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        with contextlib.redirect_stdout(sys.stdout or nowhere), contextlib.redirect_stderr(sys.stderr or nowhere):
            return _until_closed(words)


def _until_closed(words: Sequence[str] | None) -> int:
    """The exit code of a command, whose reader may go away."""
    try:
        code = _run(words)
        # A closed pipe or a full disk is met here, not when the interpreter ends, which would print a traceback.
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _drop_output()
        return CLOSED
    except OSError as error:
        # Of --debug the traceback is wanted; else only the flush raises here.
        if "--debug" in list(sys.argv[1:] if words is None else words):
            raise
        _drop_output()
        return _reported(error)


def _drop_output() -> None:
    """Nobody reads the output any more (`| head`): what is left of it goes nowhere."""
    # A stream that is no file, as a test replaces it, has nothing to redirect.
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())


def _run(words: Sequence[str] | None) -> int:
    """`main`, but for a closed pipe."""
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    if DETERMINISTIC in words:
        use_deterministic()
    levels = [word.removeprefix("--") for word in words if word in LEVELS]
    words = [word for word in words if word not in ("--debug", DETERMINISTIC, *LEVELS)]
    try:
        words, modules = _split_trusted(words)
        import_trusted(modules)
        with at_level(_level(levels)), warnings.catch_warnings():
            # Pillow's about a large picture: the limits of pictures decide, with a message of their own.
            warnings.filterwarnings("ignore", message="Image size .* could be decompression bomb")
            return _dispatch(words)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        if debug:
            raise
        print("hidecmoe: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if debug:
            raise
        return _reported(error)


def _reported(error: Exception) -> int:
    """Prints an error for the user; returns its exit code."""
    message = as_error(error)
    print(printable(f"{_speaker()}: {message}"), file=sys.stderr)
    return message.exit_code


def _speaker() -> str:
    """What an error begins with: the program, and which of several processes it is."""
    return f"hidecmoe, process {processes.index()}" if processes.count() > 1 else "hidecmoe"


def _level(levels: Sequence[str]) -> Level | None:
    """The level of `--quiet` or `--verbose`; None without either.

    Raises:
      ConfigError: both.
    """
    if len(set(levels)) > 1:
        raise ConfigError(
            "--quiet and --verbose exclude each other", why="both are given", remedy="leave one of them out"
        )
    if not levels:
        return None
    return "quiet" if levels[0] == "quiet" else "verbose"


def _split_trusted(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words without `--trust MODULE`, which any command takes any number of times, and its modules.

    Raises:
      ConfigError: a `--trust` without a module's name.
    """
    rest = []
    modules = []
    pending = iter(words)
    for word in pending:
        flag, equals, module = word.partition("=")
        if flag != TRUST:
            rest.append(word)
            continue
        if not equals:
            module = next(pending, "")
        parts = module.split(".")
        if not all(part.isidentifier() for part in parts):
            raise ConfigError(
                f"{TRUST} needs the name of a module",
                where=f"{TRUST} {module}",
                why="it is no dotted name of Python",
                remedy=f"write it as in an import: {TRUST} package.module",
            )
        modules.append(module)
    return rest, modules


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    # `data` alone is no command, but `hidecmoe data --help` lists those of its group; so for `config`.
    if words[0] in PREFIXES and words[1:2] in (["-h"], ["--help"]):
        print(group_overview(words[0]))
        return 0
    name, rest = _command(words)
    call = function_of(name)
    code = tyro.cli(
        call,
        prog=f"hidecmoe {name}",
        description=_description(call),
        args=rest,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    return code or 0


def _command(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    # The longer name first, because `data check` begins with a word that is a name of its group.
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    command = " ".join(words[:2]) if words[0] in PREFIXES else words[0]
    raise ConfigError(
        f"unknown command '{command}'", why="`hidecmoe --help` says what each command does",
        remedy=nearest(command, COMMANDS),
    )  # fmt: skip


def _description(call: Callable) -> str:
    """The docstring up to its `Args:`, which tyro parses itself."""
    return (inspect.getdoc(call) or "").partition("\nArgs:")[0]
