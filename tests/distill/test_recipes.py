"""The five recipes of configs/medpix_distill.py, each of a few terms, beside the MedPix original."""

import runpy
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdjax.config import Term
from kdjax.distill.scope import Outputs, Scope
from kdjax.distill.terms import BoundTerm
from kdjax.train import objective

LABELS, PARTS = {"modality": 2, "location": 5}, ("image", "text")
B, DIM, WIDE = 6, 4, {"image": 7, "text": 5}
STUDENT = {f"logits_{label}": k for label, k in LABELS.items()} | {f"{part}_embedding": DIM for part in PARTS}
TEACHER = {f"logits_{label}": k for label, k in LABELS.items()} | {f"{part}_features": WIDE[part] for part in PARTS}


recipe = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "medpix_distill.py"))["recipe"]
LONG = {"combined": (), **dict.fromkeys(("vanilla", "crd", "rkd", "mmd"), pytest.mark.long)}
RECIPES = [pytest.param(name, frozen, marks=mark) for name, mark in LONG.items() for frozen in (False, True)]


class Given:
    """A source whose variables are what it gives."""

    def feed(self, scope: Scope) -> dict:
        return {}

    def __call__(self, feed: dict, batch: dict, variables: dict) -> Outputs:
        return variables


def drawn(sizes: dict[str, int], seed: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=(B, size)), jnp.float32) for name, size in sizes.items()}


def a_batch() -> dict[str, jax.Array]:
    """One record has no image, one no text, two no location, and the last is padding."""
    rows = jnp.arange(B)
    valid = rows < B - 1
    there = {"image_there": valid & (rows != 1), "text_there": valid & (rows != 2)}
    return {"valid": valid, "location_known": valid & (rows > 1), **there}


def bound(terms: dict[str, Term]) -> list[BoundTerm]:
    found, faults = objective.find_terms(terms)
    student, teacher, batch = jax.eval_shape(lambda: (drawn(STUDENT, 0), drawn(TEACHER, 1), a_batch()))
    return objective.bind(found, student, {"large": Given()}, {"large": teacher}, batch, faults)


@pytest.mark.parametrize(("name", "frozen"), RECIPES)
def test_a_recipe_fits_the_models(name, frozen):
    terms = {term.name: term for term in bound(recipe(name, PARTS, frozen))}
    assert all(term.hears_teacher for term in terms.values())
    compared = {term for term in terms if term.partition("_")[2].startswith(("infonce", "rkd", "mmd"))}
    assert {term for term in terms if terms[term].mixes} == compared
    adapted = {f"{part}_{loss}" for loss in ("mse", "infonce", "mmd") for part in PARTS if not frozen}
    assert {term for term in terms if terms[term].adapter is not None} == adapted & terms.keys()


def start(terms: list[BoundTerm]) -> dict[str, dict]:
    """The variables of each term's adapter or loss."""
    key = jax.random.key(0)
    return {term.name: term.adapter_start(key) or term.start(key) for term in terms}


def total(terms: list[BoundTerm], student: dict, teacher: dict, variables: dict) -> jax.Array:
    """The weighted sum of the means, as a step has it."""
    batch, scope = a_batch(), Scope()
    for place, entries in {"batch": batch, "student": student, "large": teacher}.items():
        scope.add(place, lambda entries=entries: entries)
    for term in terms:
        if term.adapter:
            scope.add(f"adapters:{term.name}", lambda term=term: term.adapted(scope, variables[term.name])[0])

    def mean(term: BoundTerm) -> jax.Array:
        return term.total(scope, batch, variables[term.name], {})[0] / term.readable(batch).sum()

    return sum((term.term.weight * mean(term) for term in terms), jnp.zeros(()))


# -- the same in PyTorch, from the facts of the original -------------------------------------------------------------


def kl(s: torch.Tensor, t: torch.Tensor, temperature: float) -> torch.Tensor:
    s, t = F.log_softmax(s / temperature, dim=-1), F.softmax(t / temperature, dim=-1)
    return F.kl_div(s, t, reduction="batchmean") * temperature**2


def crd(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(F.normalize(s, dim=-1) @ F.normalize(t, dim=-1).T / 0.1, torch.arange(len(s)))


def distances(x: torch.Tensor) -> torch.Tensor:
    squares = (x[:, None] - x[None]).square().sum(-1)
    return torch.where(squares > 0, squares + (squares == 0), 1.0).sqrt() * (squares > 0)


def rkd_of_unit_vectors(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    s, t = F.normalize(s, dim=-1), F.normalize(t, dim=-1)
    return 25 * F.smooth_l1_loss(distances(s), distances(t)) + 50 * F.smooth_l1_loss(s @ s.T, t @ t.T)


def rkd(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    far = [distances(x) / distances(x)[distances(x) > 0].mean() for x in (s, t)]
    edges = [F.normalize(x[None] - x[:, None], dim=-1) for x in (s, t)]
    return 25 * F.smooth_l1_loss(*far) + 50 * F.smooth_l1_loss(*(e @ e.transpose(1, 2) for e in edges))


def mmd(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    def near(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        widths = torch.tensor([0.2, 0.5, 1.0, 2.0, 5.0], dtype=x.dtype)
        return torch.exp(-(torch.cdist(x, y)[..., None] ** 2) / (2 * widths**2)).mean()

    return near(s, s) + near(t, t) - 2 * near(s, t)


def original(name: str, frozen: bool, student: dict, teacher: dict, mapped: Callable) -> torch.Tensor:
    """`mapped(loss, part)` are the features of one part, the student's and the teacher's, as the loss compares them."""
    rows = {part: torch.from_numpy(np.array(a_batch()[f"{part}_there"])) for part in PARTS}

    def over_parts(loss: Callable, of: str = "") -> torch.Tensor:
        pairs = [(mapped(of, part), rows[part]) for part in PARTS]
        return sum((loss(s[there], t[there]) for (s, t), there in pairs), torch.zeros(()))

    temperature = {"vanilla": 2.0, "combined": 4.0}.get(name)
    cost = torch.zeros(())
    if temperature:
        told = [(student[f"logits_{label}"], teacher[f"logits_{label}"]) for label in LABELS]
        cost = sum((kl(s[: B - 1], t[: B - 1], temperature) for s, t in told), over_parts(F.mse_loss, "mse") * 100)
    if name in ("combined", "crd"):
        cost = cost + (10 if temperature else 1) * over_parts(crd, "infonce") / 2
    if name == "rkd":
        cost = over_parts(rkd_of_unit_vectors if frozen else rkd, "" if not frozen else "rkd_angle") / 2
    return over_parts(mmd, "mmd") / 2 if name == "mmd" else cost


@pytest.mark.long
@pytest.mark.parametrize(("name", "frozen"), RECIPES)
def test_value_and_gradient_of_a_recipe_are_those_of_the_original(name, frozen):
    """Of what the student gives, and of the maps that train."""
    terms, student, teacher = bound(recipe(name, PARTS, frozen)), drawn(STUDENT, 0), drawn(TEACHER, 1)
    variables = start(terms)
    params = {term: of["params"] for term, of in variables.items() if "params" in of}

    def cost(student: dict, params: dict) -> jax.Array:
        return total(terms, student, teacher, variables | {term: {"params": of} for term, of in params.items()})

    found, slopes = jax.jit(jax.value_and_grad(cost, argnums=(0, 1)))(student, params)
    to_torch = lambda tree: jax.tree.map(lambda x: torch.from_numpy(np.array(x, np.float64)), tree)  # noqa: E731
    given = [jax.tree.map(lambda x: x.requires_grad_(), to_torch(tree)) for tree in (student, params)]
    taught, fixed = to_torch(teacher), to_torch({k: v["memory"] for k, v in variables.items() if "memory" in v})

    def mapped(of: str, part: str) -> tuple[torch.Tensor, torch.Tensor]:
        s, t, term = given[0][f"{part}_embedding"], taught[f"{part}_features"], f"{part}_{of}"
        if term in given[1]:
            proj = given[1][term]["proj"]
            return s @ proj["kernel"] + proj["bias"], t
        return (s, t @ fixed[term]["kernel"] + fixed[term]["bias"]) if term in fixed else (s, t)

    expected = original(name, frozen, given[0], taught, mapped)
    expected.backward()
    assert float(found) == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(jax.tree.leaves(slopes), jax.tree.leaves(given), strict=True):
        slope = np.zeros(theirs.shape) if theirs.grad is None else theirs.grad.numpy()
        np.testing.assert_allclose(ours, slope, rtol=1e-4, atol=1e-5 * max(np.abs(slope).max(), 1e-3))
