"""Methods of a user, outside the package: one that keeps the rules, one that breaks them, and two that lack hooks."""

from dataclasses import dataclass

import jax

from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stages import WrappedStage
from hidecmoe_jax.methods.wrapper import Wrapper


def with_training_stage(stages, wrapped):
    """The stages with every training one in a wrapper."""
    return tuple(wrapped(stage) if stage.trains else stage for stage in stages)


@dataclass(frozen=True, kw_only=True)
class Halving(WrappedStage):
    """Scales the new expert before it is planted."""

    share: float

    def finish(self, model, learner, lesson, result, key):
        live = {
            name: bank.replace(b=jax.tree.map(lambda b: b * self.share, bank.b)) for name, bank in learner.live.items()
        }
        return self.inner.finish(model, learner.replace(live=live), lesson, result, key)


@dataclass(frozen=True)
class Gentle(Routed):
    """HiDe with every new expert halved before it is planted."""

    share: float = 0.5

    def stages(self, lesson):
        return with_training_stage(super().stages(lesson), lambda stage: Halving.around(stage, share=self.share))


@dataclass(frozen=True, kw_only=True)
class Touching(WrappedStage):
    """Changes the expert of task 0 by one part in a million."""

    def finish(self, model, learner, lesson, result, key):
        done = self.inner.finish(model, learner, lesson, result, key)
        if lesson == 0:
            return done
        bank = done.past["linears"]
        touched = bank.replace(b=bank.b | {"down_proj": bank.b["down_proj"].at[:, 1].multiply(1 + 1e-6)})
        return done.replace(past={"linears": touched})


@dataclass(frozen=True)
class Careless(Routed):
    """Touches the expert of task 0 by one part in a million while task 1 is learned."""

    def stages(self, lesson):
        return with_training_stage(super().stages(lesson), Touching.around)


@dataclass(frozen=True)
class Unfinished(Method):
    """Inherits the hooks that have a body, and defines none of the others."""


@dataclass(frozen=True)
class Nameless(Wrapper):
    """Has every hook, and no name for the report."""

    inner: Routed = Routed()
