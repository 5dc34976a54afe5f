"""Knowledge distillation in JAX: `build`, `load`, `apply`, `loss` and `run` are the whole public interface.

model = kdjax.build("tinyusfm_seg", image_size=128)
variables = kdjax.load(model, "runs/sam_distill/stages/student/model.safetensors")
logits = kdjax.apply(model, variables, images)["logits"]
"""

__version__ = "0.1.0"
__all__ = ["apply", "build", "load", "loss", "run"]


def build(name, /, **options):
    """The registered model, a Flax module; `python -m kdjax.launch --list=models` names them all."""
    from kdjax import registry
    from kdjax.experiment.saved import own_names

    registry.trust(name, *own_names(options))
    return registry.build("models", name, options)


def load(model, path):
    """The variables of `model` from a safetensors file, NumPy arrays in nested dicts.

    A file that does not fit the model leaf for leaf is refused with everything that differs.
    """
    from kdjax.train.setup import initial_shapes
    from kdjax.weights import safetensors

    return safetensors.overlay(initial_shapes(model), safetensors.load(path)[0])


def apply(model, variables, *inputs):
    """The outputs of `model` by name: {"logits": ..., ...}.

    `inputs` are what `model.inputs` names, in its order. Images come as they are: [b, h, w, 3] of any size, uint8 in
    [0, 255] or float in [0, 1]; here they are resized to the model's size, antialiased as in training, and normalised
    the way it was trained.
    Graphs are a `jraph.GraphsTuple`, of whatever origin, or several of one size stacked on a leading axis. Tokens and
    their mask are int32 [b, n].
    """
    import jax

    from kdjax.config import ConfigError
    from kdjax.distill.taps import Network

    if len(inputs) != len(model.inputs):
        raise ConfigError(f"{type(model).__name__} takes {', '.join(model.inputs)}; found {len(inputs)} input(s)")
    network = Network(model)
    batch = dict(zip(model.inputs, inputs, strict=True))
    alone = network.packed and all(value.n_node.ndim == 1 for value in inputs)
    batch = jax.tree.map(lambda x: x[None], batch) if alone else batch
    batch = {name: _checked_image(value, model.inputs[name]) for name, value in batch.items()}
    outputs = network(variables, batch)[0]
    return jax.tree.map(lambda x: x[0], outputs) if alone else outputs


def _checked_image(image, spec):
    """An image as floats in [0, 1]; other inputs as they are."""
    import jax.numpy as jnp
    from jax.core import Tracer

    from kdjax.config import ConfigError

    channels = getattr(spec, "channels", None)
    if channels is None:
        return image
    image = jnp.asarray(image)
    if image.ndim != 4 or image.shape[-1] != channels:
        raise ConfigError(f"image: expected [b, h, w, {channels}], found {list(image.shape)}")
    image = image / jnp.float32(255) if image.dtype == jnp.uint8 else image
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ConfigError(f"image: expected uint8, or float in [0, 1], found {image.dtype}")
    if not isinstance(image, Tracer) and image.size and not (image.min() >= 0 and image.max() <= 1):
        raise ConfigError(f"image: expected floats in [0, 1], found {image.min():.3g} to {image.max():.3g}")
    return image


def loss(name):
    """The registered loss: f(student, teacher, *, ...) -> [b]."""
    from kdjax import registry

    registry.trust(name)
    return registry.get("losses", name)


def run(experiment, workdir):
    """Trains what `experiment` still lacks in `workdir`, as the command does; returns what summary.json holds."""
    from kdjax import registry
    from kdjax.experiment import run as running
    from kdjax.experiment.saved import own_names

    registry.trust(*own_names(experiment))
    return running.run(experiment, workdir)
