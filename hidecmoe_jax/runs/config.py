"""The configuration of a run: one frozen dataclass, read strictly from YAML.

It holds the base, the stream, the method, how each task is tuned and how answers are generated and scored. A method is
chosen by its `kind`: one of `methods.kinds.METHODS`, an entry point `hidecmoe_jax.methods` of an installed package, or
`package.module:Class` for a user's own frozen dataclass with the hooks of `methods.base.Method`. A config that the user
gives imports that module; the config of a run folder never does (`core/plugins.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from hidecmoe_jax.core import strict
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.core.paths import find_config
from hidecmoe_jax.core.yaml_text import read_yaml
from hidecmoe_jax.data.feature_store import FeatureCache
from hidecmoe_jax.data.loader import doubled
from hidecmoe_jax.data.prompts import Template
from hidecmoe_jax.data.records import Policy
from hidecmoe_jax.data.stream import TaskSpec
from hidecmoe_jax.evaluate.answer import Writing
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.models.config import Fit
from hidecmoe_jax.runs.folder import RunFolder, no_run
from hidecmoe_jax.runs.journal import config_values
from hidecmoe_jax.runs.method_kinds import build_method, kind_of
from hidecmoe_jax.runs.ranges import in_range
from hidecmoe_jax.runs.scale import Scale
from hidecmoe_jax.runs.sealing import write_settings
from hidecmoe_jax.storage import seal
from hidecmoe_jax.storage.files import read_json
from hidecmoe_jax.train.optim import TrainConfig

POCKET = "pocket"  # the base model that is part of the package


@dataclass(frozen=True)
class PocketStream:
    """The pocket stream, generated once into a cache folder: its tasks in order, and the number of items of each."""

    tasks: tuple[str, ...] = ()
    seed: int = 0
    train: int = 1000
    val: int = 200
    test: int = 300
    folder: str | None = None


@dataclass(frozen=True)
class StreamConfig:
    """Tasks to learn, in order: those of the pocket stream, if any, then a user's folders.

    Attributes:
      policy: what to do with bad records; by default nothing is skipped.
      allowed_leaks: test items that may also be training items of some task.
      limit_train, limit_val, limit_test: records of each task folder that are used, for folders without limits of their
        own; chosen by a hash of ids, so always the same ones, and a larger number contains those of a smaller.
    """

    pocket: PocketStream | None = None
    tasks: tuple[TaskSpec, ...] = ()
    val_fraction: float = 0.1
    policy: Policy = Policy()
    allowed_leaks: int = 0
    limit_train: int | None = field(default=None, metadata=strict.YOUNGER)
    limit_val: int | None = field(default=None, metadata=strict.YOUNGER)
    limit_test: int | None = field(default=None, metadata=strict.YOUNGER)


@dataclass(frozen=True)
class Base:
    """The frozen model: `pocket` or a folder, its dtypes, and the memory that its cached features may take.

    Attributes:
      remat: compute activations again in the backward pass; on a single CPU device that is always done.
      feature_cache: pictures on disk, so that none is decoded twice; no number of a run depends on it.
      image_fit: how a picture becomes square: `pad` (LLaVA-1.5), `crop` (CLIP), or as the base's config says.
    """

    path: str = "pocket"
    dtype: Literal["float32", "bfloat16"] | None = None
    param_dtype: Literal["float32", "bfloat16"] | None = None
    remat: bool | None = None
    feature_batch: int = 64
    feature_gib: float = 4.0
    feature_cache: FeatureCache = field(default=FeatureCache(), metadata=strict.YOUNGER)
    image_fit: Literal["pad", "crop", "checkpoint"] = field(default="checkpoint", metadata=strict.YOUNGER)


@dataclass(frozen=True)
class Judging:
    """What is evaluated.

    Attributes:
      split: `test`, or `val` while choices are made.
      named: measure what naming the task would give: after the `last` task, after `all` of them, or never (`none`).
      zero_shot: measure the base before the first task.
      between: tasks that are measured after every lesson but the last: all that were `seen` so far and the next one,
        the lesson's `own`, or `none`. The last row is always complete; metrics that lack a cell are left empty.
      reuse: copy an answer that an earlier row has for the same choice of task, where the method's answers are final;
        without it every row generates all of its answers. Scores are the same.
      variants: measure the last row of the first seed under the method's other fusion rules too.
      wording: route the test questions in other wordings as well, after the last lesson (`evaluate/wording.py`).
      writing: how answers are written.
    """

    split: str = "test"
    named: Literal["none", "last", "all"] = "last"
    zero_shot: bool = True
    between: Literal["seen", "own", "none"] = "seen"
    reuse: bool = True
    variants: bool = True
    wording: bool = field(default=False, metadata=strict.YOUNGER)
    writing: Writing = Writing()

    def __post_init__(self):
        if self.split not in ("val", "test"):
            raise ValueError(f"split {self.split!r} must be 'val' or 'test'")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run depends on.

    Attributes:
      capacity: task slots of the compiled programs; doubled, with one more compilation, where a run has more lessons.
      verify_base: hash the base's weights before and after every task as well.
      scale: devices, and where the base lies on them; no part of what a run is, but for the bits of the base.
    """

    method: Any = Routed()
    base: Base = Base()
    stream: StreamConfig = StreamConfig(PocketStream())
    tune: TrainConfig = TrainConfig()
    evaluate: Judging = Judging()
    template: Template = Template()
    seeds: tuple[int, ...] = (0,)
    capacity: int = 8
    verify_base: bool = True
    scale: Scale = field(default=Scale(), metadata=strict.YOUNGER)

    def __post_init__(self):
        in_range(self.seeds, self.base, self.stream)
        if self.capacity < 1:
            raise ValueError("capacity must be at least 1")

    def slots_for(self, tasks: int) -> int:
        """Task slots of a run over `tasks` tasks: `capacity`, doubled until every lesson has one.

        Learning, evaluation, `ask` and studies of one run all build learners of this size, so that all of them run the
        same compiled programs and round alike.
        """
        return doubled(self.capacity, len(self.method.lessons(tasks)))


def load_config(source: str | Path, *, overrides: Iterable[str] = (), tasks: Iterable[str | Path] = ()) -> RunConfig:
    """Reads a config file (or a shipped one by name, as `pocket/hide`) and applies overrides to it.

    Args:
      overrides: assignments such as `tune.epochs=2`.
      tasks: task folders that replace the config's stream.

    Raises:
      ConfigError: no such file, unknown key, wrong type; names the file and the key.
    """
    path = find_config(source)
    # A config given by its path is the user's own command, unless it is part of a run, which may be anybody's.
    of_run = RunFolder(path.parent).identity.is_file()
    values = config_values(path.parent) if path == RunFolder(path.parent).config else read_yaml(path)
    return _with_changes(values, overrides, tasks, str(path), imports=not of_run)


def default_config(*, overrides: Iterable[str] = (), tasks: Iterable[str | Path] = ()) -> RunConfig:
    """The config without a file: every default, and the same changes.

    Raises:
      ConfigError: as `load_config`.
    """
    return _with_changes({}, overrides, tasks, "config", imports=True)


def _with_changes(
    mapping: Mapping[str, Any], overrides: Iterable[str], tasks: Iterable[str | Path], where: str, *, imports: bool
) -> RunConfig:
    """The config of plain values with task folders, then overrides, which may change an entry of a folder."""
    folders = [str(folder) for folder in tasks]
    if folders:
        tasks_of_stream = [{"folder": folder} for folder in folders]
        stream = dict(mapping.get("stream") or {}) | {"pocket": None, "tasks": tasks_of_stream}
        mapping = dict(mapping) | {"stream": stream}
    return from_mapping(strict.override(mapping, overrides), where, imports=imports)


def config_of(run: str | Path) -> RunConfig:
    """The configuration a run was started with.

    Raises:
      CheckpointError: the folder holds no run, or its config is not as the run wrote it; of a run without a seal, as it
        was learned with.
    """
    folder = RunFolder(Path(run))
    path = folder.config
    mapping = config_values(folder.path, sealed=True)
    if mapping is None:
        raise no_run(run)
    config = from_mapping(mapping, str(path), imports=False)
    if not seal.is_sealed(folder.path):
        require_recorded(folder, mapping, config)
    if config.base.image_fit == "checkpoint":
        # A run's own file states every other rule than padding (`as_recorded`), whatever its base says today.
        config = replace(config, base=replace(config.base, image_fit="pad"))
    return _with_places(config, lambda place: _found(place, path.parent))


def as_recorded(config: RunConfig, fit: Fit | Literal["checkpoint"]) -> RunConfig:
    """The config as a run records it: with the rule that makes pictures square, unless that is padding.

    A run then keeps its rule when its base is converted again, and runs that knew no other rule keep their files.
    """
    recorded = "checkpoint" if fit == "pad" else fit
    return replace(config, base=replace(config.base, image_fit=recorded))


def config_text(config: RunConfig) -> str:
    """The resolved config as YAML for `load_config`: folders absolute, and of `scale` the bits alone, so that it holds
    anywhere."""
    config = _with_places(
        replace(config, scale=Scale(bits=config.scale.bits)), lambda place: str(Path(place).absolute())
    )
    return yaml.safe_dump(to_mapping(config), sort_keys=False)


def write_config(config: RunConfig, run: Path) -> None:
    """Writes the resolved config of a run, durably and at once."""
    write_settings(RunFolder(run), config_text(config))


def require_recorded(folder: RunFolder, mapping: Mapping[str, Any], config: RunConfig) -> None:
    """Refuses the config of a run without a seal where it is not whole, or other than in run.json.

    Raises:
      CheckpointError: names the keys that differ.
    """
    identity = read_json(folder.identity).get("identity") if folder.identity.is_file() else None
    recorded = identity.get("config") if isinstance(identity, dict) else None
    if not recorded:
        return
    try:
        before = learning_values(from_mapping(recorded, imports=False))
    except ConfigError:
        return  # of a version whose settings are gone: what uses the config says so
    wrong = [f"{key} is missing" for key in _WHOLE if key not in mapping]
    now = learning_values(config)
    for path, old, new in strict.difference(before | {"stream": None}, now | {"stream": None}):
        # The digest of the base is compared, so it may lie somewhere else.
        if path != "base.path":
            wrong.append(f"{path}: learned with {old!r}, now {new!r}")
    if wrong:
        raise CheckpointError(
            "the config of the run is not the one that it was learned with", where=str(folder.config),
            why="\n         ".join(wrong), remedy="put these values back; run.json has all of them",
        )  # fmt: skip


_WHOLE = tuple(each.name for each in fields(RunConfig) if each.metadata != strict.YOUNGER)
"""Keys that the config of every run has."""


def _with_places(config: RunConfig, change: Callable[[str], str]) -> RunConfig:
    """The config with the paths of its base, its tasks and its pocket stream changed."""
    base = config.base
    if base.path != POCKET:
        base = replace(base, path=change(base.path))
    stream = config.stream
    # A folder of pictures is relative to its task, wherever that lies.
    tasks = tuple(replace(spec, folder=change(spec.folder)) for spec in stream.tasks)
    pocket = stream.pocket
    if pocket is not None and pocket.folder is not None:
        pocket = replace(pocket, folder=change(pocket.folder))
    return replace(config, base=base, stream=replace(stream, pocket=pocket, tasks=tasks))


def _found(place: str, run: Path) -> str:
    """A relative path of a run that did not record where it was begun: from here, or else from a folder above the run.

    What is found there is compared with the run's fingerprints like any other data.
    """
    path = Path(place)
    if path.is_absolute() or path.exists():
        return place
    for above in run.absolute().parents:
        if (above / path).exists():
            return str(above / path)
    return place


def moved(config: RunConfig, tasks: Iterable[str | Path], names: Sequence[str]) -> RunConfig:
    """The config of a run whose task folders lie somewhere else now; everything else of its tasks stays.

    Args:
      tasks: one folder for every task of the run, in their order; none for the folders of the config.
      names: of all tasks of the run, which they keep whatever their folders are called now.

    Raises:
      ConfigError: there are more or fewer folders than tasks.
    """
    folders = [str(Path(folder).absolute()) for folder in tasks]
    if not folders:
        return config
    if len(folders) != len(names):
        raise ConfigError(
            "folders and tasks do not match", where="--tasks",
            why=f"got {len(folders)}, the run has {len(names)}: {', '.join(names)}",
            remedy="give one folder for every task, in this order",
        )  # fmt: skip
    stream = config.stream
    # Tasks of the pocket stream come first and have no entry of their own.
    pocket = (TaskSpec(""),) * (len(names) - len(stream.tasks))
    specs = []
    for spec, folder, name in zip((*pocket, *stream.tasks), folders, names, strict=True):
        specs.append(replace(spec, folder=folder, name=name))
    return replace(config, stream=replace(stream, pocket=None, tasks=tuple(specs)))


def from_mapping(mapping: Mapping[str, Any], where: str = "config", *, imports: bool = True) -> RunConfig:
    """Builds a config from plain values; the inverse of `to_mapping`.

    Args:
      imports: import the module that the method's `kind` names; False for values that the user did not write.
    """
    # The method is built by its kind, everything else by the types of the fields.
    rest = dict(mapping)
    method = build_method(rest.pop("method", {}), f"{where}: method", imports=imports)
    return replace(strict.build(RunConfig, rest, where), method=method)


def to_mapping(config: RunConfig, *, complete: bool = False) -> dict[str, Any]:
    """Plain values that `from_mapping` reads back; `complete` with keys that older files lack, at their defaults."""
    plain = strict.plain(config, complete=complete)
    kind = kind_of(type(config.method))
    # The kind last: a class that inherits a shipped method inherits its kind as well.
    plain["method"] = {"kind": kind} | plain["method"] | {"kind": kind}
    return plain


def learning_values(config: RunConfig) -> dict[str, Any]:
    """The values that a run records, but for those no number depends on: devices, what is cached on disk, where."""
    # What is learned over int8 corrects other weights.
    plain = to_mapping(replace(as_recorded(config, config.base.image_fit), scale=Scale(bits=config.scale.bits)))
    plain["base"].pop("feature_cache", None)
    return plain
