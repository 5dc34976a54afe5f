"""Optimisers and schedules, all of them optax; a list of rules sets what each parameter gets by its name."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from kdjax.config import ConfigError, Optim, nearest

OPTIMISERS = {  # name -> what it is
    "adam": "Adam (Kingma & Ba 2015), weight decay as part of the gradient",
    "adamw": "Adam with decoupled weight decay (Loshchilov & Hutter 2019)",
    "sgd": "stochastic gradient descent with momentum, weight decay as part of the gradient",
}
SCHEDULES = ("constant", "onecycle", "plateau", "warmup_cosine", "warmup_poly")
PULLS = ("sum", "sharpness", "separate", "balanced")


def build(
    optim: Optim, params: Mapping, steps_per_epoch: int, epochs: int
) -> tuple[optax.GradientTransformationExtraArgs, optax.Schedule]:
    """The transformation of gradients into a direction, and the learning rate over steps.

    A step adds -rate(step) * direction to the trainable `params`. The direction is `tx.update(grads, opt_state,
    params, value=loss)`, or minus the measure `over`; for "separate" `grads` is [the task's, the teachers'], for
    "sharpness" `grad_fn` takes the place of `value`. Weight decay is decoupled for adamw (Loshchilov & Hutter 2019) and
    part of the gradient, L2, for adam and sgd, as in PyTorch. What "plateau" learns is in the direction;
    `plateau_scale(opt_state)` reads it.
    """
    rate = schedule(optim, steps_per_epoch, epochs)
    if optim.lookahead > (steps := max(epochs, 1) * steps_per_epoch):
        raise ConfigError(
            f"optim.lookahead: expected at most the {steps} steps of the stage, found {optim.lookahead}, which would "
            "leave the slow parameters as they are"
        )
    decay, lr_scale = rules(optim.decay, params, "optim.decay"), rules(optim.lr_scale, params, "optim.lr_scale")
    decayed = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, p, d: u + optim.weight_decay * d * p, updates, params, decay)
    )
    scaled = optax.stateless(lambda updates, _: jax.tree.map(lambda u, s: u * s, updates, lr_scale))
    adam = optax.scale_by_adam(optim.b1, optim.b2, optim.eps)
    match optim.name:
        case "adamw":
            inner = [adam, decayed]
        case "adam":
            inner = [decayed, adam]
        case "sgd" if optim.pull == "separate":
            inner = [separate_momenta(decayed, optim.momentum, optim.spread)]
        case "sgd":
            inner = [decayed, optax.trace(optim.momentum)] if optim.momentum else [decayed]
        case other:
            raise ConfigError(f"optim.name: no optimiser {other!r}; {nearest(other, OPTIMISERS)}")
    centre = [centralised()] if optim.centralise else []
    clip = [optax.clip_by_global_norm(optim.clip)] if optim.clip else []
    plateau = []
    if optim.schedule == "plateau":
        plateau = [
            # A measure of validation data is the same in all steps of an epoch, so that an epoch counts by its steps;
            # losses are averaged over an epoch. As PyTorch has it, less than 1e-4 is no improvement.
            optax.contrib.reduce_on_plateau(
                optim.factor,
                optim.patience * steps_per_epoch if optim.over else optim.patience,
                rtol=0.0 if optim.over else 1e-4,
                atol=1e-4 if optim.over else 0.0,
                accumulation_size=1 if optim.over else steps_per_epoch,
                min_scale=optim.end_lr / optim.lr,
            )
        ]
    tx = optax.chain(*centre, *clip, *inner, scaled, *plateau)
    if optim.pull == "sharpness":
        tx = optax.contrib.sam(tx, ascent(optim), sync_period=2, opaque_mode=True)
    return optax.with_extra_args_support(tx), rate


def ascent(optim: Optim) -> optax.GradientTransformation:
    """The way to the worst point: `radius` along the gradient g, or, `adaptive`, radius T² g / ‖T g‖ with T = |θ|."""
    sized = optax.stateless(lambda grads, params: jax.tree.map(lambda g, p: jnp.abs(p) * g, grads, params))
    scale = [sized] if optim.adaptive else []
    # The small number is for a gradient of 0, which leads nowhere.
    return optax.chain(*scale, optax.normalize_by_update_norm(eps=1e-12), *scale, optax.sgd(optim.radius))


def centralised() -> optax.GradientTransformation:
    """optax's, for kernels alone and as Flax lays them out: it takes the first axis for that of the outputs."""

    def of(path: Any, grad: Any) -> Any:
        if grad.ndim < 2 or path[-1].key != "kernel":
            return grad
        centred: Any = optax.centralize().update(jnp.moveaxis(grad, -1, 0), optax.EmptyState())[0]
        return jnp.moveaxis(centred, 0, -1)

    return optax.stateless(lambda grads, _: jax.tree.map_with_path(of, grads))


def stepped(optim: Optim, params: Any, slow: Any, updates: Any, step: Any) -> tuple[Any, Any]:
    """The parameters after a step, and the slow ones of lookahead, which move in every `lookahead`-th step alone."""
    if not optim.lookahead:
        return optax.apply_updates(params, updates), slow
    both = optax.LookaheadParams(fast=params, slow=slow)
    count = optax.LookaheadState(fast_state=optax.EmptyState(), steps_since_sync=step % optim.lookahead)
    moves: Any = optax.lookahead(optax.identity(), optim.lookahead, optim.slow).update(updates, count, both)[0]
    return optax.apply_updates(params, moves.fast), optax.apply_updates(slow, moves.slow)


def check_pull(optim: Optim, teaches: bool) -> None:
    """Refuses a way of making the gradient that cannot work here; `teaches` says whether any term hears a teacher."""
    if optim.pull not in PULLS:
        raise ConfigError(f"optim.pull: no way {optim.pull!r}; {nearest(optim.pull, PULLS)}")
    if optim.pull == "separate" and optim.name != "sgd":
        raise ConfigError(f"optim.pull='separate' keeps momenta of sgd apart, found optim.name={optim.name!r}")
    if optim.pull == "sharpness" and optim.schedule == "plateau":
        raise ConfigError("optim.pull='sharpness' does not go with schedule='plateau'; choose another schedule")
    if optim.adaptive and optim.pull != "sharpness":
        raise ConfigError(f"optim.adaptive says how pull='sharpness' looks around, found optim.pull={optim.pull!r}")
    if optim.pull in ("separate", "balanced") and not teaches:
        raise ConfigError(f"optim.pull={optim.pull!r} sets teachers against the rest, and no term reads a teacher")


def check_acting(optim: Optim) -> None:
    """Refuses what an agent's updates, several to a step, do without."""
    least = Optim()
    if strange := [k for k in ("pull", "lookahead", "ema") if getattr(optim, k) != getattr(least, k)]:
        given = ", ".join(f"optim.{name}={getattr(optim, name)!r}" for name in strange)
        raise ConfigError(f"{given}: an agent learns by plain steps; leave {'it' if len(strange) == 1 else 'them'} out")


def separate_momenta(
    decayed: optax.GradientTransformation, momentum: float, spread: float
) -> optax.GradientTransformation:
    """[the task's gradient, the teachers'] -> the sum of their momenta, whose decays are `momentum` minus and plus
    `spread` (Zhao et al. 2023, DOT: the teachers' knowledge is to dominate the direction)."""
    task, teachers = optax.chain(decayed, optax.trace(momentum - spread)), optax.trace(momentum + spread)

    def init(params: Any) -> Any:
        return task.init(params), teachers.init(params)

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        first, of_task = task.update(updates[0], state[0], params)
        second, of_teachers = teachers.update(updates[1], state[1], params)
        return jax.tree.map(jnp.add, first, second), (of_task, of_teachers)

    return optax.GradientTransformation(init, update)


def combined(pull: str, groups: list[Any]) -> Any:
    """The gradients of the groups of terms as one; "balanced" makes the teachers' as long as the task's."""
    if len(groups) == 1:
        return groups[0]
    task, teachers = groups
    if pull == "balanced":
        longer = optax.tree.norm(task) / jnp.maximum(optax.tree.norm(teachers), 1e-12)
        teachers = jax.tree.map(lambda g: longer * g, teachers)
    return jax.tree.map(jnp.add, task, teachers)


def schedule(optim: Optim, steps_per_epoch: int, epochs: int) -> optax.Schedule:
    """Step -> learning rate. Warm-up climbs in equal steps, the first of them above zero so that no step is lost."""
    warm, steps = round(optim.warmup * steps_per_epoch), max(epochs, 1) * steps_per_epoch
    if optim.schedule not in SCHEDULES:
        raise ConfigError(f"optim.schedule: no schedule {optim.schedule!r}; {nearest(optim.schedule, SCHEDULES)}")
    if not 0 <= warm < steps:
        raise ConfigError(f"optim.warmup: expected 0 to less than the {epochs} epochs, found {optim.warmup}")
    if optim.schedule == "plateau" and not (0 < optim.factor < 1 and optim.patience >= 1):
        raise ConfigError(
            "plateau: expected optim.factor in (0, 1) and optim.patience of at least 1, "
            f"found {optim.factor} and {optim.patience}"
        )
    if optim.over and optim.schedule != "plateau":
        raise ConfigError(f"optim.over={optim.over!r} says what a plateau is of, found schedule={optim.schedule!r}")
    match optim.schedule:
        case "onecycle":
            climb = (warm + 0.5) / steps if warm else 0.3  # half a step for optax, which rounds down
            fall = optim.lr / 25.0 / optim.end_lr if optim.end_lr else 1e4
            return optax.cosine_onecycle_schedule(steps, optim.lr, climb, 25.0, fall)
        case "warmup_cosine":
            rest = optax.cosine_decay_schedule(optim.lr, steps - warm, optim.end_lr / optim.lr)
        case "warmup_poly":
            rest = optax.polynomial_schedule(optim.lr, optim.end_lr, optim.power, steps - warm)
        case _:
            rest = optax.constant_schedule(optim.lr)
    if not warm:
        return rest
    return optax.join_schedules([optax.linear_schedule(optim.lr / (warm + 1), optim.lr, warm), rest], [warm])


def plateau_scale(opt_state: Any) -> Any:
    """What "plateau" multiplies the learning rate by; 1 for the other schedules."""
    kind = optax.contrib.ReduceLROnPlateauState
    scales = [s.scale for s in jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, kind)) if isinstance(s, kind)]
    return scales[0] if scales else 1.0


def rules(patterns: tuple[tuple[str, Any], ...], tree: Mapping, name: str = "rules") -> dict[str, Any]:
    """`tree` with each leaf replaced by the value of the first pattern that matches the whole of its "/"-joined path.

    A leaf without a rule is an error, and so is a pattern that matches nothing: mistyped, it would freeze or decay
    other than meant. Exempt are patterns that begin with ".*", which claim nothing about a certain model, and those
    for adapters, which a control run does without.
    """
    flat = flatten_dict(tree, sep="/")
    values, faults = {}, []
    for path in flat:
        hits = [value for pattern, value in patterns if re.fullmatch(pattern, path)]
        if hits:
            values[path] = hits[0]
        else:
            faults.append(f"no pattern matches {path}; add one, or a last (r'.*', value)")
    for pattern, _ in patterns:
        if not pattern.startswith((".*", "adapters")) and not any(re.fullmatch(pattern, path) for path in flat):
            # Compared with as many names as the pattern spells out, so that the hint is no list of every leaf.
            spelt = re.sub(r"[^\w/].*", "", pattern).strip("/")
            heads = {"/".join(path.split("/")[: spelt.count("/") + 1]) for path in flat}
            faults.append(f"pattern {pattern!r} matches no parameter; {nearest(spelt, heads)}")
    if faults:
        raise ConfigError(f"{name}:\n  " + "\n  ".join(faults))
    return unflatten_dict(values, sep="/")


def split(params: Mapping, mask: Mapping) -> tuple[dict[str, Any], dict[str, Any]]:
    """(trainable, frozen): the leaves where `mask` is true and the others, so that gradients and the optimiser's
    state exist for the trainable alone."""
    flat, chosen = flatten_dict(params, sep="/"), flatten_dict(mask, sep="/")
    trainable = {path: leaf for path, leaf in flat.items() if chosen[path]}
    frozen = {path: leaf for path, leaf in flat.items() if not chosen[path]}
    return unflatten_dict(trainable, sep="/"), unflatten_dict(frozen, sep="/")


def merge(trainable: Mapping, frozen: Mapping) -> dict[str, Any]:
    """The inverse of `split`."""
    return unflatten_dict(flatten_dict(trainable) | flatten_dict(frozen))


def ema(decay: float, old: Any, new: Any, step: Any) -> Any:
    """The average of the parameters one step on: `d * old + (1 - d) * new`.

    d is (1 + step) / (10 + step) until that reaches `decay`: an average that begins with the untrained parameters
    would else be made of them for as long as 1 / (1 - decay) steps, which is all that a small data set has.
    """
    return optax.incremental_update(new, old, 1.0 - jnp.minimum(decay, (1.0 + step) / (10.0 + step)))
