"""`hidecmoe data build`: task folders and benchmarks become data sets of tensorflow-datasets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

import hidecmoe_jax as hj
from hidecmoe_jax.cli.terminal import print_text
from hidecmoe_jax.cli.words import Folder
from hidecmoe_jax.core.errors import ConfigError

Benchmark = Annotated[Literal["coin", "ucit", "mllm_dcl", "mllm_acl", "pocket"] | None, arg(metavar="NAME")]


def build(
    folders: Annotated[tuple[Path, ...], Positional, arg(metavar="FOLDER ...")],
    /,
    *,
    to: Literal["tfds"] = "tfds",
    benchmark: Benchmark = None,
    data_dir: Folder = None,
) -> None:
    """Prepare task folders as data sets of tensorflow-datasets (array_record), without TensorFlow.

    Each is then a task by its name, wherever a command takes a task folder: tfds:hidecmoe_tasks/birds. A record
    keeps the paths of its pictures; these stay where they are. A data set has the fingerprint of its folder, so a run
    continues with either.

    Examples:
      $ hidecmoe data build my/birds my/charts --to tfds
      $ hidecmoe data build downloads/UCIT --to tfds --benchmark ucit

    Args:
      folders: task folders; with --benchmark, the folder of the benchmark as its authors publish it.
      to: form to write.
      benchmark: coin, ucit, mllm_dcl, mllm_acl or pocket (the folder that `data pocket` writes); one data set a task.
      data_dir: folder of data sets; by default TFDS_DATA_DIR, or ~/tensorflow_datasets, where commands look for a
        data set by its name.
    """
    if not folders:
        raise ConfigError("nothing to build", why="no folder given", remedy="hidecmoe data build DIR --to tfds")
    if benchmark is None:
        words = hj.build_tasks(folders, root=data_dir)
    elif len(folders) > 1:
        raise ConfigError("one benchmark at a time", where=f"--benchmark {benchmark}", remedy="give one folder")
    else:
        words = hj.build_benchmark(benchmark, folders[0], root=data_dir)
    for word in words:
        print_text(f"prepared: {word}")
    if data_dir is not None:
        print_text(f"commands look for it with TFDS_DATA_DIR={data_dir}")
    print_text(f"next: hidecmoe data check {' '.join(words)}")
