"""The doctor's version arithmetic against `packaging`'s, and its table with a healthy and an ailing line."""

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from hidecmoe_jax.cli import doctor
from hidecmoe_jax.cli.doctor import Check, devices, disk, large_pages, memory, within


@pytest.mark.parametrize("version", ["0.9.9", "0.10", "0.10.0", "0.10.2", "0.12.0.1", "0.13", "0.13.0", "1", "2.0"])
@pytest.mark.parametrize("ranges", [">=0.10,<0.13", "<0.13,>=0.10", ">=0.12.0.1", ">=2", "<0.10"])
def test_ranges_mean_what_pip_means_by_them(version, ranges):
    assert within(version, ranges) == SpecifierSet(ranges).contains(version)


def test_this_machine_can_run_its_own_tests(tmp_path):
    assert devices().well
    assert memory().found.endswith("GiB")
    assert str(tmp_path) in disk(tmp_path).found
    assert str(tmp_path) in disk(tmp_path / "not" / "yet").found


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
        assert check.well and (check.found == "used") == used


@pytest.mark.parametrize("well", [True, False])
def test_the_table_says_what_to_do_and_sets_the_exit_code(well, monkeypatch, capsys):
    lines = [Check("python", True, "3.11.7"), Check("flax", well, "0.9", "install flax")]
    monkeypatch.setattr(doctor, "checks", lambda out: iter(lines))
    assert doctor.doctor(out=Path()) == (0 if well else 1)
    out = capsys.readouterr().out
    assert "OK    python" in out
    assert ("FAIL  flax" in out and "do: install flax" in out) != well
