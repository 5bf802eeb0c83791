"""The routed family without training: published sizes, choices of layers, and what is refused."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, tiny_model

from hidecmoe_jax.core.errors import ConfigError
from hidecmoe_jax.core.strict import build, plain
from hidecmoe_jax.experts import surgery
from hidecmoe_jax.experts.bank import Bank
from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.methods.fusion import FusionRule
from hidecmoe_jax.methods.gates.anchors import AnchorGate, NamedGate
from hidecmoe_jax.methods.lora import LINEARS, Lora
from hidecmoe_jax.methods.routed import Routed, RoutedMemory
from hidecmoe_jax.methods.routed_stages import Tune
from hidecmoe_jax.models.config import llava_7b
from hidecmoe_jax.models.llava import init_model, model_sites


def sizes_at_7b(method: Routed, tasks: int) -> dict[str, dict[str, int]]:
    """Sizes after `tasks` tasks of LLaVA-1.5-7B, from shapes alone."""
    config, rank = llava_7b(), method.lora.rank
    model = SimpleNamespace(config=config, params=jax.eval_shape(lambda: init_model(config, jax.random.key(0)).params))
    layers, slots = config.decoder.layers, 1 if method.growth == "shared" else tasks + 1
    owned = 1 if method.growth == "shared" else tasks
    owner_LS = np.tile(np.arange(slots) - (slots - owned), (layers, 1))
    shape = jax.ShapeDtypeStruct
    bank = Bank(
        a={site: shape((layers, d, slots, rank), jnp.float32) for site, (d, _) in model_sites(config).items()},
        b={site: shape((layers, slots, rank, f), jnp.float32) for site, (_, f) in model_sites(config).items()},
        owner_LS=owner_LS,
        scale=2.0,
    )
    return method.sizes(model, Learner({}, {}, {LINEARS: bank}, {}, RoutedMemory()))


def test_sizes_are_the_published_ones():
    # 31 fused layers of 624,640, six experts of the last one, two anchors of 768 a task (specification, section 10).
    found = sizes_at_7b(Routed(), 6)
    assert 31 * 624_640 == 19_363_840 and 6 * 624_640 == 3_747_840
    assert found["stored"]["experts"] == 19_363_840 + 3_747_840 == 23_111_680
    assert found["stored"]["locator"] == 6 * 2 * 768
    assert found["stored"]["projector"] == 1024 * 4096 + 4096 + 4096 * 4096 + 4096
    assert found["archived"]["experts"] == 6 * 32 * 624_640
    assert found["trained"]["experts"] == 32 * 624_640
    merged = sizes_at_7b(Routed(expand="none", train_projector=False), 6)
    assert merged["stored"] == {"experts": 32 * 624_640, "routers": 0, "locator": 9216, "projector": 0}
    assert sizes_at_7b(Routed(expand="all"), 6)["stored"]["experts"] == 6 * 32 * 624_640
    assert sizes_at_7b(Routed(fusion="product_mean"), 6)["stored"]["experts"] == 6 * 32 * 624_640
    assert sizes_at_7b(Routed(growth="shared"), 6)["stored"]["experts"] == 32 * 624_640


def test_expanded_layers_come_from_the_model():
    assert [Routed().expanded(layers) for layers in (2, 32, 40)] == [(1,), (31,), (39,)]
    assert Routed(expand=(3, 0, 3)).expanded(4) == (0, 3) and Routed(expand=(3, 0)).fused(4) == (1, 2)
    assert Routed(expand="none").fused(3) == (0, 1, 2) and Routed(expand="all").fused(3) == ()
    assert Routed(growth="shared").expanded(3) == ()
    with pytest.raises(ConfigError, match="cannot expand"):
        Routed(expand=(32,)).expanded(32)


def test_a_method_says_what_it_needs():
    assert [stage.kind for stage in Routed().stages(0)] == ["tune", "locate"]
    assert [stage.kind for stage in Routed(gate=NamedGate()).stages(0)] == ["tune"]
    assert Routed(growth="none").stages(0) == () and Routed(growth="none").lessons(3) == ()
    assert Routed().lessons(3) == ((0,), (1,), (2,)) and Routed(growth="shared", union=True).lessons(3) == ((0, 1, 2),)
    assert (
        Routed(gate=NamedGate()).traits.needs_task_name
        and not Routed(growth="shared", gate=NamedGate()).traits.needs_task_name
    )
    assert Routed().traits.keeps_old_experts and not Routed(growth="shared").traits.keeps_old_experts


def test_variants_share_an_archive_and_differ_in_fusion():
    found = Routed().variants()
    assert {name: variant.fusion for name, variant in found.items()} == {rule: rule for rule in found}
    assert Routed() in found.values() and len(found) == 3
    assert Routed(expand="all").variants() == {} and Routed(growth="shared").variants() == {}


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"sites": ()}, {"sites": ("q_proj", "z_proj")}])
def test_senseless_experts_are_refused(wrong):
    with pytest.raises(ValueError):
        Lora(**wrong)


def test_a_missing_fusion_weight_is_named():
    model = tiny_model(0)
    bank = Lora(rank=2).blank(model, 4)
    for task in (0, 1):
        young = surgery.sprout(Lora(rank=2).blank(model, 1), 0, task, jax.random.key(task))
        bank = surgery.plant(bank, 1 + task, young, task)
    with pytest.raises(ConfigError, match="1 weights for 2 tasks"):
        FusionRule(eps=(1.0,)).gains(bank, (0,))
    gains = FusionRule("product_sum", (0.5, 2.0, 9.0)).gains(bank, (0, 1, 2))
    np.testing.assert_array_equal(gains, [[0, 0.5, 2.0, 0]] * 3)


@pytest.mark.parametrize(("volume", "factor"), [("1/T", 1 / 3), ("1/sqrt(T)", 3**-0.5), (0.4, 0.4), (None, 1.0)])
def test_a_volume_scales_a_sum_of_products(volume, factor):
    model = tiny_model(0)
    bank = Lora(rank=2).blank(model, 4)
    for task in range(3):
        young = surgery.sprout(Lora(rank=2).blank(model, 1), 0, task, jax.random.key(task))
        bank = surgery.plant(bank, 1 + task, young, task)
    gains = FusionRule("product_sum", (1.0, 2.0, 3.0), volume=volume).gains(bank, (0, 2))
    np.testing.assert_allclose(gains, np.array([[0, 1, 2, 3], [0] * 4, [0, 1, 2, 3]]) * factor, rtol=1e-6)
    if volume == "1/T":
        mean = FusionRule("product_mean", (1.0, 2.0, 3.0)).gains(bank, (0, 2))
        np.testing.assert_allclose(gains, mean, rtol=1e-6)


def test_a_volume_belongs_to_a_sum_of_products():
    for wrong in ({"volume": 0.4}, {"volume": "1/T", "fusion": "product_mean"}, {"train_as": "served"}):
        with pytest.raises(ValueError, match="product_sum"):
            Routed(**wrong)
    with pytest.raises(ValueError, match="at least 0"):
        Routed(fusion="product_sum", volume=-1.0)
    louder = Routed(fusion="product_sum", volume=0.4, train_as="served")
    variants = louder.variants()
    assert variants["product_sum"] == louder and variants["product_mean"].volume is None
    assert not {"volume", "train_as"} & set(plain(Routed())) and build(Routed, plain(louder), "test") == louder


def test_the_projector_trains_in_float32_whatever_the_base_is_stored_in():
    shapes = jax.eval_shape(lambda: init_model(TINY, jax.random.key(0)))
    half = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.bfloat16), shapes)
    learner = Routed().stages(0)[0].prepare(half, Routed().init(half, 2), 0, jax.random.key(0))
    assert {leaf.dtype.name for leaf in learner.tuned.values()} == {"float32"}
    assert sorted(learner.tuned) == [f"projector/linear{n}/{part}" for n in (1, 2) for part in ("bias", "kernel")]
    frozen = Routed(train_projector=False).stages(0)[0]
    assert frozen.prepare(half, learner, 0, jax.random.key(0)).tuned == {}


def test_defaults_are_the_official_values():
    assert AnchorGate() == AnchorGate(mixing=0.5, temperature=0.1, legacy=False)
    assert Lora().alpha / Lora().rank == 2.0 and len(Lora().sites) == 7


def test_methods_that_train_alike_share_a_program_and_stages_that_read_more_keep_their_own():
    """A method is static in the jitted step, which is compiled anew for every other one."""
    method = Routed(lora=Lora(rank=2))
    tune = method.stages(0)[0].compiled_as
    for other in (replace(method, name="other"), replace(method, expand="all"), replace(method, gate=NamedGate())):
        assert other.stages(0)[0].compiled_as == tune
    assert replace(method, lora=Lora(rank=2, dropout=0.5)).stages(0)[0].compiled_as != tune
    served = replace(method, fusion="product_sum", train_as="served").stages(0)[0]

    class Louder(Tune):
        """A stage of somebody's own."""

    for stage in (served, Louder(method=method)):
        assert stage.compiled_as is stage
