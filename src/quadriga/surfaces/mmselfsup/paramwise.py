"""Rates and decays of single parameters, by the names that they have in the reference.

``custom_keys`` are parts of names. Sorted by length, the longest first and then by the alphabet,
the first that is in a name decides, and then no other rule does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from quadriga.contracts import OptimizerConfig
from quadriga.errors import UserError
from quadriga.optim.parts.groups import is_exempt

_PREDICTOR = "predictor."

Rule = tuple[float, float]
"""(factor of the rate, factor of the decay) of a parameter."""


def rule_of(name: str, own_name: str, ndim: int, given: Mapping[str, Any]) -> Rule:
    """Return the rule of one parameter.

    Args:
        name: Its name in the reference, such as ``backbone.layers.0.ln1.weight``.
        own_name: Its name here.
        ndim: Its number of dimensions.
        given: The config's ``paramwise_cfg``.
    """
    custom = custom_rule(name, given)
    if custom is not None:
        return float(custom.get("lr_mult", 1.0)), float(custom.get("decay_mult", 1.0))
    is_norm, is_bias = "norm" in own_name, own_name.endswith("bias")
    lr = given.get("bias_lr_mult") if is_bias and not is_norm else None
    decay = None
    if is_norm:
        decay = given.get("norm_decay_mult")
    elif is_bias:
        decay = given.get("bias_decay_mult")
    elif ndim == 1:
        decay = given.get("flat_decay_mult")
    return 1.0 if lr is None else float(lr), 1.0 if decay is None else float(decay)


def custom_rule(name: str, given: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the rule of ``custom_keys`` that decides for a name of the reference."""
    custom = given.get("custom_keys") or {}
    for key in sorted(sorted(custom), key=len, reverse=True):
        if key in name:
            return custom[key]  # type: ignore[no-any-return]
    return None


def optimizer_rules(
    named_parameters: Sequence[tuple[str, nn.Parameter]],
    reference_name: Callable[[str], str | None],
    given: Mapping[str, Any],
    adapts: bool = False,
    fixed: float | None = None,
) -> dict[str, Any]:
    """Return the optimizer's ``no_decay``, ``decay_vectors``, ``lr_scales`` and ``constant_lr``.

    Where the engine's own parts of names exempt the same parameters, they stay; otherwise each
    exempt parameter is listed by its whole name.

    Args:
        named_parameters: The trainable parameters by their names here.
        reference_name: Their names in the reference; None where it has none.
        given: The config's ``paramwise_cfg``.
        adapts: Whether the optimizer is LARS, which here adapts exactly what has weight decay.
        fixed: Factor of the rate of parameters with ``fix_lr``, which is constant; None: none is.

    Raises:
        UserError: LARS is to adapt a parameter without decay, or not to adapt one with it.
    """
    rules = {
        name: rule_of(reference_name(name) or name, name, parameter.ndim, given)
        for name, parameter in named_parameters
    }
    exempt = {name for name, (_, decay) in rules.items() if decay == 0.0}
    scales = {name: lr for name, (lr, _) in rules.items() if lr != 1.0}
    custom = {
        name: custom_rule(reference_name(name) or name, given) or {} for name, _ in named_parameters
    }
    for name in custom if adapts else ():
        if bool(custom[name].get("lars_exclude")) != (name in exempt):
            raise UserError(
                f"optim_wrapper.paramwise_cfg must set lars_exclude=True and decay_mult=0 together,"
                f" but for {reference_name(name)} only one is; set both"
            )
    found: dict[str, Any] = {"lr_scales": scales}
    if fixed is not None:
        held = [name for name, rule in custom.items() if rule.get("fix_lr")]
        whole = [name for name in custom if name.startswith(_PREDICTOR)] == held
        found["constant_lr"] = [_PREDICTOR] if whole and held else held
        scales |= {name: fixed for name in held if fixed != 1.0}
    usual = OptimizerConfig.model_fields["no_decay"].default
    if exempt == {name for name, p in named_parameters if is_exempt(name, p, usual)}:
        return found
    return {**found, "no_decay": sorted(exempt), "decay_vectors": True}
