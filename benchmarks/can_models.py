"""Training steps of the CAN models in PyTorch Geometric and in kdjax, in turns on this machine.

    python -m benchmarks.can_models [--cases=NAME,...] [--rounds=7] [--threads=1]

A step is the forward pass, the loss, its gradient, and Adam, on 64 windows of about 25 nodes. PyTorch's modules are
those of `convert/originals` with PyG's layers in them, and read no padding; kdjax reads one pack of a bucket's size.
Results are added to results/can_models.json; see `side_by_side.py` for how turns are taken. On a machine that others
use, one thread is the fair measure: PyTorch's threads wait for each other, and lose more where one is held up.
"""

import argparse
import json
import os
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import jraph
import numpy as np

from benchmarks.side_by_side import RESULTS, Failed, Worker, duration, machine, summary, times
from benchmarks.worker import turns
from kdjax import launch

GRAPHS, NODES, EDGES, ROUND = 64, (20, 29), 38, 64
NUM_IDS, FEATURES = 2032, 10
KL = 0.1  # the weight of the posterior's penalty in the VGAE's loss

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gat_a_student": ("can_gat", {"variant": "a_student"}),
    "gat_b_student": ("can_gat", {"variant": "b_student"}),
    "gat_b_teacher": ("can_gat", {"variant": "b_teacher"}),
    "gat_c_large": ("can_gat", {"variant": "c_large"}),
    "vgae_b_student": ("can_vgae", {"variant": "b_student"}),
    "vgae_b_teacher": ("can_vgae", {"variant": "b_teacher"}),
}


def windows() -> tuple[jraph.GraphsTuple, np.ndarray]:
    """The graphs side by side, and the label of each."""
    rng, parts = np.random.default_rng(0), []
    for _ in range(GRAPHS):
        n = int(rng.integers(*NODES))
        links = np.sort(rng.permutation(n * n)[:EDGES])
        nodes = {
            "x": rng.random((n, FEATURES), np.float32),
            "id": np.sort(rng.permutation(NUM_IDS)[:n]).astype(np.int32),
        }
        ends = {"senders": (links // n).astype(np.int32), "receivers": (links % n).astype(np.int32)}
        sizes = {"n_node": np.array([n], np.int32), "n_edge": np.array([EDGES], np.int32)}
        parts.append(jraph.GraphsTuple(nodes=nodes, edges=None, globals=None, **ends, **sizes))
    return jraph.batch_np(parts), (rng.random(GRAPHS) < 0.3).astype(np.float32)


def torch_step(name: str, options: dict[str, Any], threads: int) -> tuple[Callable[[], object], Callable, int]:
    """As `torch_side.build`."""
    import jax
    import torch
    from torch.nn import functional as F

    from convert.originals import can_gat, can_vgae, gat_conv, packs
    from kdjax.config import Model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyG compiles scripts, which PyTorch calls deprecated
        from torch_geometric.nn import GATConv

    class Layer(GATConv):
        def forward(self, x, senders, receivers):
            return super().forward(x, torch.stack([senders, receivers]))

    torch.set_num_threads(threads)
    gat_conv.CONVS["gat"] = Layer
    graphs, label = jax.tree.map(packs.tensor, windows())
    module = {"can_gat": can_gat, "can_vgae": can_vgae}[name].build(Model(name, **options)).train()
    adam = torch.optim.Adam(module.parameters(), lr=1e-3)

    ends = {"senders": graphs.senders, "receivers": graphs.receivers}

    def loss():
        if name == "can_gat":
            logits = module.endpoints(**graphs.nodes, **ends, n_node=graphs.n_node)["logits"]
            return F.binary_cross_entropy_with_logits(logits[:, 0], label)
        out = module.nodes(**graphs.nodes, **ends)
        mean, logvar = out["z_mean"], out["z_logvar"]
        penalty = -0.5 * (1 + logvar - mean.square() - logvar.exp()).mean()
        return sum(out[f"{part}_error"].mean() for part in ("feature", "neighbour", "id")) + KL * penalty

    def once():
        adam.zero_grad()
        value = loss()
        value.backward()
        adam.step()
        return value

    return once, lambda value: value.item(), sum(p.numel() for p in module.parameters())


def jax_step(name: str, options: dict[str, Any], threads: int) -> tuple[Callable[[], object], Callable, int]:
    """As `jax_side.build`."""
    import jax
    import jax.numpy as jnp
    import optax

    from kdjax import registry
    from kdjax.data.graphs.packs import padded
    from kdjax.distill.taps import Network

    model = registry.get("models", name)(**options)
    graphs, label = windows()
    nodes, edges = (int(sizes.sum()) for sizes in (graphs.n_node, graphs.n_edge))
    pack = padded(graphs, *(-(-size // ROUND) * ROUND for size in (nodes + 1, edges + 1)))
    network, batch = Network(model), jax.tree.map(lambda x: jnp.asarray(x)[None], {"graphs": pack, "label": label})
    variables = jax.jit(model.init)(jax.random.key(0), pack)
    params, stats = variables["params"], variables.get("batch_stats", {})
    adam = optax.adam(1e-3)

    def loss(params: dict, stats: dict, key: jax.Array, batch: dict) -> tuple[jax.Array, dict]:
        variables = {"params": params, "batch_stats": stats}
        out, changed = network(variables, batch, train=True, key=key)
        if name == "can_gat":
            return optax.sigmoid_binary_cross_entropy(out["logits"][:, :-1, 0], batch["label"]).mean(), stats
        real = jax.vmap(jraph.get_node_padding_mask)(batch["graphs"])
        mean, logvar = out["z_mean"], out["z_logvar"]
        each = jnp.where(real[:, :, None], 1 + logvar - jnp.square(mean) - jnp.exp(logvar), 0)
        errors = [jnp.where(real, out[f"{part}_error"], 0).sum() for part in ("feature", "neighbour", "id")]
        errors = sum(errors) / nodes
        return errors - KL / 2 * each.sum() / (nodes * mean.shape[-1]), changed["batch_stats"]

    def step(state: tuple, batch: dict) -> tuple[tuple, jax.Array]:
        params, stats, optimiser, key = state
        key, use = jax.random.split(key)
        (value, stats), slopes = jax.value_and_grad(loss, has_aux=True)(params, stats, use, batch)
        updates, optimiser = adam.update(slopes, optimiser)
        return (optax.apply_updates(params, updates), stats, optimiser, key), value

    train = jax.jit(step, donate_argnums=0)
    at = [(params, stats, adam.init(params), jax.random.key(1))]

    def once() -> object:
        at[0], value = train(at[0], batch)
        return value

    return once, jax.block_until_ready, sum(x.size for x in jax.tree.leaves(params))


def serve(pipe: Connection, side: str, case: str, threads: int) -> None:
    if hasattr(os, "sched_setaffinity"):  # XLA has a thread for each core
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    launch.keep_memory()  # both sides: as a run of kdjax has it, and PyTorch gains by it too
    name, options = CASES[case]
    build = {"torch": torch_step, "kdjax": jax_step}[side]
    turns(pipe, lambda: build(name, options, threads), lambda: None)


def measure(case: str, rounds: int, threads: int) -> dict[str, Any]:
    """What each side took; one is built after the other, then they take turns."""
    workers, found = {}, {}
    try:
        for side in ("torch", "kdjax"):
            workers[side] = Worker(serve, side, case, threads)
            found[side] = {**workers[side].ask(), "seconds": []}
        for _ in range(rounds):
            for side, worker in workers.items():
                found[side]["seconds"].append(worker.ask("run"))
        for side, worker in workers.items():
            found[side]["peak_mib"] = worker.ask("end")
    finally:
        for worker in workers.values():
            worker.close()
    trained = {side: each["trained"] for side, each in found.items()}
    if len(set(trained.values())) > 1:
        raise Failed(f"{case}: the sides train different numbers of parameters: {trained}")
    sides = {side: summary(each) for side, each in found.items()}
    ratio = sides["torch"]["median_s"] / sides["kdjax"]["median_s"]
    return {"ratio": ratio, "trained": trained["kdjax"], "sides": sides}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--rounds", type=int, default=7, help="turns of each side")
    parser.add_argument("--threads", type=int, default=0, help="of each side; by default a thread for each core")
    asked = parser.parse_args(argv)
    names = asked.cases.split(",")
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}; there are {', '.join(CASES)}")
    about, path = machine(), RESULTS / "can_models.json"
    about["threads"] = asked.threads or about["threads"]
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    found = earlier if earlier.get("machine") == about else {"machine": about, "cases": {}}
    for name in names:
        measured = measure(name, asked.rounds, about["threads"])
        found["cases"][name] = measured
        path.write_text(json.dumps(found, indent=1) + "\n")
        each = ", ".join(f"{side} {duration(numbers)}" for side, numbers in measured["sides"].items())
        print(f"{name}: {each}, ratio {times(measured['ratio'])}", flush=True)


if __name__ == "__main__":
    main()
