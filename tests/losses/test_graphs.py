"""Losses of graph models beside PyTorch, and what the battery of all losses cannot ask of them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdjax.losses.graphs import batch_softmax_kl, neighbour_bce, normal_kl
from kdjax.losses.labels import focal


def normal(*shape, seed=0, scale=3.0):
    return np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32)


def with_slope(loss, x, *rest):
    value, grad = jax.jit(jax.value_and_grad(lambda x: loss(x, *rest).mean()))(jnp.asarray(x))
    return float(value), np.asarray(grad)


def torch_with_slope(loss, x):
    x = torch.from_numpy(x.astype(np.float64)).requires_grad_()
    value = loss(x)
    value.backward()
    assert x.grad is not None
    return value.item(), x.grad.numpy()


def same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_the_mean_over_items_is_the_originals_batchmean(temperature):
    """One flat vector of n logits, some beyond the clamp: batchmean divides by its length n."""
    student, teacher = 2 * normal(13), 2 * normal(13, seed=1)
    assert (np.abs(student) > 10).any()

    def original(z):
        log_s = F.log_softmax(z.clamp(-10, 10) / temperature, dim=-1)
        t = F.softmax(torch.from_numpy(teacher).double().clamp(-10, 10) / temperature, dim=-1)
        return F.kl_div(log_s, t, reduction="batchmean") * temperature**2

    loss = partial(batch_softmax_kl, temperature=temperature)
    value, slope = with_slope(loss, student[:, None], jnp.asarray(teacher[:, None]))
    same((value, slope[:, 0]), torch_with_slope(original, student))


def test_padding_takes_no_part_whatever_stands_there():
    student, teacher = normal(4, 3, 1), normal(4, 3, 1, seed=1)
    where = np.random.default_rng(2).random((4, 3)) < 0.6
    student[~where], teacher[~where] = np.nan, 1e30
    given = jnp.asarray(teacher), jnp.asarray(where)

    def loss(student):
        each = batch_softmax_kl(student, given[0], where=given[1])
        return each.sum(), each

    (_, each), grad = jax.jit(jax.value_and_grad(loss, has_aux=True))(jnp.asarray(student))
    kept = batch_softmax_kl(jnp.asarray(student[where]), jnp.asarray(teacher[where]))
    np.testing.assert_allclose(each[where], kept, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(each[~where], 0)
    np.testing.assert_array_equal(grad[~where], 0)
    assert np.abs(grad[where]).min() > 0


def test_a_batch_of_padding_or_of_one_costs_nothing():
    x, none = jnp.asarray(normal(3, 1)), jnp.zeros(3, bool)
    for where in (none, none.at[1].set(True)):
        np.testing.assert_array_equal(batch_softmax_kl(x, -x, where=where), 0)


def test_it_does_not_see_what_all_items_share():
    x, y = jnp.asarray(normal(6, 1, scale=1.0)), jnp.asarray(normal(6, 1, seed=1, scale=1.0))
    np.testing.assert_allclose(batch_softmax_kl(x + 3.0, y), batch_softmax_kl(x, y), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(batch_softmax_kl(x, x), 0, atol=1e-6)
    assert batch_softmax_kl(x, y).sum() > 1e-3


def test_the_latent_penalty_is_that_of_the_original():
    student = normal(7, 6)

    def original(x):
        mean, log_variance = x.chunk(2, dim=-1)
        return -0.5 * torch.mean(1 + log_variance - mean.pow(2) - log_variance.exp())

    same(with_slope(normal_kl, student), torch_with_slope(original, student))
    np.testing.assert_allclose(normal_kl(jnp.zeros((2, 8))), 0)


def test_a_latent_space_that_ran_away_is_pulled_back():
    far = jnp.array([[0.0, 1e4], [0.0, 88.0], [0.0, 25.0], [0.0, -1e4]])
    values, slopes = normal_kl(far), jax.vmap(jax.grad(normal_kl))(far)[:, 1]
    assert np.isfinite(values).all()
    assert (np.asarray(slopes[:3]) > 1e6).all()
    assert slopes[3] == -0.5
    near = [normal_kl(jnp.array([0.0, 20.0 + d])) for d in (-1e-3, 1e-3)]
    np.testing.assert_allclose(near[1] - near[0], 2e-3 * 0.5 * np.exp(20), rtol=1e-2)


def test_neighbours_are_those_of_pytorch():
    student, target = normal(4, 5, 30), (normal(4, 5, 30, seed=1) > 4).astype(np.float32)

    def original(z):
        return F.binary_cross_entropy_with_logits(z, torch.from_numpy(target).double())

    for given in (target, target.astype(np.int32), target.astype(bool)):
        same(with_slope(neighbour_bce, student, jnp.asarray(given)), torch_with_slope(original, student))
    np.testing.assert_allclose(neighbour_bce(jnp.asarray(student), jnp.asarray(target)).shape, (4, 5))


def test_the_originals_focal_loss_is_twice_that_of_equal_weights():
    """α = 1 and γ = 1 for every graph: α (1 - p)^γ BCE."""
    student, labels = normal(20, 1), np.random.default_rng(1).integers(0, 2, 20).astype(np.int32)

    def original(z):
        bce = F.binary_cross_entropy_with_logits(z[:, 0], torch.from_numpy(labels).double(), reduction="none")
        return (1.0 * (1 - torch.exp(-bce)) ** 1.0 * bce).mean()

    def ours(z, y):
        return 2.0 * focal(z, y, alpha=0.5, gamma=1.0)

    same(with_slope(ours, student, jnp.asarray(labels)), torch_with_slope(original, student))


def test_a_latent_space_without_variances_is_refused():
    with pytest.raises(ValueError, match="an even number of channels, found 5"):
        normal_kl(jnp.ones((2, 5)))
