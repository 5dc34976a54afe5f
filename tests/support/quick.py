"""Compiler options for what runs once: most of a test is compiling."""

QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
