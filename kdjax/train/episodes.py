"""Learning to act: the graphs of a batch are an episode, and a step plays it through and learns from it.

Double Q-learning (van Hasselt et al. 2016, arXiv 1509.06461): the network chooses the best next action, a copy of it
that is a little older says what that is worth. What was done is remembered in a ring of fixed size; all of it stays on
the device, in the state's collections.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from kdjax.distill.taps import Network
from kdjax.tasks.task import Acting
from kdjax.train import optim
from kdjax.train.knobs import Knobs
from kdjax.train.objective import variables
from kdjax.train.step import Measures, State, folded_key


@dataclass(frozen=True)
class EpisodeStep:
    """What takes the place of `Step` where a stage has an agent. The model gives `state` and `q`, and applies its agent
    alone to states by its method `agent_of`; the task says what an action earns."""

    model: Any
    tx: optax.GradientTransformationExtraArgs
    rate: optax.Schedule  # update -> learning rate
    task: Acting

    def collections(self, params: dict) -> dict:
        """The memory before the first step: a copy of the parameters as target, and an empty replay of full size."""
        size, width = self.task.agent.replay, self.model.agent.options.state
        empty = {"state": (width,), "next": (width,), "action": (), "reward": (), "last": (), "counts": ()}
        return {
            "target": jax.tree.map(jnp.copy, params),
            "replay": {k: jnp.zeros((size, *shape), jnp.float32) for k, shape in empty.items()},
            "filled": jnp.zeros((), jnp.int32),
        }

    def train(self, state: State, fixed: dict, knobs: Knobs, batch: dict[str, Any]) -> tuple[State, dict]:
        """One episode: at each moment `acts` graphs are acted on, then one update is made."""
        plan, key = self.task.agent, folded_key(knobs["seed"], "episode", state.step)
        merged = variables(optim.merge(state.params, fixed["frozen"]), state.collections)
        outputs, _ = Network(self.model)(merged, batch)
        episode = {"state": outputs["state"], "anomaly": outputs["anomaly"], "probability": outputs["probability"]}
        episode |= {"label": batch["class"], "counts": (batch["valid"] & batch["class_known"]).astype(jnp.float32)}
        episode = {k: v[:, :-1].reshape(-1, *v.shape[2:]) for k, v in episode.items()}  # a pack's last graph is padding
        moments = len(episode["state"]) // plan.acts
        episode = {k: v[: moments * plan.acts] for k, v in episode.items()}
        episode["next"] = jnp.roll(episode["state"], -1, axis=0)
        episode["last"] = (jnp.arange(moments * plan.acts) == moments * plan.acts - 1).astype(jnp.float32)
        moment_of = {k: v.reshape(moments, plan.acts, *v.shape[1:]) for k, v in episode.items()}
        explore = jnp.maximum(plan.explore * plan.explore_decay**state.step, plan.explore_end)

        def moment(carry: tuple[Any, Any, dict], now: tuple[dict, Array, Array]) -> tuple[tuple, dict]:
            params, opt_state, memory = carry
            seen, keys, lr = now[0], jax.random.split(now[1], 4), knobs["lr"] * self.rate(now[2])
            values = self.q(params, seen["state"])
            drawn = jax.random.randint(keys[0], (plan.acts,), 0, values.shape[-1])
            action = jnp.where(jax.random.uniform(keys[1], (plan.acts,)) < explore, drawn, values.argmax(axis=-1))
            alpha = action / (values.shape[-1] - 1)
            reward = self.task.reward(alpha, seen["anomaly"], seen["probability"], seen["label"])
            transition = {**seen, "action": action.astype(jnp.float32), "reward": reward}
            at = (memory["filled"] + jnp.arange(plan.acts)) % plan.replay
            replay = {k: v.at[at].set(transition[k]) for k, v in memory["replay"].items()}
            filled = memory["filled"] + plan.acts
            chosen = jax.random.randint(keys[2], (plan.batch_size,), 0, jnp.minimum(filled, plan.replay))
            sample = {k: v[chosen] for k, v in replay.items()}
            loss, grads = jax.value_and_grad(self.loss)(params, memory["target"], sample, keys[3])
            updates, opt_state = self.tx.update(grads, opt_state, params, value=loss)
            params = optax.apply_updates(params, jax.tree.map(lambda u: -lr * u, updates))
            due = (filled // plan.acts) % plan.target_every == 0
            target = jax.tree.map(lambda old, new: jnp.where(due, new, old), memory["target"], params)
            recorded = {"loss": loss, "grad_norm": optax.tree.norm(grads), "reward": (reward * seen["counts"]).sum()}
            return (params, opt_state, {"target": target, "replay": replay, "filled": filled}), recorded

        memory = {k: state.collections[k] for k in ("target", "replay", "filled")}
        updates = state.step * moments + jnp.arange(moments)
        given = (moment_of, jax.random.split(key, moments), updates)
        (params, opt_state, memory), recorded = jax.lax.scan(moment, (state.params, state.opt_state, memory), given)
        weight = jnp.ones(())
        measures: Measures = {
            "loss": (recorded["loss"].mean(), weight),
            "grad_norm": (recorded["grad_norm"].mean(), weight),
            "reward": (recorded["reward"].sum(), episode["counts"].sum()),
            "explore": (explore, weight),
            "lr": (knobs["lr"] * self.rate(state.step * moments), weight),
        }
        collections = state.collections | memory
        new = State(state.step + 1, params, collections, opt_state, state.slow, state.ema)  # type: ignore[call-arg]
        return new, measures

    def q(self, params: dict, states: Float[Array, "b s"], **options: Any) -> Float[Array, "b a"]:
        return self.model.apply({"params": params["model"]}, states, method="agent_of", **options)

    def loss(self, params: dict, target: dict, sample: dict[str, Array], key: Array) -> Float[Array, ""]:
        """Smooth L1 between what actions promised and what they earned with the best that could follow."""
        best = self.q(params, sample["next"]).argmax(axis=-1)
        after = jnp.take_along_axis(self.q(target, sample["next"]), best[:, None], axis=1)[:, 0]
        earned = jax.lax.stop_gradient(sample["reward"] + self.task.agent.gamma * (1.0 - sample["last"]) * after)
        promised = self.q(params, sample["state"], train=True, rngs={"dropout": key})
        promised = jnp.take_along_axis(promised, sample["action"].astype(jnp.int32)[:, None], axis=1)[:, 0]
        each = optax.losses.huber_loss(promised, earned)
        return (each * sample["counts"]).sum() / jnp.maximum(sample["counts"].sum(), 1.0)

    def grad_norms(self, state: State, fixed: dict, knobs: Knobs, batch: dict[str, Any]) -> Measures:
        """An agent has one loss."""
        return {}
