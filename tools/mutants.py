"""Plants mutants in a copy of the package and reports those that their narrow tests do not notice.

    python tools/mutants.py                       # all of mutant_list.py, one after the other
    python tools/mutants.py --only 'storage/*'    # those of some files
    python tools/mutants.py --out mutants.json    # results as JSON, written after every mutant

First all named tests run once without a mutant; then, for every mutant, its own, up to the first failure. A mutant
`dies` where they fail and `survives` where they pass. Exit code 1 with a survivor, or where tests fail without any.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from mutant_list import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("hidecmoe_jax", "tests", "tools", "configs", "docs", "pyproject.toml", "setup.cfg", "setup.py", "README.md")
PASSED = 0
FAILED = 1  # pytest's exit codes; any other one says that the tests could not be run
LONGEST = 600  # seconds a mutant


def copy_tree(target: Path) -> None:
    """Copies what tests need into `target`."""
    ignore = shutil.ignore_patterns("__pycache__", ".venv", ".pytest_cache")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.is_file():
            shutil.copy(source, target / name)


def mutated(text: str, mutant: Mutant) -> str:
    """The text of a file with a mutant in it.

    Raises:
      ValueError: the text before the change does not occur exactly once.
    """
    count = text.count(mutant.old)
    if count != 1:
        raise ValueError(f"{mutant.file}: {count} times instead of once: {mutant.old!r}")
    return text.replace(mutant.old, mutant.new)


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Exit code of pytest for tests below `tree/tests`, and the last lines of its output."""
    words = [f"tests/{test}" for test in tests]
    # A mutant may loop for ever, and byte code of the file before it must not be taken for it.
    settings = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    settings["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *words]
    try:
        done = subprocess.run(
            command, cwd=tree, env=settings, capture_output=True, text=True, timeout=LONGEST, check=False
        )
    except subprocess.TimeoutExpired:
        return FAILED, f"not done after {LONGEST} s"
    return done.returncode, "\n".join(done.stdout.splitlines()[-4:])


def try_mutant(tree: Path, mutant: Mutant) -> str:
    """`dies`, `survives`, or why the tests could not be run."""
    path = tree / "hidecmoe_jax" / mutant.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(mutated(whole, mutant), encoding="utf-8")
    try:
        code, tail = run_tests(tree, mutant.tests)
    finally:
        path.write_text(whole, encoding="utf-8")
    verdicts = {PASSED: "survives", FAILED: "dies"}
    return verdicts.get(code, f"pytest ended with {code}: {tail}")


def name_of(mutant: Mutant) -> str:
    """File, and the line that changes."""
    line = next(line for line in mutant.old.splitlines() if line.strip())
    return f"{mutant.file}: {line.strip()[:80]}"


def tests_of(mutants: Sequence[Mutant]) -> list[str]:
    """All tests that mutants name, each once."""
    every_test: dict[str, None] = {}
    for mutant in mutants:
        every_test |= dict.fromkeys(mutant.tests)
    return list(every_test)


def work_through(tree: Path, mutants: Sequence[Mutant], out: Path | None) -> list[dict]:
    """Tries mutants one after the other; writes the results so far as JSON where `out` is given."""
    results = []
    for mutant in mutants:
        started = time.monotonic()
        result = try_mutant(tree, mutant)
        seconds = round(time.monotonic() - started, 1)
        results.append({"mutant": name_of(mutant), "new": mutant.new, "tests": mutant.tests, "result": result})
        print(f"{result:<9} {seconds:6.1f} s  {name_of(mutant)}", flush=True)
        if out is not None:
            out.write_text(json.dumps(results, indent=1) + "\n")
    return results


def main(words: Sequence[str] | None = None) -> int:
    """Reads the command line; exit code 1 with survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="files below hidecmoe_jax/, with * as in file names")
    parser.add_argument("--unchecked", action="store_true", help="the tests are known to pass without a mutant")
    parser.add_argument("--out", type=Path, help="file for the results as JSON")
    options = parser.parse_args(words)
    mutants = MUTANTS
    if options.only:
        mutants = [one for one in MUTANTS if any(fnmatchcase(one.file, pattern) for pattern in options.only)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder).resolve()
        copy_tree(tree)
        if not options.unchecked:
            code, tail = run_tests(tree, tests_of(mutants))
            if code != PASSED:
                print(f"tests fail without a mutant:\n{tail}")
                return 1
        results = work_through(tree, mutants, options.out)
    died = sum(result["result"] == "dies" for result in results)
    print(f"{died} of {len(results)} mutants die")
    return int(died < len(results))


if __name__ == "__main__":
    sys.exit(main())
