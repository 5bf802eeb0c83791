"""Entry point of `hidecmoe COMMAND ...`: selects the command's function, has tyro parse its arguments, prints errors.

Only the module of the selected command is imported, and command modules reach the library through the lazy
`hidecmoe_jax` facade. Help and usage errors therefore need no JAX and appear at once.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence

import tyro

from hidecmoe_jax import __version__
from hidecmoe_jax.cli.last_net import as_error
from hidecmoe_jax.core import processes
from hidecmoe_jax.core.deterministic import use_deterministic
from hidecmoe_jax.core.errors import ConfigError, nearest
from hidecmoe_jax.core.plugins import import_trusted

# command -> (module, function, one line for the overview)
COMMANDS = {
    "run": ("run", "run", "learn a stream of tasks, evaluate after each, write the report"),
    "compare": ("compare", "compare", "run several methods on the same stream and report them side by side"),
    "eval": ("evaluate", "evaluate", "evaluate a run again, at its end or as it was after an earlier task"),
    "ask": ("ask", "ask", "answer questions about pictures; prints the task that each was taken for"),
    "generate": (
        "generate",
        "generate",
        "answer a file of questions, for the evaluations of LLaVA, CoIN, VLMEvalKit",
    ),
    "serve": ("serve", "serve", "answer over HTTP in the form of OpenAI's chat completions"),
    "kpi": ("kpi", "kpi", "key figures of a served run: wrong tasks, cost, latency, storage, what to do next"),
    "add": ("add", "add", "teach a finished run one more task"),
    "overlap": ("editing", "overlap", "which tasks are confused, which experts are similar, and what could be merged"),
    "retire": ("editing", "retire", "measure what every task loses without the experts of one; --commit drops them"),
    "merge": (
        "editing",
        "merge",
        "measure merging the experts of two tasks (linear, ties, dare, svd); --commit does it",
    ),
    "calibrate": ("calibrate", "calibrate", "set on a trained run which inputs are unknown; trains nothing"),
    "restore": ("editing", "restore", "undo the last committed retire, merge or calibrate"),
    "rollback": ("rollback", "rollback", "undo all tasks after an earlier one"),
    "verify": ("verify", "verify", "check that a run, a base, an export or a task is whole, and say what to do if not"),
    "report": ("report", "report", "write report.json, report.html, figures and tables of a run again"),
    "score": ("score", "score", "score answers of runs and of other evaluators: strict and legacy rules, intervals"),
    "audit": ("audit", "audit", "leaks of a stream, what its texts give away, and unequal budgets of runs on it"),
    "inspect": ("inspect", "inspect", "show the tasks, the experts per layer and their sizes"),
    "adopt": ("adopt", "adopt", "make a run of adapters of other tools: PEFT LoRA, HiDe-LLaVA, MoELoRA"),
    "convert": ("convert", "convert", "convert a LLaVA checkpoint of another tool into a base model"),
    "unpickle": ("unpickle", "unpickle", "turn pickled weights into safetensors (needs torch)"),
    "export": ("export", "export", "write a run for other tools: PEFT, vLLM, a merged checkpoint, a hub folder"),
    "cka": ("cka", "cka", "compare the tasks' own experts layer by layer (CKA), with a heat map"),
    "foreign": ("foreign", "foreign", "how well inputs of no learned task are detected as unknown"),
    "control": ("control", "control", "how often a probe adds an expert that is not needed (false expansions)"),
    "data check": ("data", "check", "check a stream or task folders before training on them"),
    "data pocket": ("data", "pocket", "draw the pocket stream into LLaVA JSON and image files"),
    "data import": ("data_import", "import_data", "make a task folder of files of another format, or of a benchmark"),
    "data build": ("data_build", "build", "prepare task folders or a benchmark as data sets of tensorflow-datasets"),
    "data folders": ("data", "folders", "make a task folder of pictures that lie in one folder for each answer"),
    "config list": ("config", "list_configs", "list the configs that are shipped"),
    "config show": ("config", "show", "show a config with all of its values"),
    "config schema": ("config", "schema", "print the JSON Schema of configs, for editors"),
    "plan": ("plan", "plan", "what a run needs of a machine: layout, batch, memory, time, money; needs no weights"),
    "doctor": (
        "doctor",
        "doctor",
        "check versions, devices, memory, disk, and one forward of the pocket model",
    ),
}
INTERRUPTED = 130
TRUST = "--trust"
DETERMINISTIC = "--deterministic"
CLOSED = 141  # as a shell reports SIGPIPE


def main(words: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; a user's mistake ends in a message on stderr, not in a traceback.

    Exit codes: 0 done, 2 usage or configuration, 3 data, 4 weights or run folder, 5 numerics, 6 resources, 7 busy, 8 a
    question was refused (`ask`), 9 a gate was not passed (`add`), 75 stopped but resumable, 130 interrupted, 141 the
    reader of the output is gone, 1 anything else. `--debug` shows the traceback.
    """
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        # A stream that was closed before the start (`>&-`) is None.
        with contextlib.redirect_stdout(sys.stdout or nowhere), contextlib.redirect_stderr(sys.stderr or nowhere):
            return _until_closed(words)


def _until_closed(words: Sequence[str] | None) -> int:
    """The exit code of a command, whose reader may go away."""
    try:
        try:
            return _run(words)
        finally:
            # A closed pipe is met here, not when the interpreter ends, which would print a traceback of its own.
            sys.stdout.flush()
    except BrokenPipeError:
        _drop_output()
        return CLOSED


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
    words = [word for word in words if word not in ("--debug", DETERMINISTIC)]
    try:
        words, modules = _split_trusted(words)
        import_trusted(modules)
        with warnings.catch_warnings():
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
        message = as_error(error)
        print(f"{_speaker()}: {message}", file=sys.stderr)
        return message.exit_code


def _speaker() -> str:
    """What an error begins with: the program, and which of several processes it is."""
    return f"hidecmoe, process {processes.index()}" if processes.count() > 1 else "hidecmoe"


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


def overview(names: Iterable[str] = COMMANDS) -> str:
    """The text of `hidecmoe --help`, or of `hidecmoe data --help` for the commands of that group."""
    width = max(map(len, names))
    lines = [f"  {name:<{width}}  {COMMANDS[name][2]}" for name in names]
    hint = "`hidecmoe COMMAND --help` shows options and examples; --debug tracebacks, --version the version."
    trust = (
        "--trust MODULE, with any command: import code that a run or a task names (`module:Class`); else it is refused."
    )
    equal = "--deterministic, with any command: GPUs give the same bits every time, more slowly; a run records it."
    return "\n".join(["usage: hidecmoe COMMAND ... [--debug]", "", *lines, "", hint, trust, equal])


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(overview())
        return 0
    if words[0] == "--version":
        print(__version__)
        return 0
    # `data` alone is no command, but `hidecmoe data --help` lists those of its group; so for `config`.
    group = [name for name in COMMANDS if name.startswith(f"{words[0]} ")]
    if group and words[1:2] in (["-h"], ["--help"]):
        print(overview(group))
        return 0
    name, rest = _command(words)
    module, function, _ = COMMANDS[name]
    call = getattr(importlib.import_module(f"hidecmoe_jax.cli.{module}"), function)
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
    groups = {name.partition(" ")[0] for name in COMMANDS if " " in name}
    command = " ".join(words[:2]) if words[0] in groups else words[0]
    raise ConfigError(
        f"unknown command '{command}'", why="`hidecmoe --help` says what each command does",
        remedy=nearest(command, COMMANDS),
    )  # fmt: skip


def _description(call: Callable) -> str:
    """The docstring up to its `Args:`, which tyro parses itself."""
    return inspect.getdoc(call).partition("\nArgs:")[0]
