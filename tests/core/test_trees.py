"""Trees as flat dicts: exact round trips, strict restoring, digests of every bit; keys that never repeat."""

from __future__ import annotations

import hashlib

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hidecmoe_jax.core import trees
from hidecmoe_jax.core.errors import CheckpointError, ConfigError
from hidecmoe_jax.core.keys import key_for


@flax.struct.dataclass
class Pair:
    """A struct with a static field, as banks and models are."""

    left: jax.Array
    right: dict
    name: str = flax.struct.field(pytree_node=False, default="x")


def sample() -> dict:
    return {
        "pair": Pair(jnp.arange(6, dtype=jnp.int32).reshape(2, 3), {"b": jnp.ones((2,), jnp.bfloat16)}),
        "list": [jnp.zeros((0, 4)), None, jnp.float32(2.5)],
        "empty": {},
    }


names = st.text("abc_.1", min_size=1, max_size=4)
nested = st.recursive(
    st.integers(0, 9), lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8
).filter(lambda tree: isinstance(tree, dict))


@given(nested)
def test_unflatten_is_the_inverse_of_flatten(tree):
    assert trees.unflatten(trees.flatten(tree)) == tree


def test_paths_are_readable_in_every_container():
    state = optax.adamw(1e-3).init({"w": jnp.ones(3)})
    assert list(trees.flatten(state)) == ["0/count", "0/mu/w", "0/nu/w"]
    assert list(trees.flatten(sample())) == ["list/0", "list/2", "pair/left", "pair/right/b"]
    assert list(trees.flatten(jnp.ones(2))) == [""]


def test_ambiguous_paths_are_refused():
    with pytest.raises(CheckpointError, match="a/b"):
        trees.flatten({"a/b": 1, "a": {"b": 2}})
    with pytest.raises(CheckpointError, match="leaf and a folder"):
        trees.unflatten({"a": 1, "a/b": 2})


def test_restore_gives_the_same_bits_and_structure():
    tree = sample()
    flat = {path: np.asarray(leaf) for path, leaf in trees.flatten(tree).items()}
    template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    back = trees.restore_into(template, flat)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert trees.digests(back) == trees.digests(tree)
    assert back["pair"].name == "x"


@pytest.mark.parametrize(
    "change, words",
    [
        ({"list/2": None}, ["missing list/2"]),
        ({"pair/rigth/b": np.ones(2)}, ["left over pair/rigth/b", "did you mean 'pair/right/b'"]),
        ({"list/2": np.zeros((1,), np.float32)}, ["list/2", "expected float32[]", "got float32[1]"]),
        ({"list/2": np.float64(1)}, ["list/2", "expected float32[]", "got float64[]"]),
    ],
)
def test_restore_refuses_what_does_not_fit(change, words):
    flat = {**trees.flatten(sample()), **change}
    with pytest.raises(CheckpointError) as caught:
        trees.restore_into(sample(), {path: leaf for path, leaf in flat.items() if leaf is not None})
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_digest_is_a_plain_sha256_of_dtype_shape_and_bytes():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    expected = hashlib.sha256(b"float32[2, 3]" + array.tobytes()).hexdigest()
    assert trees.digests({"a": array}) == {"a": expected}
    assert trees.digests({"a": jnp.asarray(array)}) == {"a": expected}
    assert trees.digests({"a": np.asfortranarray(array)}) == {"a": expected}


def test_digest_sees_one_bit_a_dtype_a_shape_and_a_name():
    array = np.arange(6, dtype=np.float32)
    flipped = array.copy()
    flipped.view(np.uint8)[13] ^= 1
    variants = [array, flipped, array.view(np.int32), array.reshape(2, 3), array[:5]]
    found = {trees.digest({"a": variant}) for variant in variants} | {trees.digest({"b": array})}
    assert len(found) == 6
    assert trees.digest({"a": array, "b": flipped}) == trees.digest({"b": flipped, "a": array})
    assert trees.digest({"k": key_for(0, "a")}) != trees.digest({"k": key_for(0, "b")})


def test_counts_and_bytes_hold_for_abstract_leaves():
    tree = {"a": np.zeros((3, 4), np.float32), "b": jnp.zeros((5,), jnp.bfloat16), "c": np.zeros((0, 9))}
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
    assert trees.count(tree) == trees.count(abstract) == 17
    assert trees.nbytes(tree) == trees.nbytes(abstract) == 58


def test_pick_and_overlay_belong_together():
    tree = {"decoder": {"q": jnp.ones(2), "qq": jnp.ones(3)}, "projector": {"w": jnp.ones(4)}}
    assert list(trees.pick(tree, "decoder/q")) == ["decoder/q"]
    assert list(trees.pick(tree, "decoder")) == ["decoder/q", "decoder/qq"]
    changed = trees.overlay(tree, {path: leaf + 1 for path, leaf in trees.pick(tree, "decoder").items()})
    assert changed["projector"]["w"] is tree["projector"]["w"]
    assert float(changed["decoder"]["qq"][0]) == 2 and float(tree["decoder"]["qq"][0]) == 1
    with pytest.raises(CheckpointError, match="did you mean 'decoder/q'"):
        trees.overlay(tree, {"decoder/qx": jnp.ones(2)})
    with pytest.raises(CheckpointError, match=r"expected float32\[2\], got float32\[3\]"):
        trees.overlay(tree, {"decoder/q": jnp.ones(3)})
    with pytest.raises(CheckpointError, match="projector"):
        trees.pick(tree, "projektor")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_all_finite_names_the_bad_leaf(bad, dtype):
    good = {"n": jnp.arange(3), "e": jnp.zeros((0,)), "x": {"w": jnp.ones(4, dtype)}}
    assert trees.all_finite(good) is None
    assert trees.all_finite({**good, "x": {"w": good["x"]["w"].at[2].set(bad)}}) == "x/w"


def test_keys_depend_on_seed_name_kind_and_order_and_on_nothing_else(run_python):
    purposes = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", "b"), (0, "b", "a"), (0, 1), (0, "1"), (0, "a", 1)]
    data = [np.asarray(jax.random.key_data(key_for(*purpose))).tolist() for purpose in purposes]
    assert len({tuple(row) for row in data}) == len(purposes)
    done = run_python(
        "import jax; from hidecmoe_jax.core.keys import key_for;"
        "print(jax.random.key_data(key_for(0, 'a', 'b')).tolist())",
        env={"PYTHONHASHSEED": "7"},
    )
    assert done.stdout.strip() == str(data[4]), done.stderr
    with pytest.raises(ConfigError, match="str or int"):
        key_for(0, 1.5)
