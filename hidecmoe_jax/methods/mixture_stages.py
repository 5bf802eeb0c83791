"""Stages of a mixture: train a probe, count how often it is chosen, tune the new experts, fit the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.lax import dynamic_update_slice_in_dim

from hidecmoe_jax.experts import pool
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Routing, Voice, balance_loss
from hidecmoe_jax.experts.usage import UNAVAILABLE, Load
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Loss
from hidecmoe_jax.methods.growth import expert_init
from hidecmoe_jax.methods.growth.probe import layers_to_expand, split_records, tokens_per_slot
from hidecmoe_jax.methods.stages import FitGate, Stage
from hidecmoe_jax.models.llava import Batch, Model, answer_loss
from hidecmoe_jax.models.voices import Tally

if TYPE_CHECKING:
    from hidecmoe_jax.methods.mixture import Mixture


def stages_of(method: Mixture, lesson: int) -> tuple[Stage, ...]:
    """The stages of a lesson. The first one has no old experts to compare a probe with."""
    stages: list[Stage] = []
    if lesson and method.probes:
        probe = method.probe
        train_probe = TrainProbe(method=method, steps=probe.steps, rate=probe.rate, accumulate=probe.accumulate)
        stages += [train_probe, CountUsage(method=method)]
    stages.append(Tune(method=method))
    if method.gate.kind != "named":
        stages.append(FitGate(gate=method.gate))
    return tuple(stages)


def pool_voices(method: Mixture, learner: Learner, key: Array | None) -> tuple[Voice, Voice]:
    """Old and new experts under the router that trains: one softmax over both."""
    past = learner.past[POOL]
    live = learner.live[POOL]
    router_L1DS = learner.routers[POOL][:, None]
    old_columns = router_L1DS[..., : past.slots]
    new_columns = router_L1DS[..., past.slots :]
    old_routing = Routing(_owned(past), old_columns, method.top_k, softmax_group=POOL)
    new_routing = Routing(_owned(live), new_columns, method.top_k, softmax_group=POOL)
    old_voice = Voice(past, old_routing)
    new_voice = Voice(live, new_routing, key, dropout=method.lora.dropout)
    return old_voice, new_voice


def _owned(bank: Bank) -> Array:
    """Gain 1 for owned slots and 0 for EMPTY ones, float32 [L, 1, S]."""
    is_owned_LS = bank.owner_LS != EMPTY
    gain_LS = is_owned_LS.astype(jnp.float32)
    return gain_LS[:, None]


@dataclass(frozen=True, kw_only=True)
class PoolStage(Stage):
    """A stage that runs the whole pool, old experts included."""

    method: Mixture
    uses_past: bool = True

    def subset(self, count: int, seed: int) -> np.ndarray | None:
        """Records that probes are trained (`probe`) and measured on (`measure`)."""
        if self.subset_name == "all":
            return None
        trained, measured = split_records(self.method.probe, count, seed)
        return trained if self.subset_name == "probe" else measured

    def balance(self, learner: Learner) -> Array | float:
        """Weight of the load-balancing loss."""
        raise NotImplementedError

    def loss(
        self, model: Model, learner: Learner, batch: Batch, key: Array, lower_voices: tuple[Voice, ...] = ()
    ) -> Loss:
        """Answer loss of the whole pool, plus load balancing per answer token.

        Args:
          lower_voices: voices of layers below the pool's.
        """
        pool_pair = pool_voices(self.method, learner, key)
        voices = (*lower_voices, *pool_pair)
        total, tokens, tallies = answer_loss(model, batch, voices, tally=True)
        weight = self.balance(learner)
        active = []
        for voice in pool_pair:
            gain_LS = voice.routing.gain_LBS[:, 0]
            active.append(gain_LS > 0)
        active_LS = jnp.concatenate(active, axis=-1)

        def by_slot(*voice_LSK: Array) -> Array:
            tally_LSK = jnp.concatenate(voice_LSK, axis=1)
            return jnp.sum(tally_LSK, axis=-1)

        # The pool reaches up to the top, so its tallies are those of the last segment of layers.
        used = jax.tree.map(by_slot, *tallies[-1])
        balance_a_token = balance_loss(used.count, used.chance, active_LS)
        # Times the tokens, because `total` is a sum over answer tokens and is divided by their number later.
        balance = balance_a_token * tokens.astype(jnp.float32)
        count_LS = jnp.where(active_LS, used.count, UNAVAILABLE)
        load = Load(count_LS, self.method.top_k)
        return Loss(total + weight * balance, tokens, load)


@dataclass(frozen=True, kw_only=True)
class TrainProbe(PoolStage):
    """Trains one new expert in every layer for a short while, beside frozen old ones."""

    kind: str = "probe"
    subset_name: str = "probe"

    def balance(self, learner: Learner) -> float:
        """The probe's own weight."""
        return self.method.probe.balance

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Puts a blank expert and a router with a column for it into training."""
        empty_slot = self.method.blank_bank(model, 1)
        live = expert_init.blank(empty_slot, 1, lesson, key)
        previous = max(lesson - 1, 0)
        last_router = learner.memory.routers[previous]
        past = learner.past[POOL]
        router = expert_init.blank_router(last_router, past, 1, key)
        return learner.replace(live={POOL: live}, routers={POOL: router})

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Stores the trained probe for the measurement."""
        memory = learner.memory
        factors = learner.live[POOL].factors
        router = learner.routers[POOL]
        probe = memory.probe.replace(factors=factors, router=router)
        return learner.replace(live={}, routers={}, memory=memory.replace(probe=probe))


@dataclass(frozen=True, kw_only=True)
class CountUsage(PoolStage):
    """Counts on other records how often the probe is chosen, and decides which layers are expanded."""

    kind: str = "weigh"
    source: str = "usage"
    subset_name: str = "measure"

    def usage(self, model: Model, learner: Learner, batch: Batch, lower_voices: tuple[Voice, ...] = ()) -> Tally:
        """How often every slot of the pool is chosen with the probe in place; the probe is the last slot."""
        probe = learner.memory.probe
        empty_slot = self.method.blank_bank(model, 1)
        live = empty_slot.with_factors(probe.factors)
        # Any owner will do: a slot takes part as soon as it is not EMPTY.
        owner_L1 = jnp.zeros_like(empty_slot.owner_LS)
        live = live.replace(owner_LS=owner_L1)
        probing = learner.replace(live={POOL: live}, routers={POOL: probe.router})
        voices = (*lower_voices, *pool_voices(self.method, probing, None))
        _, _, tallies = answer_loss(model, batch, voices, tally=True)

        def side_by_side(*voice_LSK: Array) -> Array:
            return jnp.concatenate(voice_LSK, axis=1)

        # The pool reaches up to the top, so its tallies are those of the last segment of layers.
        return jax.tree.map(side_by_side, *tallies[-1])

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Stores the verdict: which layers are expanded, and the counts it was read from."""
        method = self.method
        memory = learner.memory
        verdict = memory.verdict
        usage = result.usage
        owner_LS = np.asarray(learner.past[POOL].owner_LS)
        owned_LS = owner_LS != EMPTY
        probe_L1 = np.ones((len(owned_LS), 1), bool)
        active_LS = np.concatenate([owned_LS, probe_L1], axis=1)
        count_LS = tokens_per_slot(usage.count, method.probe)
        expand_L = layers_to_expand(count_LS, active_LS, method.probe, fewest=method.top_k)
        verdict = verdict.replace(
            expand=verdict.expand.at[lesson].set(expand_L),
            count=verdict.count.at[lesson].set(usage.count),
            mass=verdict.mass.at[lesson].set(usage.mass),
        )
        return learner.replace(memory=memory.replace(verdict=verdict))


@dataclass(frozen=True, kw_only=True)
class Tune(PoolStage):
    """Trains the task's new experts, in the layers that are expanded, and its router."""

    kind: str = "tune"

    def balance(self, learner: Learner) -> Array:
        """The method's weight in the first task, in which the pool is empty; 0 in later ones, float32 []."""
        # An array and not a field of the stage: another stage would compile another program.
        owner_LS = learner.past[POOL].owner_LS
        is_first = jnp.all(owner_LS == EMPTY)
        return jnp.where(is_first, self.method.balance, 0.0)

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Puts the task's new experts and their router into training."""
        method = self.method
        past = learner.past[POOL]
        memory = learner.memory
        new = len(method.slots(lesson))
        empty_slot = method.blank_bank(model, 1)
        live = expert_init.blank(empty_slot, new, lesson, key)
        if method.probes and lesson:
            live = self._initial_experts(live, learner, lesson)
            router = expert_init.probe_router(memory.probe.router, new)
        else:
            # The first lesson has no predecessor; its own row is still zeros.
            previous = max(lesson - 1, 0)
            last_router = memory.routers[previous]
            router = expert_init.blank_router(last_router, past, new, key)
        # Empty slots make up for what a task gets less than another, so that all tasks train by one program.
        padding = max(method.first, method.more) - new
        if padding:
            padding_slots = method.blank_bank(model, padding)
            live = pool.concat_slots([live, padding_slots])
        not_padded = (0, 0)
        router = jnp.pad(router, (not_padded, not_padded, (0, padding)))
        return learner.replace(live={POOL: live}, routers={POOL: router})

    def _initial_experts(self, live: Bank, learner: Learner, lesson: int) -> Bank:
        """New experts initialised by the rule of `start`, in the layers that the probe expanded."""
        method = self.method
        memory = learner.memory
        past = learner.past[POOL]
        if method.start == "copy":
            count_NLSK = np.asarray(memory.verdict.count)
            # Without the probe, which is the last slot and not in the pool.
            pool_count_LSK = count_NLSK[lesson, :, :-1]
            count_LS = tokens_per_slot(pool_count_LSK, method.probe)
            live = expert_init.init_from_copy(live, past, count_LS)
        elif method.start == "probe":
            live = expert_init.init_from_probe(live, memory.probe.factors)
        return expert_init.keep_only_layers(live, memory.verdict.expand[lesson])

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Writes the new experts into the pool and closes the task's router over the experts of its time."""
        live = learner.live[POOL]
        router = learner.routers[POOL]
        memory = learner.memory
        new_slots = self.method.slots(lesson)
        first_new = new_slots.start
        # Without the EMPTY slots that `prepare` padded with.
        experts = pool.slice_slots(live, 0, len(new_slots))
        bank = pool.write_slots(learner.past[POOL], first_new, experts)
        visible_LS = bank.owner_LS != EMPTY
        # While training, new experts' columns are behind the pool's; in the pool they move to their slots.
        pool_columns = router[..., : bank.slots]
        end_of_new = bank.slots + len(new_slots)
        new_columns = router[..., bank.slots : end_of_new]
        joined = dynamic_update_slice_in_dim(pool_columns, new_columns, first_new, axis=2)
        visible_L1S = visible_LS[:, None, :]
        closed = jnp.where(visible_L1S, joined, 0.0)
        memory = memory.replace(
            routers=memory.routers.at[lesson].set(closed),
            visible=memory.visible.at[lesson].set(visible_LS),
            # Zeros and not None: the tree and its shapes stay the same over all lessons.
            probe=jax.tree.map(jnp.zeros_like, memory.probe),
        )
        past = learner.past | {POOL: bank}
        return learner.replace(live={}, routers={}, past=past, memory=memory)
