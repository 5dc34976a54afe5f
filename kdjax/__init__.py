"""Knowledge distillation in JAX: `build`, `load`, `apply`, `loss` and `run` are the whole public interface."""

__version__ = "0.1.0"
