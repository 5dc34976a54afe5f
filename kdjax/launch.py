"""The command line: `kdjax train sam_distill`, or `python -m kdjax.launch --config=configs/sam_distill.py`.

kdjax MODE CONFIG [--flags]   in words; a folder in place of CONFIG is the working directory of a run that began
--config=FILE[:VARIANT]       the experiment; --config.stages.student.optim.lr=3e-4 changes a field of it
--mode=train                  train what is not trained yet, then report (the default)
--mode=look                   a page: images and records as the student will see them, before anything is trained
--mode=eval                   score a stage on its test images, or on another labelled folder with --data=; or, with
                              --weights=, another file of weights; of classifiers with views (--tta=hflip,rot90), other
                              runs (--ensemble=WORKDIR:STAGE) and images of no class (--outside=FOLDER); --output=
--mode=predict                masks, scores or classes for images, as the model gives them: --images=FOLDER or FILE,
                              --output=; of classes --gradcam shows what speaks for them; of images with captions the
                              labels, with --captions=FILE.jsonl or .csv; or, for models of CAN windows, alerts for a
                              log, which may be growing: --log=FILE or --log=-
--mode=export                 a stage as files to deploy: safetensors, StableHLO, PyTorch; --output=
--mode=metrics                compare two folders of masks: --predicted=, --truth=, --output=FILE.csv
--mode=report                 make the report anew from what lies in the working directory
--mode=compare RUN RUN ...    working directories beside each other, seeds folded into mean ± std; --output=FILE.html
--list=models                 what there is: models, losses, tasks, data, configs, fields of a config, adapters,
                              optimisers, transforms; in words `kdjax list models`
kdjax convert                 PyTorch's checkpoints in and out, as `python -m convert`
"""

import contextlib
import ctypes
import io
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import app

from kdjax import registry
from kdjax.command import configs, flags, lists, modes, peers
from kdjax.command.configs import load
from kdjax.command.flags import parse
from kdjax.config import ConfigError
from kdjax.experiment.saved import own_names

__all__ = ["answer", "load", "main", "parse", "run"]

GO_ON = "To go on, run the same command again:"


def run() -> None:
    """The `kdjax` command, and `python -m kdjax.launch`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # where a terminal knows ASCII alone
    if sys.argv[1:2] == ["convert"]:
        from convert.__main__ import main as convert

        sys.exit(convert(sys.argv[2:]))
    if not sys.argv[1:] or sys.argv[1] in ("-h", "--help", "help"):
        sys.exit(answer(lambda: print(f"{__doc__}\n{flags.help_text()}", flush=True)))
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # one's own modules are found from here, as `python -m` finds them
    sys.exit(answer(lambda: app.run(main, flags_parser=parse)))


def main(argv: list[str]) -> int:
    mode, words = flags.MODE.value, argv[1:]
    if words and mode not in flags.SEVERAL:
        raise ConfigError(f"unexpected argument {words[0]!r}; flags are written --name=value")
    if flags.LIST.value:
        return lists.show(flags.LIST.value)
    if mode in modes.WITHOUT:
        return modes.WITHOUT[mode](words)
    _quiet()
    keep_memory()
    if flags.COORDINATOR.value:
        connect()
    check_devices()
    experiment, spec = flags.CONFIG.value, flags.spec()
    if flags.CLASSES.value:
        configs.name_classes(experiment, flags.CLASSES.value)
    if not spec:
        raise ConfigError("give --config=FILE (see --list=configs), or the --workdir of a run that began")
    registry.trust(*flags.TRUST.value, *([] if configs.is_saved(spec) else own_names(experiment)))
    workdir = Path(flags.WORKDIR.value or configs.default_workdir(spec))
    from kdjax.experiment.run import compiling

    together = peers.Together() if flags.COORDINATOR.value else contextlib.nullcontext()
    with together, compiling(quick=experiment.quick_compile):
        return modes.OF_RUNS[mode](experiment, workdir)


def check_devices() -> None:
    """Refuses what the environment asks of JAX where there is no such thing, or kdjax cannot do it."""
    import jax

    if jax.config.read("jax_enable_x64"):
        raise ConfigError("JAX_ENABLE_X64: expected it off, since kdjax computes in 32 bits, found it on; unset it")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the second of a platform that JAX has no plugin for
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError(
            f"JAX_PLATFORMS={asked}: expected a device of that kind, found none; unset it, or install JAX for that "
            f"device ({error or 'it has no plugin'})"
        ) from error


def connect() -> None:
    """Joins the other processes; `auto` asks the cluster (SLURM, Open MPI, TPU pods) for the rest."""
    import jax

    address, processes, process = flags.COORDINATOR.value, flags.PROCESSES.value, flags.PROCESS.value
    if address == "auto":
        jax.distributed.initialize()
        return
    peers.refuse(address, processes, process)
    jax.distributed.initialize(address, processes, process)


def command() -> str:
    """What this process was started with, to be pasted."""
    program = ["kdjax"] if Path(sys.argv[0]).stem == "kdjax" else ["python", "-m", "kdjax.launch"]
    return shlex.join([*program, *sys.argv[1:]])


def answer(act: Callable[[], Any]) -> int:
    """The exit code: what a person can mend ends in a message, a fault of the program keeps its trace."""
    try:
        return act() or 0
    except BrokenPipeError:  # the reader of our output has gone: `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print(f"\nInterrupted. {GO_ON}\n  {command()}", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        from kdjax.train.signals import Stopped

        if isinstance(error, Stopped):
            if modes.first_process():
                print(f"Stopped and saved. {GO_ON}\n  {command()}")
            return 128 + error.signal
        if not _mendable(error):
            raise
        from kdjax.report.terminal import printable

        print(f"\nerror: {printable(error)}", file=sys.stderr)
        return 2


def _mendable(error: Exception) -> bool:
    if isinstance(error, (ConfigError, OSError)):
        return True
    from kdjax.experiment.run import GateError
    from kdjax.train.recording import Diverged
    from kdjax.weights.safetensors import WeightsError

    return isinstance(error, (GateError, Diverged, WeightsError))


def keep_memory() -> None:
    """Tells glibc to keep what XLA frees after each step: else it goes back to the kernel, and the next step fetches it
    anew, page by page, which is a quarter of the time of a small step on a CPU."""
    m_trim_threshold, m_mmap_threshold, most = -1, -3, 2**31 - 1
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(m_mmap_threshold, 2**30)
        mallopt(m_trim_threshold, most)


def _quiet() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from absl import logging

    logging.set_verbosity(logging.WARNING)


if __name__ == "__main__":
    run()
