"""Stages of a mixture: train a probe, count how often it is chosen, tune the new experts, fit the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.lax import dynamic_update_slice_in_dim

from hidecmoe_jax.experts import pool
from hidecmoe_jax.experts.bank import EMPTY, Bank
from hidecmoe_jax.experts.pool import POOL
from hidecmoe_jax.experts.routing import Voice, balance_loss
from hidecmoe_jax.experts.usage import UNAVAILABLE, Load
from hidecmoe_jax.methods.base import FrozenFeatures, Learner, Loss
from hidecmoe_jax.methods.growth import expert_init
from hidecmoe_jax.methods.growth.probe import layers_to_expand, split_records, tokens_per_slot
from hidecmoe_jax.methods.growth.worth import Worth, at_volume, strictest, worth_of, worthy_layers
from hidecmoe_jax.methods.mixture_voices import own_slots, pool_voices
from hidecmoe_jax.methods.stages import FitGate, Stage
from hidecmoe_jax.models.llava import Batch, Model, answer_loss
from hidecmoe_jax.models.voices import Tally

if TYPE_CHECKING:
    from hidecmoe_jax.methods.mixture import Mixture


def stages_of(method: Mixture, lesson: int) -> tuple[Stage, ...]:
    """The stages of a lesson. The first one has no old experts to compare a probe with."""
    stages: list[Stage] = []
    if lesson and method.probes:
        stages += _probing(method)
    stages.append(Tune(method=method))
    if method.probes and method.probe.controls(lesson):
        # The same stages as before tuning, and so the same programs: what they store depends on whether the task has
        # been learned.
        stages += _probing(method)
    if method.gate.kind not in ("named", "newest"):
        stages.append(FitGate(gate=method.gate))
    return tuple(stages)


def _probing(method: Mixture) -> tuple[Stage, Stage]:
    """A probe is trained, then measured on records that it was not trained on."""
    probe = method.probe
    train_probe = TrainProbe(method=method, steps=probe.steps, rate=probe.rate, accumulate=probe.accumulate)
    measure = MeasureGain(method=method) if probe.by_gain else CountUsage(method=method)
    return train_probe, measure


def is_learned(learner: Learner, lesson: int) -> bool:
    """Whether the lesson's router reaches an expert, so that what is probed is a known task."""
    visible_LS = np.asarray(learner.memory.visible[lesson])
    return bool(visible_LS.any())


@dataclass(frozen=True, kw_only=True)
class PoolStage(Stage):
    """A stage that runs the whole pool, old experts included."""

    method: Mixture
    uses_past: bool = True
    couples: bool = True
    is_probing: ClassVar[bool] = False

    def subset(self, count: int, seed: int) -> np.ndarray | None:
        """Records that probes are trained (`probe`) and measured on (`measure`)."""
        if self.subset_name == "all":
            return None
        trained, measured = split_records(self.method.probe, count, seed)
        return trained if self.subset_name == "probe" else measured

    def balance(self, learner: Learner) -> Array | float:
        """Weight of the load-balancing loss."""
        raise NotImplementedError

    def blank_router(self, learner: Learner, lesson: int, new: int, key: Array) -> Array:
        """A router [L, D, S + new] of the lesson before any training, with columns for `new` experts."""
        # The first lesson has no predecessor; its own row is still zeros.
        previous = lesson if is_learned(learner, lesson) else max(lesson - 1, 0)
        last_router = learner.memory.routers[previous]
        return self.with_columns(last_router, learner, new, key)

    def with_columns(self, old_LDS: Array, learner: Learner, new: int, key: Array) -> Array:
        """A router [L, D, S + new] with columns for `new` experts behind those of `old_LDS`, by the rule `columns`."""
        if self.method.is_open or self.method.columns == "fair":
            return expert_init.fair_router(old_LDS, new, key)
        return expert_init.blank_router(old_LDS, learner.past[POOL], new, key)

    def loss(
        self, model: Model, learner: Learner, batch: Batch, key: Array, lower_voices: tuple[Voice, ...] = ()
    ) -> Loss:
        """Answer loss of the whole pool, plus load balancing per answer token where new experts are among those chosen
        (with an open gate they are on for every token, so there is nothing to balance).

        Args:
          lower_voices: voices of layers below the pool's.
        """
        pool_pair = pool_voices(self.method, learner, key, probing=self.is_probing)
        voices = (*lower_voices, *pool_pair)
        total, tokens, tallies = answer_loss(model, batch, voices, tally=True)
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
        count_LS = jnp.where(active_LS, used.count, UNAVAILABLE)
        if self.method.is_open:
            load = Load(count_LS, self.method.top_k + self.method.more)
            return Loss(total, tokens, load)
        weight = self.balance(learner)
        balance_a_token = balance_loss(used.count, used.chance, active_LS)
        # Times the tokens, because `total` is a sum over answer tokens and is divided by their number later.
        balance = balance_a_token * tokens.astype(jnp.float32)
        load = Load(count_LS, self.method.top_k)
        return Loss(total + weight * balance, tokens, load)


@dataclass(frozen=True, kw_only=True)
class TrainProbe(PoolStage):
    """Trains one new expert in every layer for a short while, beside frozen old ones."""

    kind: str = "probe"
    subset_name: str = "probe"
    is_probing: ClassVar[bool] = True

    def balance(self, learner: Learner) -> float:
        """The probe's own weight."""
        return self.method.probe.balance

    def prepare(self, model: Model, learner: Learner, lesson: int, key: Array) -> Learner:
        """Puts a blank expert and a router with a column for it into training."""
        empty_slot = self.method.blank_bank(model, 1)
        live = expert_init.blank(empty_slot, 1, lesson, key)
        router = self.blank_router(learner, lesson, 1, key)
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

    def probing(self, model: Model, learner: Learner) -> Learner:
        """The learner with the trained probe in place."""
        probe = learner.memory.probe
        empty_slot = self.method.blank_bank(model, 1)
        live = empty_slot.with_factors(probe.factors)
        # Any owner will do: a slot takes part as soon as it is not EMPTY.
        owner_L1 = jnp.zeros_like(empty_slot.owner_LS)
        live = live.replace(owner_LS=owner_L1)
        return learner.replace(live={POOL: live}, routers={POOL: probe.router})

    def usage(self, model: Model, learner: Learner, batch: Batch, lower_voices: tuple[Voice, ...] = ()) -> Any:
        """How often every slot of the pool is chosen with the probe in place; the probe is the last slot."""
        voices = (*lower_voices, *pool_voices(self.method, self.probing(model, learner), None, probing=True))
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


class Measured(struct.PyTreeNode):
    """What a probe is judged by, summed over records: use of the slots, and gains of the layers."""

    tally: Tally
    worth: Worth


@dataclass(frozen=True, kw_only=True)
class MeasureGain(CountUsage):
    """Measures on other records how much loss the probe saves in every layer. Of a task that was just learned the
    result is the control, and nothing is decided."""

    def usage(self, model: Model, learner: Learner, batch: Batch, lower_voices: tuple[Voice, ...] = ()) -> Measured:
        """As `CountUsage.usage`, and gains by layer; the probe is the pool's only part that has a volume."""
        tally = CountUsage.usage(self, model, learner, batch, lower_voices)
        old_voice, new_voice = pool_voices(self.method, self.probing(model, learner), None, probing=True)

        def loss(volume_L: Array) -> tuple[Array, Array]:
            scaled = new_voice.replace(bank=at_volume(new_voice.bank, volume_L))
            total, tokens, _ = answer_loss(model, batch, (*lower_voices, old_voice, scaled))
            return total, tokens

        return Measured(tally, worth_of(loss, new_voice.bank.layers))

    def finish(self, model: Model, learner: Learner, lesson: int, result: FrozenFeatures | None, key: Array) -> Learner:
        """Stores the gains, and for a task that is new the layers to expand."""
        measured = result.usage
        verdict = learner.memory.verdict
        tokens = max(int(measured.worth.tokens), 1)
        gain_L = np.asarray(measured.worth.gain_L, np.float64) / tokens
        if is_learned(learner, lesson):
            verdict = verdict.replace(control=verdict.control.at[lesson].set(gain_L))
            # The probe and its router have served.
            probe = jax.tree.map(jnp.zeros_like, learner.memory.probe)
            return learner.replace(memory=learner.memory.replace(verdict=verdict, probe=probe))
        control_L = strictest(verdict.control[:lesson])
        owner_LS = np.asarray(learner.past[POOL].owner_LS)
        # Where every expert was retired, nothing is left that a router could send a token to.
        is_bare_L = (owner_LS == EMPTY).all(axis=1)
        expand_L = worthy_layers(gain_L, control_L, self.method.probe) | is_bare_L
        verdict = verdict.replace(
            expand=verdict.expand.at[lesson].set(expand_L),
            count=verdict.count.at[lesson].set(measured.tally.count),
            mass=verdict.mass.at[lesson].set(measured.tally.mass),
            gain=verdict.gain.at[lesson].set(gain_L),
        )
        return learner.replace(memory=learner.memory.replace(verdict=verdict))


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
        new = len(method.slots(lesson))
        empty_slot = method.blank_bank(model, 1)
        live = expert_init.blank(empty_slot, new, lesson, key)
        if method.probes and lesson:
            live = self._initial_experts(live, learner, lesson)
            router = self._initial_router(learner, new, key)
        else:
            router = self.blank_router(learner, lesson, new, key)
        # Empty slots make up for what a task gets less than another, so that all tasks train by one program.
        padding = max(method.first, method.more) - new
        if padding:
            padding_slots = method.blank_bank(model, padding)
            live = pool.concat_slots([live, padding_slots])
        not_padded = (0, 0)
        router = jnp.pad(router, (not_padded, not_padded, (0, padding)))
        return learner.replace(live={POOL: live}, routers={POOL: router})

    def _initial_router(self, learner: Learner, new: int, key: Array) -> Array:
        """The probe's router, trained further. Its column for the probe belongs to the probe's factors, so only experts
        that begin with those get it. An open gate's router begins anew: the probe's trained without a null expert."""
        router = learner.memory.probe.router
        if self.method.start == "probe" and not self.method.is_open:
            return expert_init.probe_router(router, new)
        return self.with_columns(router[..., :-1], learner, new, key)

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
        chosen_LS = visible_LS
        always = memory.always
        if always is not None:
            is_own_S = own_slots(self.method, lesson + 1, bank.slots)[lesson]
            always_LS = visible_LS & is_own_S
            always = always.at[lesson].set(always_LS)
            # What is on for every token, no router chooses.
            chosen_LS = visible_LS & ~always_LS
        chosen_L1S = chosen_LS[:, None, :]
        closed = jnp.where(chosen_L1S, joined, 0.0)
        memory = memory.replace(
            always=always,
            routers=memory.routers.at[lesson].set(closed),
            visible=memory.visible.at[lesson].set(visible_LS),
            # Zeros and not None: the tree and its shapes stay the same over all lessons.
            probe=jax.tree.map(jnp.zeros_like, memory.probe),
        )
        past = learner.past | {POOL: bank}
        return learner.replace(live={}, routers={}, past=past, memory=memory)
