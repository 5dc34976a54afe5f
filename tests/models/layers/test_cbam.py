"""CBAM beside a plain module of PyTorch in float64, written from the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from kdjax.models.layers.cbam import Cbam


class TorchCbam(torch.nn.Module):
    def __init__(self, channels, reduction=8):
        super().__init__()
        hidden = max(1, channels // reduction)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(channels, hidden, bias=False),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, channels, bias=False),
        )
        self.conv = torch.nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        channels = self.mlp(x.flatten(2).mean(2)) + self.mlp(x.flatten(2).amax(2))
        x = x * channels.sigmoid()[:, :, None, None]
        places = self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))
        return x * places.sigmoid()


def test_output_and_gradients_are_those_of_the_paper_in_float64():
    rng = np.random.default_rng(0)
    x, slope = rng.normal(size=(2, 5, 9, 16)), rng.normal(size=(2, 5, 9, 16))
    shapes = {"fc1": (16, 2), "fc2": (2, 16), "conv": (7, 7, 2, 1)}
    params = {name: {"kernel": rng.normal(size=shape)} for name, shape in shapes.items()}

    run = jax.jit(lambda params, x: jax.vjp(lambda p, x: Cbam(jnp.float32).apply({"params": p}, x), params, x))
    ours, pull = run(*jax.tree.map(jnp.float32, (params, x)))
    by_params, by_x = pull(jnp.float32(slope))

    torch_side = TorchCbam(16).double()
    with torch.no_grad():
        torch_side.mlp[0].weight.copy_(torch.tensor(params["fc1"]["kernel"].T))
        torch_side.mlp[2].weight.copy_(torch.tensor(params["fc2"]["kernel"].T))
        torch_side.conv.weight.copy_(torch.tensor(params["conv"]["kernel"].transpose(3, 2, 0, 1)))
    image = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    expected = torch_side(image)
    expected.backward(torch.tensor(slope.transpose(0, 3, 1, 2)))

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())  # noqa: E731
    close(ours, expected.detach().numpy().transpose(0, 2, 3, 1))
    close(by_x, image.grad.numpy().transpose(0, 2, 3, 1))
    close(by_params["fc1"]["kernel"], torch_side.mlp[0].weight.grad.numpy().T)
    close(by_params["fc2"]["kernel"], torch_side.mlp[2].weight.grad.numpy().T)
    close(by_params["conv"]["kernel"], torch_side.conv.weight.grad.numpy().transpose(2, 3, 1, 0))


def test_few_channels_keep_one():
    shapes = jax.eval_shape(Cbam(jnp.float32).init, jax.random.key(0), jnp.zeros((1, 2, 2, 5)))
    assert shapes["params"]["fc1"]["kernel"].shape == (5, 1)
