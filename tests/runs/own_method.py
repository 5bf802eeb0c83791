"""Methods of a user, outside the package: one that keeps the rules and one that breaks them."""

from dataclasses import dataclass

import jax

from hidecmoe_jax.methods.base import Learner
from hidecmoe_jax.methods.routed import Routed


@dataclass(frozen=True)
class Gentle(Routed):
    """HiDe with every new expert halved before it is planted."""

    share: float = 0.5

    def after(self, model, learner, stage, task) -> Learner:
        if stage.trains:
            live = {
                name: bank.replace(b=jax.tree.map(lambda b: b * self.share, bank.b))
                for name, bank in learner.live.items()
            }
            learner = learner.replace(live=live)
        return super().after(model, learner, stage, task)


@dataclass(frozen=True)
class Careless(Routed):
    """Touches the expert of task 0 by one part in a million while task 1 is learned."""

    def after(self, model, learner, stage, task) -> Learner:
        done = super().after(model, learner, stage, task)
        if task == 0 or not stage.trains:
            return done
        bank = done.past["linears"]
        touched = bank.replace(b=bank.b | {"up_proj": bank.b["up_proj"].at[:, 1].multiply(1 + 1e-6)})
        return done.replace(past={"linears": touched})
