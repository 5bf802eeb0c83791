"""Rules, meshes and their errors; and the whole model on eight virtual devices against one."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from hidecmoe_jax.core import sharding
from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.models.config import LlavaConfig, llava_7b
from hidecmoe_jax.models.llava import init_model, model_axes


def test_partition_follows_the_rules():
    assert sharding.partition(("layer", "width", "heads")) == PartitionSpec(None, "fsdp", "tensor")
    assert sharding.partition(("layer", "slot", "rank", "hidden")) == PartitionSpec(None, None, None, "tensor")
    assert sharding.partition(("batch", None)) == PartitionSpec(("data", "fsdp"), None)
    other = {**sharding.RULES, "width": None}
    assert sharding.partition(("vocab", "width"), other) == PartitionSpec("tensor", None)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'head'.*\n.*did you mean 'heads'.*known: batch, heads, hidden"):
        sharding.partition(("width", "head"))


def test_one_mesh_axis_cannot_cut_an_array_twice():
    with pytest.raises(ConfigError, match="'heads' and 'hidden' both map to 'tensor'"):
        sharding.partition(("heads", "hidden"))
    with pytest.raises(ConfigError, match="'batch' and 'width' both map to 'fsdp'"):
        sharding.partition(("batch", None, "width"))


def test_meshes_are_automatic_and_fit_the_machine():
    mesh = sharding.make_mesh()
    assert mesh.axis_names == ("data", "fsdp", "tensor") and set(mesh.axis_types) == {AxisType.Auto}
    with pytest.raises(ConfigError, match="data=2 x fsdp=500.*\n.*1000 devices"):
        sharding.make_mesh(data=2, fsdp=500)
    with pytest.raises(ConfigError, match="at least 1"):
        sharding.make_mesh(tensor=0)


def test_names_must_fit_the_array():
    mesh, array = sharding.make_mesh(), jnp.zeros((2, 3))
    with pytest.raises(ConfigError, match="norm/scale"):
        sharding.shardings({"norm": {"scale": ("width",)}}, {"norm": {"scale": array}}, mesh)
    with pytest.raises(ValueError, match="bias"):
        sharding.shardings({"bias": ("width",)}, {"scale": array}, mesh)


@pytest.mark.parametrize("config", [LlavaConfig(), llava_7b()])
def test_every_array_of_the_model_has_a_sharding(config):
    shapes = jax.eval_shape(lambda: init_model(config, jax.random.key(0)).params)
    tree = sharding.shardings(model_axes(config), shapes, sharding.make_mesh())
    assert jax.tree.structure(tree) == jax.tree.structure(shapes)
    assert tree["decoder"]["layers"]["down_proj"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")


EIGHT = Path(__file__).with_name("eight_devices.py")


# A training step and answers on a mesh of all three axes are those of one device: test_layouts.py.
@pytest.mark.parametrize("part", [pytest.param("model", marks=pytest.mark.slow), "refusal"])
def test_eight_devices(part):
    """In a process of its own: the number of CPU devices is fixed before JAX starts."""
    done = subprocess.run([sys.executable, str(EIGHT), part], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip() == f"{part}: ok"
