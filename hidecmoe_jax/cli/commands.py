"""The commands in groups, their functions, and the overview of `hidecmoe --help`, which imports no command."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

# title of a group -> command -> (module, function, one line for the overview)
GROUPS = {
    "begin": {
        "doctor": ("doctor", "doctor", "check versions, devices, memory, disk, and one forward of the pocket model"),
        "init": ("init", "init", "write a config and two small tasks to begin from, ready to run"),
        "config list": ("config", "list_configs", "list the configs that are shipped"),
        "config show": ("config", "show", "show a config with all of its values"),
        "config schema": ("config", "schema", "print the JSON Schema of configs, or of what --json prints"),
        "completion": ("completion", "completion", "print the script by which bash or zsh completes commands"),
    },
    "tasks": {
        "data check": ("data", "check", "check a stream or task folders before training on them"),
        "data folders": ("data", "folders", "make a task folder of pictures that lie in one folder for each answer"),
        "data import": ("data_import", "import_data", "make a task folder of another format's files, or a benchmark"),
        "data from-corrections": ("data_corrections", "from_corrections", "make a task folder of reviewed answers"),
        "data build": ("data_build", "build", "prepare task folders or a benchmark for tensorflow-datasets"),
        "data pocket": ("data", "pocket", "draw the pocket stream into LLaVA JSON and image files"),
        "audit": ("audit", "audit", "leaks of a stream, what its texts give away, unequal budgets of runs on it"),
    },
    "learn": {
        "plan": ("plan", "plan", "what a run needs of a machine: layout, batch, memory, time, money; needs no weights"),
        "pilot": ("pilot", "pilot", "try one task: folder or table to a judgement in plain words, and a page"),
        "run": ("run", "run", "learn a stream of tasks, evaluate after each, write the report"),
        "compare": ("compare", "compare", "run several methods on the same stream and report them side by side"),
        "add": ("add", "add", "teach a finished run one more task"),
    },
    "answer": {
        "ask": ("ask", "ask", "answer questions about pictures; prints the task that each was taken for"),
        "generate": ("generate", "generate", "answer a file of questions, for the evaluations of LLaVA, VLMEvalKit"),
    },
    "in service": {
        "serve": ("serve", "serve", "answer over HTTP in the form of OpenAI's chat completions"),
        "review": ("review", "review", "what waits for a person in a log, and decisions about it"),
        "kpi": ("kpi", "kpi", "key figures of a served run: wrong tasks, cost, latency, storage, what to do next"),
    },
    "measure": {
        "eval": ("evaluate", "evaluate", "evaluate a run again, at its end or as it was after an earlier task"),
        "report": ("report", "report", "write report.json, report.html, figures and tables of a run again"),
        "score": ("score", "score", "score answers of runs and of other evaluators: strict and legacy rules"),
        "inspect": ("inspect", "inspect", "show the tasks, the experts per layer and their sizes"),
        "overlap": ("editing", "overlap", "which tasks are confused, which experts are similar, what could be merged"),
        "cka": ("cka", "cka", "compare the tasks' own experts layer by layer (CKA), with a heat map"),
        "foreign": ("foreign", "foreign", "how well inputs of no learned task are detected as unknown"),
        "control": ("control", "control", "how often a probe adds an expert that is not needed (false expansions)"),
    },
    "change": {
        "calibrate": ("calibrate", "calibrate", "set on a trained run which inputs are unknown; trains nothing"),
        "retire": ("editing", "retire", "measure what every task loses without one's experts; --commit drops them"),
        "merge": ("editing", "merge", "measure merging the experts of two tasks (linear, ties, ...); --commit does it"),
        "restore": ("editing", "restore", "undo the last committed retire, merge or calibrate"),
        "rollback": ("rollback", "rollback", "undo all tasks after an earlier one"),
        "verify": ("verify", "verify", "check that a run, base, export or task is whole, and say what to do if not"),
    },
    "other tools": {
        "convert": ("convert", "convert", "convert a LLaVA checkpoint of another tool into a base model"),
        "unpickle": ("unpickle", "unpickle", "turn pickled weights into safetensors (needs torch)"),
        "adopt": ("adopt", "adopt", "make a run of adapters of other tools: PEFT LoRA, HiDe-LLaVA, MoELoRA"),
        "export": ("export", "export", "write a run for other tools: PEFT, vLLM, a merged checkpoint, a hub folder"),
    },
}
COMMANDS = {name: command for commands in GROUPS.values() for name, command in commands.items()}
# words that begin several commands: `data`, `config`
PREFIXES = {name.partition(" ")[0] for name in COMMANDS if " " in name}

EXIT_CODES = {
    0: "done",
    1: "a check failed (doctor, verify), or an error without a code of its own",
    2: "wrong command line or config",
    3: "wrong data",
    4: "missing or damaged weights or run folder",
    5: "numerics: NaN, infinity, a gradient that stays zero",
    6: "resources: disk, memory",
    7: "busy: another process writes the run",
    8: "a question was refused (ask, generate)",
    9: "a gate was not passed, and the new task was taken back (add)",
    75: "stopped by a signal after saving; --resume continues",
    130: "interrupted",
    141: "the reader of the output is gone",
}
# Options that every command takes; they are read before its own.
OPTIONS = {
    "--quiet": "print results, warnings and errors alone",
    "--verbose": "a line of progress every 10 seconds instead of bars",
    "--debug": "show the traceback of an error",
    "--trust MODULE": "import code that a run or a task names (`module:Class`); else it is refused",
    "--deterministic": "GPUs give the same bits every time, more slowly; a run records it",
    "--version": "print the version",
}


def function_of(command: str) -> Callable:
    """The function of a command; its module alone is imported."""
    module, function, _ = COMMANDS[command]
    return getattr(importlib.import_module(f"hidecmoe_jax.cli.{module}"), function)


def overview() -> str:
    """The text of `hidecmoe --help`."""
    width = max(map(len, COMMANDS))
    lines = ["usage: hidecmoe COMMAND ...", ""]
    for title, commands in GROUPS.items():
        lines += [f"{title}:", *_lines(commands, width), ""]
    lines.append("with any command (`hidecmoe COMMAND --help` shows its own options and examples):")
    column = max(map(len, OPTIONS))
    lines += [f"  {option:<{column}}  {about}" for option, about in OPTIONS.items()]
    lines += ["", "exit codes:"]
    lines += [f"  {code:<3}  {about}" for code, about in EXIT_CODES.items()]
    return "\n".join(lines)


def group_overview(prefix: str) -> str:
    """The text of `hidecmoe data --help`: the commands that begin with one word."""
    names = [name for name in COMMANDS if name.startswith(f"{prefix} ")]
    lines = _lines(names, max(map(len, names)))
    hint = f"`hidecmoe {names[0]} --help` shows options and examples."
    return "\n".join([f"usage: hidecmoe {prefix} COMMAND ...", "", *lines, "", hint])


def _lines(names: Iterable[str], width: int) -> list[str]:
    """A line for every command."""
    return [f"  {name:<{width}}  {COMMANDS[name][2]}" for name in names]
