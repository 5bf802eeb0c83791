"""The JSON Schema of configs against a validator of another project, and the listing and showing of configs."""

from copy import deepcopy

import pytest
import yaml
from jsonschema import Draft202012Validator

from hidecmoe_jax.cli.main import main
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.paths import configs_folder, shipped_configs
from hidecmoe_jax.core.yaml_text import read_yaml
from hidecmoe_jax.runs.config import from_mapping, load_config
from hidecmoe_jax.runs.config_schema import config_schema, full_config_text

NAMES = list(shipped_configs())


@pytest.fixture(scope="module")
def validator():
    schema = config_schema()
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def shipped(name):
    return read_yaml(configs_folder() / f"{name}.yaml")


def mappings_in(value, path=()):
    """Every mapping inside a config, with the keys that lead to it."""
    if isinstance(value, dict):
        yield path, value
        for key, item in value.items():
            yield from mappings_in(item, (*path, key))
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from mappings_in(item, (*path, index))


def at(value, path):
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("name", NAMES)
def test_every_shipped_config_is_valid_and_a_misspelt_key_is_not(name, validator):
    config = shipped(name)
    assert validator.is_valid(config)
    for path, _ in mappings_in(config):
        broken = deepcopy(config)
        at(broken, path)["leraning"] = 1
        assert not validator.is_valid(broken), path


@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_the_config_and_fits_the_schema(name, validator):
    config = load_config(name)
    shown = yaml.safe_load(full_config_text(config))
    # YAML 1.1 reads 1e-8 as text; both readers take it for the number.
    assert validator.is_valid(shown)
    assert from_mapping(shown) == config
    # Nothing is left at a default that is not shown.
    assert {"wording", "between"} <= shown["evaluate"].keys() and "attention" in shown["scale"]


WRONG = [
    ("tune", "epochs", "two"),
    ("tune", "epochs", 1.5),
    ("tune", "optimizer", "adam"),
    ("evaluate", "zero_shot", 1),
    ("stream", "tasks", {"folder": "my/birds"}),
    ("seeds", 0, "0"),
    ("method", "kind", 3),
    ("method", "lora", 8),
]


@pytest.mark.parametrize(("section", "key", "value"), WRONG)
def test_what_reading_refuses_by_its_type_the_schema_refuses(section, key, value, validator):
    config = shipped("pocket/hide")
    config[section][key] = value
    assert not validator.is_valid(config)
    with pytest.raises(ConfigError):
        from_mapping(config)


def test_kinds_from_outside_are_taken_with_their_own_keys(validator):
    config = shipped("pocket/hide")
    config["method"] = {"kind": "my_lab.methods:Mine", "name": "mine", "beta": 0.5}
    assert validator.is_valid(config)
    # Without a kind a method is a routed one.
    config["method"] = {"name": "plain", "lora": {"rank": 2}}
    assert validator.is_valid(config)
    config["method"] = {"name": "plain", "strength": 2}
    assert not validator.is_valid(config)


def test_the_schema_explains_keys_and_states_their_defaults():
    schema = config_schema()
    judging = schema["$defs"]["runs.config.Judging"]["properties"]
    assert judging["split"]["description"].startswith("`test`, or `val`") and judging["split"]["default"] == "test"
    limits = schema["$defs"]["data.stream.TaskSpec"]["properties"]
    # One line of the docstring describes both.
    assert limits["epochs"]["description"] == limits["rate"]["description"] != ""


def test_configs_are_listed_by_folder(capsys):
    assert main(["config", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line) <= 118 for line in lines)
    assert main(["config", "list", "pocket/quick"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "pocket/quick/hide",
        "pocket/quick/sequential",
    ]
    assert main(["config", "list", "pocket/quik"]) == 2
    assert "did you mean 'pocket/quick'?" in capsys.readouterr().err


def test_a_shown_config_runs_with_what_was_set(capsys, tmp_path):
    assert main(["config", "show", "pocket/hide", "--set", "tune.epochs=7", "--tasks", "my/birds"]) == 0
    file = tmp_path / "mine.yaml"
    file.write_text(capsys.readouterr().out)
    assert load_config(file) == load_config("pocket/hide", overrides=["tune.epochs=7"], tasks=["my/birds"])
