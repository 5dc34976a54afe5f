"""Learning to act: the graphs of a batch are an episode, and a step plays it through and learns from it.

Double Q-learning (van Hasselt et al. 2016, arXiv 1509.06461): the network chooses the best next action, a copy of it
that is a little older says what that is worth. What was done is remembered in a ring of fixed size; all of it stays on
the device, in `State.memory`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kdjax import config
from kdjax.distill.views import view
from kdjax.train import optim
from kdjax.train.step import Measures, State, folded_key, variables


@dataclass(frozen=True)
class EpisodeStep:
    """What takes the place of `Step` where a stage has an agent. The model gives `state` and `q`, and applies its agent
    alone to states by its method `agent_of`; the task says what an action earns."""

    model: Any
    plan: config.Agent
    tx: optax.GradientTransformationExtraArgs
    rate: optax.Schedule
    task: Any
    seed: int
    teachers: ClassVar[dict] = {}
    terms: ClassVar[list] = []

    def memory(self, params: dict) -> dict:
        """What is remembered before the first step: nothing, in as much room as is needed."""
        size, width = self.plan.replay, self.model.agent.options.state
        empty = {"state": (width,), "next": (width,), "action": (), "reward": (), "last": (), "counts": ()}
        return {
            "target": jax.tree.map(jnp.copy, params),
            "replay": {k: jnp.zeros((size, *shape), jnp.float32) for k, shape in empty.items()},
            "filled": jnp.zeros((), jnp.int32),
        }

    def train(self, state: State, fixed: dict, batch: dict[str, Array]) -> tuple[State, dict]:
        """One episode: at each moment `acts` graphs are acted on, then one update is made."""
        plan, key = self.plan, folded_key(self.seed, "episode", state.step)
        whole = variables(optim.merge(state.params, fixed["frozen"]), state.batch_stats)
        outputs = self.model.apply(whole, *view(self.model, batch))
        episode = {"state": outputs["state"], "anomaly": outputs["anomaly"], "probability": outputs["probability"]}
        episode |= {"label": batch["class"], "counts": (batch["valid"] & batch["labelled"]).astype(jnp.float32)}
        episode = {k: v.reshape(-1, *v.shape[2:]) for k, v in episode.items()}
        moments = len(episode["state"]) // plan.acts
        episode = {k: v[: moments * plan.acts] for k, v in episode.items()}
        episode["next"] = jnp.roll(episode["state"], -1, axis=0)
        episode["last"] = (jnp.arange(moments * plan.acts) == moments * plan.acts - 1).astype(jnp.float32)
        moment_of = {k: v.reshape(moments, plan.acts, *v.shape[1:]) for k, v in episode.items()}
        explore = jnp.maximum(plan.explore * plan.explore_decay**state.step, plan.explore_end)

        def moment(carry: tuple[Any, Any, dict], now: tuple[dict, Array]) -> tuple[tuple, dict]:
            params, opt_state, memory = carry
            seen, keys = now[0], jax.random.split(now[1], 4)
            values = self.q(params, seen["state"])
            drawn = jax.random.randint(keys[0], (plan.acts,), 0, values.shape[-1])
            action = jnp.where(jax.random.uniform(keys[1], (plan.acts,)) < explore, drawn, values.argmax(axis=-1))
            alpha = action / (values.shape[-1] - 1)
            reward = self.task.reward(alpha, seen["anomaly"], seen["probability"], seen["label"])
            made = {**seen, "action": action.astype(jnp.float32), "reward": reward}
            at = (memory["filled"] + jnp.arange(plan.acts)) % plan.replay
            replay = {k: v.at[at].set(made[k]) for k, v in memory["replay"].items()}
            filled = memory["filled"] + plan.acts
            chosen = jax.random.randint(keys[2], (plan.batch_size,), 0, jnp.minimum(filled, plan.replay))
            some = {k: v[chosen] for k, v in replay.items()}
            loss, grads = jax.value_and_grad(self.loss)(params, memory["target"], some, keys[3])
            updates, opt_state = self.tx.update(grads, opt_state, params, value=loss)
            params = optax.apply_updates(params, updates)
            due = (filled // plan.acts) % plan.target_every == 0
            target = jax.tree.map(lambda old, new: jnp.where(due, new, old), memory["target"], params)
            told = {"loss": loss, "grad_norm": optax.tree.norm(grads), "reward": (reward * seen["counts"]).sum()}
            return (params, opt_state, {"target": target, "replay": replay, "filled": filled}), told

        start = (state.params, state.opt_state, state.memory)
        (params, opt_state, memory), told = jax.lax.scan(moment, start, (moment_of, jax.random.split(key, moments)))
        one = jnp.ones(())
        measures: Measures = {
            "loss": (told["loss"].mean(), one),
            "grad_norm": (told["grad_norm"].mean(), one),
            "reward": (told["reward"].sum(), episode["counts"].sum()),
            "explore": (explore, one),
            "lr": (jnp.asarray(self.rate(state.step * moments)), one),
        }
        return state.replace(step=state.step + 1, params=params, opt_state=opt_state, memory=memory), measures  # type: ignore

    def q(self, params: dict, states: Float[Array, "b s"], **options: Any) -> Float[Array, "b a"]:
        return self.model.apply({"params": params["model"]}, states, method="agent_of", **options)

    def loss(self, params: dict, target: dict, some: dict[str, Array], key: Array) -> Float[Array, ""]:
        """Smooth L1 between what actions promised and what they earned with the best that could follow."""
        best = self.q(params, some["next"]).argmax(axis=-1)
        after = jnp.take_along_axis(self.q(target, some["next"]), best[:, None], axis=1)[:, 0]
        earned = jax.lax.stop_gradient(some["reward"] + self.plan.gamma * (1.0 - some["last"]) * after)
        promised = self.q(params, some["state"], train=True, rngs={"dropout": key})
        promised = jnp.take_along_axis(promised, some["action"].astype(jnp.int32)[:, None], axis=1)[:, 0]
        each = optax.losses.huber_loss(promised, earned)
        return (each * some["counts"]).sum() / jnp.maximum(some["counts"].sum(), 1.0)

    def grad_norms(self, state: State, fixed: dict, batch: dict[str, Array]) -> Measures:
        """An agent has one loss."""
        return {}
