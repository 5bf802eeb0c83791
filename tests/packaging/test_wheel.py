"""What a user installs: the wheel and the source distribution hold every file, and a run works from the wheel alone."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from tiny import write_base, write_config, write_task

ROOT = Path(__file__).resolve().parents[2]
# Installed modules of this environment, which the clean environment of a test borrows; the checkout is not among them.
SITE = Path(pytest.__file__).resolve().parents[1]
# Calls the build backend in this environment: an isolated build would download setuptools.
BUILD = """
import sys
from setuptools import build_meta
getattr(build_meta, "build_" + sys.argv[1])(sys.argv[2])
"""


def call(command: list, cwd: Path) -> str:
    """Runs a command that sees no checkout through PYTHONPATH; returns what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = list(map(str, command))
    result = subprocess.run(words, cwd=cwd, env=env, timeout=300, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def tracked() -> list[str]:
    """Files of the repository, as git lists them."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout: the listing of its files is the reference")
    listing = call(["git", "ls-files", "--cached", "--others", "--exclude-standard"], ROOT).splitlines()
    return [name for name in listing if (ROOT / name).is_file()]


def build(kind: str, source: Path, target: Path) -> Path:
    """Builds the wheel or sdist of `source` into `target`; returns the archive."""
    target.mkdir(parents=True)
    call([sys.executable, "-c", BUILD, kind, target], source)
    (archive,) = target.iterdir()
    return archive


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """The wheel and sdist of a copy of the checkout, without what lies in it untracked, and the sdist's own wheel."""
    root = tmp_path_factory.mktemp("built")
    copy = root / "copy"
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, copy / name)
    sdist = build("sdist", copy, root / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(root / "unpacked", filter="data")
    (unpacked,) = (root / "unpacked").iterdir()
    return {
        "sdist": sdist,
        "wheel": build("wheel", copy, root / "wheel"),
        "wheel of sdist": build("wheel", unpacked, root / "again"),
    }


def members(wheel: Path) -> set[str]:
    """Files of a wheel without its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_the_wheel_holds_every_file_of_the_package_and_every_config(built):
    package = {name for name in tracked() if name.startswith("hidecmoe_jax/")}
    configs = {f"hidecmoe_jax/{name}" for name in tracked() if name.startswith("configs/")}
    assert package and configs
    assert members(built["wheel"]) == package | configs


def test_the_source_distribution_holds_every_tracked_file_and_builds_the_same_wheel(built):
    with tarfile.open(built["sdist"]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert set(tracked()) - inside == set()
    assert {name.split("/")[0] for name in inside} >= {"tests", "tools", "docs", "configs"}
    assert members(built["wheel of sdist"]) == members(built["wheel"])


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory) -> Path:
    """The programs folder of an environment with the wheel installed and the dependencies borrowed."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    call([sys.executable, "-m", "venv", "--without-pip", venv], venv.parent)
    programs = venv / "bin"
    # pip needs no copy of itself in there; it must not see the borrowed modules, where the package is installed too.
    install = ["--python", programs / "python", "install", "--quiet", "--no-deps", "--no-index", built["wheel"]]
    call([sys.executable, "-m", "pip", *install], venv.parent)
    (packages,) = venv.glob("lib/python*/site-packages")
    # A path in a .pth file is appended as it is; .pth files below it, such as an editable install's, are not read.
    (packages / "dependencies.pth").write_text(f"{SITE}\n")
    return programs


@pytest.mark.slow  # .ci/run has all tests run on an installed wheel
@pytest.mark.timeout(600)
def test_a_run_from_the_wheel_alone_learns_reports_answers_and_exports(installed, tmp_path):
    here = call([installed / "python", "-c", "import hidecmoe_jax; print(hidecmoe_jax.__file__)"], tmp_path)
    assert Path(here.strip()).is_relative_to(installed.parent), "the checkout is out of sight"

    base = write_base(tmp_path / "base")
    tasks = [write_task(tmp_path / "birds", "a wren"), write_task(tmp_path / "fish", "a carp", shade=80)]
    config = write_config(tmp_path / "hide.yaml", base, "hide")
    hidecmoe = installed / "hidecmoe"
    call([hidecmoe, "run", config, "--tasks", *tasks, "--out", "runs/hide"], tmp_path)
    page = (tmp_path / "runs" / "hide" / "report.html").read_text()
    assert "birds" in page and "fish" in page
    answer = call([hidecmoe, "ask", "runs/hide", "--image", "birds/images/9.png", "What is shown?"], tmp_path)
    assert "birds" in answer and "fish" in answer
    call([hidecmoe, "export", "runs/hide", "out", "--to", "peft"], tmp_path)
    assert (tmp_path / "out" / "birds" / "adapter_config.json").is_file()


@pytest.mark.slow  # as above
def test_configs_and_the_pocket_model_are_found_in_the_wheel(installed, tmp_path):
    source = (
        "import hidecmoe_jax as hj\n"
        "config = hj.load_config('pocket/hide')\n"
        "assert config.method.name == 'hide'\n"
        "from hidecmoe_jax.core.paths import configs_folder\n"
        "assert configs_folder().parent.name == 'hidecmoe_jax'\n"
        "assert hj.load('pocket').generate\n"
    )
    call([installed / "python", "-c", source], tmp_path)
