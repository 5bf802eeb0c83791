"""Whatever fails in any command ends in a message and an exit code of the table, and never in a traceback."""

import errno
import importlib
import io
import os

import pytest
from PIL import Image

from hidecmoe_jax import cli
from hidecmoe_jax.cli import report as report_command
from hidecmoe_jax.cli.last_net import as_error
from hidecmoe_jax.cli.main import COMMANDS, main


class JaxRuntimeError(RuntimeError):
    """Named as JAX's own."""


def chained(error: Exception) -> Exception:
    """An error of a library, with the system's as its cause, as Orbax raises them."""
    outer = ValueError("could not commit")
    outer.__cause__ = error
    return outer


OUT_OF_MEMORY = (
    "RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.\nlargest: f32[16,2048,11008]{2,1,0} bf16[8,8]"
)
PLANTED = [
    (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 6, "the disk took no more"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "/x/y"), 6, "the disk took no more"),
    (OSError(errno.EFBIG, "File too large", "/x/y"), 6, "limit of file sizes"),
    (chained(OSError(errno.ENOSPC, "No space left on device")), 6, "the disk took no more"),
    (OSError(errno.EROFS, "Read-only file system", "/x/y"), 4, "Read-only file system"),
    (PermissionError(errno.EACCES, "Permission denied", "/x/y"), 4, "look at its permissions"),
    (MemoryError("Unable to allocate 3.7 GiB for an array with shape (1000, 1000000)"), 6, "shape (1000, 1000000)"),
    (JaxRuntimeError(OUT_OF_MEMORY), 6, "arrays f32[16,2048,11008], bf16[8,8]"),
    (JaxRuntimeError("RESOURCE_EXHAUSTED: Failed to allocate request for 10.0GiB"), 6, "base.remat=true"),
    (RecursionError("maximum recursion depth exceeded"), 3, "nested too deeply"),
    (KeyError("router"), 1, "KeyError: 'router'"),
    (JaxRuntimeError("INTERNAL: something"), 1, "--debug shows where"),
]


@pytest.mark.parametrize(("error", "code", "text"), PLANTED)
def test_every_command_ends_an_error_in_a_message(monkeypatch, capsys, error, code, text):
    def planted() -> None:
        raise error

    for name, (module, function, _) in COMMANDS.items():
        planted.__doc__ = f"$ hidecmoe {name}"
        with monkeypatch.context() as patch:
            patch.setattr(importlib.import_module(f"{cli.__name__}.{module}"), function, planted)
            assert main(name.split()) == code, name
        said = capsys.readouterr().err
        assert text in said and "  do:    " in said and "Traceback" not in said, said


def test_a_reader_that_goes_away_is_no_error(monkeypatch, capsys):
    def planted() -> None:
        """$ hidecmoe report"""
        raise BrokenPipeError

    monkeypatch.setattr(report_command, "report", planted)
    assert main(["report"]) == 141 and "Traceback" not in capsys.readouterr().err


def test_shapes_and_three_ways_out_of_a_full_device_are_named():
    error = as_error(JaxRuntimeError(OUT_OF_MEMORY))
    assert "17179869184" in error.why and "f32[16,2048,11008]" in error.why
    for way in ("tune.batch", "base.remat=true", "scale.mesh.fsdp"):
        assert way in error.remedy
    assert as_error(error) is error


SYSTEM = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES]


@pytest.mark.parametrize("number", SYSTEM)
@pytest.mark.parametrize("door", ["open", "rename", "mkdir"])
def test_an_error_at_a_door_of_the_system_is_a_message(tmp_path, monkeypatch, capsys, door, number):
    for name in ("owl", "wren"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for shade in range(4):
            Image.new("RGB", (8, 8), (shade * 9, len(name), 0)).save(tmp_path / "pictures" / name / f"{shade}.png")
    out = tmp_path / "task"
    words = ["data", "folders", str(tmp_path / "pictures"), str(out), "--question", "Which bird?"]
    home = io if door == "open" else os
    kept = getattr(home, door)

    def refusing(path, *rest, **named):
        writes = door != "open" or set("wxa") & set(str(named.get("mode", rest[0] if rest else "r")))
        if writes and str(tmp_path) in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return kept(path, *rest, **named)

    with monkeypatch.context() as patch:
        patch.setattr(home, door, refusing)
        code = main(words)
    said = capsys.readouterr().err
    assert (code == 6) == (number in SYSTEM[:3]) and code in (3, 4, 6), said
    assert "Traceback" not in said and "  do:    " in said
    assert not out.exists()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_an_output_on_a_full_disk_is_a_message(capsys, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        # Redirected as a shell does: nothing is met before the buffer is flushed.
        assert main(["--version"]) == 6
        monkeypatch.undo()
        said = capsys.readouterr().err
        assert "the disk took no more" in said and "Traceback" not in said
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
