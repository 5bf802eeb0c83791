"""Config values are taken as written or refused with the place and the nearest name; nothing is guessed."""

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.strict import ABSENT, build, difference, override, plain
from hidecmoe_jax.core.yaml_text import parse_yaml, read_yaml


@dataclasses.dataclass(frozen=True)
class Constant:
    kind: ClassVar[str] = "constant"
    value: float = 1.0


@dataclasses.dataclass(frozen=True)
class Cosine:
    kind: Literal["cosine"] = "cosine"
    steps: int = 10


@dataclasses.dataclass(frozen=True)
class Train:
    epochs: int
    rate: float = 1e-3
    schedule: Constant | Cosine = Constant()
    limit: int | None = None
    betas: tuple[float, float] = (0.9, 0.999)

    def __post_init__(self):
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")


@dataclasses.dataclass(frozen=True)
class Job:
    train: Train
    dtype: Literal["float32", "bfloat16"] = "float32"
    folders: tuple[Path, ...] = ()
    shuffle: bool = True
    rates: dict[str, float] = dataclasses.field(default_factory=dict)
    name: str = "job"
    layers: tuple[int, ...] | Literal["last"] = "last"
    seeds: list[int] = dataclasses.field(default_factory=list)
    extra: Any = None


FULL = {
    "train": {
        "epochs": 2,
        "rate": 1,
        "schedule": {"kind": "cosine", "steps": 5},
        "limit": None,
        "betas": [0.5, 1],
    },
    "dtype": "bfloat16",
    "folders": ["a/b"],
    "shuffle": False,
    "rates": {"digits": 2},
    "name": "x",
    "layers": [0, 3],
    "seeds": [1],
    "extra": {"anything": [1, "two"]},
}


def test_plain_values_become_the_dataclass_they_describe():
    assert build(Job, FULL) == Job(
        Train(2, 1.0, Cosine(steps=5), None, (0.5, 1.0)),
        "bfloat16",
        (Path("a/b"),),
        False,
        {"digits": 2.0},
        "x",
        (0, 3),
        [1],
        {"anything": [1, "two"]},
    )


def test_whole_numbers_become_floats_where_a_float_is_asked():
    job = build(Job, FULL)
    assert type(job.train.rate) is float and type(job.rates["digits"]) is float


def test_plain_is_the_way_back():
    job = build(Job, FULL)
    assert build(Job, plain(job)) == job
    assert plain(job)["train"]["schedule"] == {"kind": "cosine", "steps": 5}
    assert plain(Train(1))["schedule"] == {"kind": "constant", "value": 1.0}


@given(
    st.builds(
        Train,
        epochs=st.integers(1, 9),
        rate=st.floats(allow_nan=False),
        limit=st.none() | st.integers(),
        schedule=st.builds(Constant, st.floats(-9, 9)) | st.builds(Cosine, steps=st.integers()),
    )
)
def test_every_instance_survives_the_way_there_and_back(train):
    assert build(Train, plain(train)) == train


def refused(cls, mapping) -> str:
    with pytest.raises(ConfigError) as caught:
        build(cls, mapping, "some.yaml")
    assert "some.yaml" in str(caught.value)
    return str(caught.value)


def test_a_misspelt_key_is_refused_with_its_path_and_the_nearest_name():
    message = refused(Job, {"train": {"epochs": 1, "rat": 3}})
    assert "train.rat" in message and "did you mean 'rate'" in message


@pytest.mark.parametrize(
    ("mapping", "fragments"),
    [
        ({"train": {}}, ["missing key 'epochs'", "train"]),
        ({}, ["missing key 'train'"]),
        ({"train": {"epochs": "2"}}, ["train.epochs", "a whole number", "'2' (text)", "without quotes"]),
        ({"train": {"epochs": True}}, ["train.epochs", "a whole number", "got true"]),
        ({"train": {"epochs": 2.0}}, ["train.epochs", "2.0 (number)"]),
        ({"train": {"epochs": 1, "rate": "0.5"}}, ["train.rate", "a number", "'0.5'"]),
        ({"train": {"epochs": 1, "rate": True}}, ["train.rate", "got true"]),
        ({"train": {"epochs": 1, "rate": float("nan")}}, ["train.rate", "nan"]),
        ({"train": {"epochs": 1, "rate": None}}, ["train.rate", "nothing (null)"]),
        ({"train": {"epochs": 1, "betas": [1]}}, ["train.betas", "a list of 2"]),
        ({"train": {"epochs": 1, "betas": [1, "x"]}}, ["train.betas.1", "'x'"]),
        (
            {"train": {"epochs": 1, "schedule": {"value": 1}}},
            ["train.schedule", "missing key 'kind'", "constant, cosine"],
        ),
        (
            {"train": {"epochs": 1, "schedule": {"kind": "cosin"}}},
            ["train.schedule.kind", "did you mean 'cosine'"],
        ),
        (
            {"train": {"epochs": 1, "schedule": {"kind": "cosine", "value": 1}}},
            ["train.schedule.value", "of kind 'cosine'"],
        ),
        ({"train": {"epochs": 1, "limit": "many"}}, ["train.limit", "a whole number", "'many'"]),
        ({"train": {"epochs": 0}}, ["train", "at least 1"]),
        ({"train": 3}, ["train", "keys such as epochs, rate"]),
        (
            {"train": {"epochs": 1}, "dtype": "bfloat"},
            ["dtype", "float32, bfloat16", "did you mean 'bfloat16'"],
        ),
        ({"train": {"epochs": 1}, "shuffle": 1}, ["shuffle", "true or false", "1 (whole number)"]),
        ({"train": {"epochs": 1}, "shuffle": "yes"}, ["shuffle", "true or false"]),
        ({"train": {"epochs": 1}, "name": 7}, ["name", 'in quotes: "7"']),
        ({"train": {"epochs": 1}, "folders": "a"}, ["folders", "a list"]),
        ({"train": {"epochs": 1}, "layers": "first"}, ["layers", "expected a list or 'last'; got 'first'"]),
        ({"train": {"epochs": 1}, "rates": {"digits": "x"}}, ["rates.digits", "'x'"]),
    ],
)
def test_wrong_values_are_refused_with_path_expected_and_got(mapping, fragments):
    message = refused(Job, mapping)
    assert all(fragment in message for fragment in fragments), message


@pytest.mark.parametrize("text", ["1e-3", "5E4", "2.e1", "+.5e-2"])
def test_exponents_that_yaml_reads_as_text_are_numbers(text):
    assert build(Train, {"epochs": 1, "rate": text}).rate == float(text)


def test_kind_of_a_lone_dataclass_is_checked():
    assert build(Constant, {"kind": "constant", "value": 2}) == Constant(2.0)
    assert "kind 'constant'" in refused(Constant, {"kind": "cosine"})


def test_override_lays_values_over_a_copy():
    base = {"train": {"epochs": 1, "betas": [0.9, 0.99]}, "name": "a"}
    result = override(
        base,
        [
            "train.epochs=2",
            "train.betas.1=0.5",
            "name='7'",
            "train.schedule={kind: cosine}",
            "dtype=bfloat16",
            "train.schedule.steps=3",
            "folders=[a, b]",
            "train.rate=1e-4",
        ],
    )
    assert base == {"train": {"epochs": 1, "betas": [0.9, 0.99]}, "name": "a"}
    job = build(Job, result)
    assert job.train == Train(2, 1e-4, Cosine(steps=3), None, (0.9, 0.5))
    assert job.name == "7" and job.folders == (Path("a"), Path("b"))


def test_an_override_of_an_unknown_path_is_refused_when_built():
    assert "did you mean 'epochs'" in refused(Job, override({"train": {"epochs": 1}}, ["train.epoch=2"]))


@pytest.mark.parametrize(
    "assignment", ["train.epochs", "=2", "train..epochs=2", "name.first=2", "betas.7=1", "name=[1"]
)
def test_malformed_overrides_are_refused(assignment):
    with pytest.raises(ConfigError, match="--set"):
        override({"name": "a", "betas": [1]}, [assignment])


def test_difference_names_every_leaf_that_changed():
    old = build(Job, FULL)
    new = dataclasses.replace(
        old, name="y", train=dataclasses.replace(old.train, schedule=Constant(), betas=(0.5, 0.0))
    )
    assert difference(old, old) == []
    assert sorted(difference(old, new)) == sorted(
        [
            ("name", "x", "y"),
            ("train.betas.1", 1.0, 0.0),
            ("train.schedule.kind", "cosine", "constant"),
            ("train.schedule.steps", 5, ABSENT),
            ("train.schedule.value", ABSENT, 1.0),
        ]
    )
    assert difference({"a": [1]}, {"a": [1, 2]}) == [("a", [1], [1, 2])]
    assert difference({"a": 1}, {"a": True}) == [("a", 1, True)]


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("a: 1\nb: 2\na: 3\n", ["line 3", "'a' is given twice"]),
        ("x:\n  a: 1\n  a: 3\n", ["line 3"]),
        ("a: [1\n", ["line"]),
        ("- 1\n", ["key: value"]),
        ("", ["key: value"]),
        ("a: !!python/object/apply:os.getcwd []\n", ["line 1"]),
        ("a: \x07\n", ["not valid YAML"]),
    ],
)
def test_bad_files_are_refused_with_the_line(tmp_path, text, fragments):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert all(fragment in str(caught.value) for fragment in ["bad.yaml", *fragments]), str(caught.value)


def test_missing_and_binary_files_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_yaml(tmp_path / "b.yaml")


def test_merge_keys_and_anchors_still_work():
    assert parse_yaml("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}\n", "here")["b"] == {"p": 1, "q": 3}
