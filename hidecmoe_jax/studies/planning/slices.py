"""Devices of a TPU slice that is not here, as its compiler describes them: programs are compiled for them, not run."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from hidecmoe_jax.core.errors import ConfigError, ResourceError
from hidecmoe_jax.core.sharding import MESH_AXES
from hidecmoe_jax.studies.planning.machines import Machine

# The compiler's library takes itself to be on a TPU host: without these it asks the network for the host's name, writes
# pages of warnings, and refuses to be loaded by a second process.
_ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def has_tpu_compiler() -> bool:
    """Whether the TPU compiler is installed; it needs no TPU."""
    try:
        version("libtpu")
    except PackageNotFoundError:
        return False
    return True


def check_tpu_compiler(machine: Machine) -> None:
    """Raises ConfigError where the TPU compiler is not installed; names the command."""
    if not has_tpu_compiler():
        raise ConfigError(
            "the TPU compiler is not installed", where=f"--target {machine.name} --compile",
            why="programs for a TPU are compiled by libtpu, which needs no TPU",
            remedy=f"pip install 'jax[tpu]=={jax.__version__}', which brings the version that belongs to this jax",
        )  # fmt: skip


def slice_mesh(machine: Machine, sizes: tuple[int, int, int]) -> Mesh:
    """A mesh of the devices of a TPU slice.

    Args:
      sizes: devices along data, fsdp and tensor.

    Raises:
      ConfigError: the compiler is not installed; names the command.
      ResourceError: it is, and cannot be loaded.
    """
    check_tpu_compiler(machine)
    for name, value in _ALONE.items():
        os.environ.setdefault(name, value)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=machine.topology)
        mesh = topologies.make_mesh(topology, sizes, MESH_AXES)
    except (RuntimeError, ValueError) as error:
        raise ResourceError(
            "the TPU compiler cannot be used", where=f"libtpu, topology {machine.topology}",
            why=str(error).splitlines()[0],
            remedy=f"pip install 'jax[tpu]=={jax.__version__}', and end other processes that use it",
        ) from error  # fmt: skip
    return Mesh(mesh.devices, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
