"""PyTorch checkpoints in, kdjax weights out, and back: `python -m convert --list`."""
