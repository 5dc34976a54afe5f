"""Knowledge distillation in JAX: `build`, `load`, `apply`, `loss` and `run` are the whole public interface.

model = kdjax.build("tinyusfm_seg", image_size=128)
variables = kdjax.load(model, "runs/sam_distill/stages/student/model.safetensors")
logits = kdjax.apply(model, variables, images)["logits"]
"""

__version__ = "0.1.0"
__all__ = ["apply", "build", "load", "loss", "run"]


def build(name, /, **options):
    """The registered model, a Flax module; `python -m kdjax.launch --list=models` names them all."""
    from kdjax import config, registry

    registry.trust(name, *config.own_names(options))
    return registry.get("models", name)(**options)


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
    [0, 255] or float in [0, 1]; here they are resized to the model's size and normalised the way it was trained.
    """
    import jax.numpy as jnp
    from jax.core import Tracer

    from kdjax.config import ConfigError
    from kdjax.distill.taps import Network

    if len(inputs) != len(model.inputs):
        raise ConfigError(f"{type(model).__name__} takes {', '.join(model.inputs)}; found {len(inputs)} input(s)")
    batch = {name: jnp.asarray(value) for name, value in zip(model.inputs, inputs, strict=True)}
    image = batch.get("image")
    if image is not None:
        if image.ndim != 4 or image.shape[-1] != model.input_spec.channels:
            raise ConfigError(f"image: expected [b, h, w, {model.input_spec.channels}], found {list(image.shape)}")
        image = image / jnp.float32(255) if image.dtype == jnp.uint8 else image
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise ConfigError(f"image: expected uint8, or float in [0, 1], found {image.dtype}")
        if not isinstance(image, Tracer) and image.size and not (image.min() >= 0 and image.max() <= 1):
            raise ConfigError(f"image: expected floats in [0, 1], found {image.min():.3g} to {image.max():.3g}")
        batch["image"] = image
    return Network(model)(variables, batch)[0]


def loss(name):
    """The registered loss: f(student, teacher, *, ...) -> [b]."""
    from kdjax import registry

    registry.trust(name)
    return registry.get("losses", name)


def run(experiment, workdir):
    """Trains what `experiment` still lacks in `workdir`, as the command does; returns what summary.json holds."""
    from kdjax import config, registry
    from kdjax.experiment import run as running

    registry.trust(*config.own_names(experiment))
    return running.run(experiment, workdir)
