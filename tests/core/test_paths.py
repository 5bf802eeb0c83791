"""Configs are found by path or by name from any folder, and a wrong name gets the nearest right one."""

import pytest

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.paths import configs_folder, find_config
from hidecmoe_jax.core.yaml_text import read_yaml

SHIPPED = sorted(path.relative_to(configs_folder()).as_posix() for path in configs_folder().rglob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_config_is_found_by_each_of_its_names(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for spelling in (name, name.removesuffix(".yaml"), f"configs/{name}"):
        assert read_yaml(find_config(spelling)) == read_yaml(configs_folder() / name)


def test_a_users_own_file_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pocket").mkdir()
    (tmp_path / "pocket" / "hide.yaml").write_text("a: 1\n")
    assert read_yaml(find_config("pocket/hide.yaml")) == {"a": 1}


def test_a_wrong_name_gets_the_nearest_shipped_one():
    with pytest.raises(ConfigError, match="neither a file nor a shipped config"):
        find_config("pocket/hidee")
