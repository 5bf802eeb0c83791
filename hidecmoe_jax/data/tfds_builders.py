"""Builders for tensorflow-datasets: the public benchmarks, the pocket stream, and task folders of one's own.

One config is one task. `download_and_prepare` reads the tree of the authors from the manual folder and writes
array_record; nothing here needs TensorFlow, and pictures are stored as paths, so that no split meets the size from
which tensorflow-datasets would shuffle with TensorFlow.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import tempfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from hidecmoe_jax.core.errors import ConfigError, DataError, nearest
from hidecmoe_jax.data.benchmarks import STREAMS
from hidecmoe_jax.data.imports.official import TITLES, open_tree, read_official
from hidecmoe_jax.data.jsonfile import read_items
from hidecmoe_jax.data.names import folded_name, folder_title
from hidecmoe_jax.data.picture_folder import INNER
from hidecmoe_jax.data.pocket.tasks import TASKS
from hidecmoe_jax.data.prepared import ITEM, KEY, Prepared, data_dir, digest_of
from hidecmoe_jax.data.records import Policy
from hidecmoe_jax.data.stream import TaskSpec, name_of, scorer_name
from hidecmoe_jax.data.task_source import NAMES, FolderSource, about_of, open_source

FORMAT = "array_record"
_HEADER = Policy(pictures="header")


@dataclass(frozen=True)
class _Content:
    """What is written: the JSON object of every record by split, and where it comes from, as `Prepared` has it."""

    items: Mapping[str, list[Any]]
    source: Prepared


class TaskBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """One task a config; records in the order of their file."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First form."}
    # Where checksums of downloads would be looked for, with a package that only TensorFlow's users have.
    code_path: ClassVar = None

    @abstractmethod
    def _content(self, manual: Path) -> _Content:
        """The task of this config, read below the manual folder."""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self, description=self.__doc__, disable_shuffling=True, metadata=tfds.core.MetadataDict(),
            features=tfds.features.FeaturesDict({"id": text, "image": text, ITEM: text}),
        )  # fmt: skip

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        content = self._content(Path(dl_manager.manual_dir))
        self.info.metadata[KEY] = content.source.metadata()
        return {split: self._generate_examples(items) for split, items in content.items.items()}

    def _generate_examples(self, items: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, dict[str, str]]]:
        for number, item in enumerate(items):
            image = item.get("image") or ""
            name = str(item.get("id", item.get("question_id")))
            yield (
                number,
                {"id": name, "image": image if isinstance(image, str) else json.dumps(image), ITEM: _text(item)},
            )


class _OfficialBuilder(TaskBuilder, skip_registration=True):
    """A public benchmark, in the tree of its authors."""

    STREAM: ClassVar[str]

    def _content(self, manual: Path) -> _Content:
        tree = open_tree(self.STREAM, manual.resolve())
        name = self.builder_config.name
        places = {folded_name(task.name): (task, folder) for task, folder in tree.folders}
        if name not in places:
            raise DataError("the task is not in the tree", where=str(manual), why=nearest(name, places))
        task, folder = places[name]
        with tempfile.TemporaryDirectory() as staging:
            draft, _ = read_official(tree, task, folder, Path(staging))
        outside = [name for path, name in draft.names.items() if not Path(path).is_relative_to(tree.root)]
        if outside:
            raise DataError(
                f"{len(outside)} pictures lie outside of the folder", where=str(tree.root),
                why=f"{outside[0]} is a symbolic link that leads out of it",
                remedy="hidecmoe data import takes such a tree; build the task folders that it writes",
            )  # fmt: skip
        items = {}
        digests = {}
        for split, drafts in draft.splits.items():
            items[split] = [draft.item(record, split) for record in drafts]
            # Of the file that an import of the same tree writes.
            digests[split] = hashlib.sha256(draft.text(split).encode()).hexdigest()
        files = {split: f"{split}.json" for split in items}
        source = Prepared(manual, draft.about, str(tree.root), INNER, files, digests, _contents(items))
        return _Content(items, source)


class _FolderBuilder(TaskBuilder, skip_registration=True):
    """Task folders."""

    def _folder(self, manual: Path) -> Path:
        """The task folder of this config."""
        return manual

    def _content(self, manual: Path) -> _Content:
        folder = self._folder(manual.resolve())
        spec = TaskSpec(str(folder))
        source = open_source(folder, dict.fromkeys(NAMES), None)
        if not isinstance(source, FolderSource):
            raise DataError("the task is a prepared data set already", where=str(folder))
        items = {}
        digests = {}
        for split, file in source.files.items():
            # Refuses what a run would refuse, before anything is written.
            source.read(split, _HEADER)
            items[split] = read_items(folder / file)
            digests[split] = source.digest(split)
        about = {"title": folder_title(folder), **about_of(folder), "name": name_of(spec), "scorer": scorer_name(spec)}
        described = Prepared(folder, about, str(source.root), "", source.files, digests, _contents(items))
        return _Content(items, described)


class HidecmoeTasks(_FolderBuilder):
    """Task folders of one's own; the config has the name of the task, the manual folder is the task folder."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "train.json and test.json of the task, with its pictures"


class HidecmoePocket(_FolderBuilder):
    """The pocket stream, as `hidecmoe data pocket` writes it into the manual folder."""

    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in TASKS]
    MANUAL_DOWNLOAD_INSTRUCTIONS = "hidecmoe data pocket DIR, with the manual folder as DIR"

    def _folder(self, manual: Path) -> Path:
        return manual / self.builder_config.name


def _configs(stream: str) -> list[tfds.core.BuilderConfig]:
    configs = []
    for task in STREAMS[stream]:
        configs.append(tfds.core.BuilderConfig(name=folded_name(task.name), description=task.name))
    return configs


class HidecmoeCoin(_OfficialBuilder):
    """CoIN: eight tasks; `Instructions_Original/` and `cl_dataset/` in the manual folder."""

    STREAM = "coin"
    BUILDER_CONFIGS: ClassVar = _configs(STREAM)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Instructions_Original/ and cl_dataset/ of CoIN"


class HidecmoeUcit(_OfficialBuilder):
    """UCIT: six tasks; `instructions/` and `datasets/` in the manual folder."""

    STREAM = "ucit"
    BUILDER_CONFIGS: ClassVar = _configs(STREAM)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "instructions/ and datasets/ of UCIT"


class HidecmoeMllmDcl(_OfficialBuilder):
    """MLLM-DCL: five domains; `Domain_data/` in the manual folder."""

    STREAM = "mllm_dcl"
    BUILDER_CONFIGS: ClassVar = _configs(STREAM)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Domain_data/ of MLLM-CL"


class HidecmoeMllmAcl(_OfficialBuilder):
    """MLLM-ACL: four abilities; `Ability_data/` in the manual folder."""

    STREAM = "mllm_acl"
    BUILDER_CONFIGS: ClassVar = _configs(STREAM)
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ability_data/ of MLLM-CL"


BUILDERS = {
    "coin": HidecmoeCoin,
    "ucit": HidecmoeUcit,
    "mllm_dcl": HidecmoeMllmDcl,
    "mllm_acl": HidecmoeMllmAcl,
    "pocket": HidecmoePocket,
}


def build_tasks(folders: Iterable[str | Path], *, root: str | Path | None = None) -> list[str]:
    """Prepares task folders, and returns the word (`tfds:NAME/CONFIG@VERSION`) of each.

    Args:
      root: folder of data sets; by default `prepared.data_dir()`.

    Raises:
      DataError: a folder that cannot be read as a task.
      ConfigError: a data set of this name is there already.
    """
    words = []
    for folder in folders:
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError("no such task folder", where=str(folder), why="it is no folder")
        config = tfds.core.BuilderConfig(name=name_of(TaskSpec(str(folder))), description=str(folder))
        words.append(_prepare(HidecmoeTasks, config, folder, root))
    return words


def build_benchmark(name: str, manual: str | Path, *, root: str | Path | None = None) -> list[str]:
    """Prepares every task of a benchmark that the tree in `manual` holds; as `build_tasks`.

    Args:
      name: a key of `BUILDERS`.
    """
    if name not in BUILDERS:
        raise ConfigError("unknown benchmark", where=f"--benchmark {name}", why=nearest(name, BUILDERS))
    builder = BUILDERS[name]
    manual = Path(manual)
    if name in TITLES:
        names = [folded_name(task.name) for task, _ in open_tree(name, manual).folders]
    else:
        names = [task for task in TASKS if (manual / task).is_dir()]
    if not names:
        raise DataError("no task of the benchmark there", where=str(manual), why=f"expected {', '.join(TASKS)}")
    return [_prepare(builder, config, manual, root) for config in names]


def _prepare(builder: type[TaskBuilder], config: Any, manual: Path, root: str | Path | None) -> str:
    """Prepares one task and returns its word."""
    with _quiet():
        made = builder(config=config, data_dir=str(root or data_dir()), file_format=FORMAT)
    word = f"tfds:{made.name}/{made.builder_config.name}@{made.version}"
    if Path(made.data_dir).is_dir():
        raise ConfigError(
            "the data set is not overwritten", where=str(made.data_dir), why=f"{word} exists",
            remedy="give another --data-dir, or remove that folder if nothing uses it",
        )  # fmt: skip
    with _quiet():
        made.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(manual.resolve())))
    return word


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the messages of tensorflow-datasets, which speak of downloads."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


def _contents(items: Mapping[str, list[Any]]) -> dict[str, str]:
    return {split: digest_of(map(_text, each)) for split, each in items.items()}


def _text(item: Any) -> str:
    """A record as it is stored."""
    return json.dumps(item, ensure_ascii=False)
