"""The methods of this package by the `kind` that a config names."""

from __future__ import annotations

from hidecmoe_jax.methods.base import Method
from hidecmoe_jax.methods.ewc import Ewc
from hidecmoe_jax.methods.full import Full
from hidecmoe_jax.methods.incmoe import IncMoe
from hidecmoe_jax.methods.lwf import Lwf
from hidecmoe_jax.methods.merged import Merged
from hidecmoe_jax.methods.mixture import Mixture
from hidecmoe_jax.methods.moelora import MoeLora
from hidecmoe_jax.methods.olora import OLora
from hidecmoe_jax.methods.reglora import RegLora
from hidecmoe_jax.methods.replay import Replay
from hidecmoe_jax.methods.routed import Routed
from hidecmoe_jax.methods.stacked import Stacked

_CLASSES = (Routed, Mixture, Stacked, MoeLora, Replay, Ewc, Lwf, OLora, RegLora, Merged, IncMoe, Full)
METHODS: dict[str, type[Method]] = {cls.kind: cls for cls in _CLASSES}
