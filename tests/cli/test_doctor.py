"""The doctor's table: declared ranges against installed versions, and what it prints where a check fails."""

import email.message
import importlib.metadata
from pathlib import Path

import pytest
from judges import judged

from hidecmoe_jax.cli import doctor
from hidecmoe_jax.cli.doctor import Check, devices, disk, large_pages, memory
from hidecmoe_jax.cli.main import main


@pytest.mark.parametrize("version", ["0.9.9", "0.10", "0.10.0", "0.10.2", "0.12.0.1", "0.13", "0.13.0", "1", "2.0"])
@pytest.mark.parametrize(
    ("ranges", "supported"),
    [
        (">=0.10,<0.13", {"0.10", "0.10.0", "0.10.2", "0.12.0.1"}),
        (">=0.12.0.1", {"0.12.0.1", "0.13", "0.13.0", "1", "2.0"}),
        (">=2", {"2.0"}),
        ("<0.10", {"0.9.9"}),
    ],
)
def test_installed_versions_are_compared_with_declared_ranges(version, ranges, supported, monkeypatch):
    declare(monkeypatch, f"flax{ranges}")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    (check,) = doctor.packages()
    assert check.passed == (version in supported)
    assert check.passed or ranges.split(",")[0] in check.result and "pip install 'flax" in check.remedy


def test_requirements_of_extras_and_of_other_pythons_are_left_out(monkeypatch):
    declare(monkeypatch, 'a>=1; python_version < "3"', 'b>=1; extra == "dev"', 'c>=1; python_version >= "3"')
    assert [(check.name, check.passed) for check in doctor.packages()] == [("c", False)]


def declare(monkeypatch, *requirements: str) -> None:
    """Lets the package declare these requirements."""
    metadata = email.message.Message()
    for requirement in requirements:
        metadata["Requires-Dist"] = requirement
    monkeypatch.setattr(doctor, "_metadata", lambda: metadata)


def test_the_table_as_a_record(tmp_path, monkeypatch, capsys):
    # The forward pass takes seconds and is one more line of the same kind.
    monkeypatch.setattr(doctor, "forward", lambda: Check("forward", False, "no numbers", "install it again"))
    assert main(["doctor", "--out", str(tmp_path), "--json"]) == 1
    record = judged("doctor", capsys.readouterr().out)
    assert record["passed"] is False
    assert [check["name"] for check in record["checks"]] == [check.name for check in doctor.checks(tmp_path)]
    assert record["checks"][-1] == {
        "name": "forward",
        "passed": False,
        "result": "no numbers",
        "remedy": "install it again",
    }


def test_this_machine_can_run_its_own_tests(tmp_path):
    assert devices().passed
    assert memory().result.endswith("GiB")
    assert str(tmp_path) in disk(tmp_path).result
    assert str(tmp_path) in disk(tmp_path / "not" / "yet").result


def test_large_pages_are_reported_where_linux_has_them(tmp_path, monkeypatch):
    session = tmp_path / "enabled"
    assert list(large_pages(session)) == []
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for text, tunable, used in [
        ("[always] madvise never", "", True),
        ("always [madvise] never", "", False),
        ("always [madvise] never", "glibc.malloc.hugetlb=1", True),
        ("always madvise [never]", "glibc.malloc.hugetlb=1", False),
    ]:
        session.write_text(text)
        monkeypatch.setenv("GLIBC_TUNABLES", tunable)
        (check,) = large_pages(session)
        assert check.passed and (check.result == "used") == used


@pytest.mark.parametrize("well", [True, False])
def test_the_table_says_what_to_do_and_sets_the_exit_code(well, monkeypatch, capsys):
    lines = [Check("python", True, "3.11.7"), Check("flax", well, "0.9", "install flax")]
    monkeypatch.setattr(doctor, "checks", lambda out: iter(lines))
    assert doctor.doctor(out=Path()) == (0 if well else 1)
    out = capsys.readouterr().out
    assert "OK    python" in out
    assert ("FAIL  flax" in out and "do: install flax" in out) != well
