"""Running the command line in processes of its own, quickly: tiny shapes, one cache of compiled programs."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "kdjax.launch"]

CONFIG = """
from kdjax.config import Data, Experiment, Lora, Model, Optim, Stage, Stop, Teacher, Term

AUGMENT = {{"hflip": 0.5, "gamma": 0.5}}


def get_config(variant=""):
    def data(**more):
        sizes = {{"image_size": 16, "batch_size": 8, "size": 32, "train": 32, "val": 8, "test": 12}}
        return Data("ultrasound", augment=AUGMENT, **sizes, **more)

    small = Model("tests.support.tiny:build", dropout=0.1)
    teacher = Stage(
        task="segmentation", data=data(), model=Model("tests.support.tiny:build", depth=2), epochs=2,
        grad_norms_every=0, lora=Lora(rank=2, targets=((r"blocks_0/qkv", "q_v"),)),
        optim=Optim("sgd", lr=0.1, schedule="plateau"),
    )
    student = Stage(
        task="segmentation", data=data(labelled=0.5), model=small, epochs={epochs},
        teachers={{"t": Teacher(stage="teacher")}},
        terms={{
            "kl": Term("binary_kl", teacher="t:logits"),
            "features": Term("mse", student="features", teacher="t:block_1", adapter="conv_bn_relu", weight=0.1),
        }},
        optim=Optim("{optim}", lr=0.02, warmup=1.0, ema=0.5, clip=1.0), stop=Stop(patience=2), save_every={save_every},
    )
    stages = {{"teacher": teacher, "student": student}}
    experiment = Experiment(name="tiny", stages=stages, control={control})
    experiment.log.every, experiment.log.tensorboard = 1, False
    return experiment
"""


def config(folder, optim="adamw", save_every=3, control=True, epochs=5) -> pathlib.Path:
    path = folder / "tiny_config.py"
    path.write_text(CONFIG.format(optim=optim, save_every=save_every, control=control, epochs=epochs))
    return path


def environment(cache, devices=1) -> dict[str, str]:
    return {
        **{k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(ROOT),
    }


CRASH = """
import importlib, os, runpy, signal, sys

module, name, nth = sys.argv[1], sys.argv[2], int(sys.argv[3])
del sys.argv[1:4]
owner, calls = importlib.import_module(module), 0
real = getattr(owner, name)


def crashing(*args, **kwargs):
    global calls
    calls += 1
    if calls == nth:
        if name == "_append":  # half a line
            args[0].write('{"step": 1')
            args[0].flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)


setattr(owner, name, crashing)
runpy.run_module("kdjax.launch", run_name="__main__", alter_sys=True)
"""


def crashing(module: str, name: str, nth: int) -> list[str]:
    """The command line that dies where it is about to call a function for the nth time."""
    return [sys.executable, "-c", CRASH, module, name, str(nth)]


def start(command, env, **options) -> subprocess.Popen:
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **options}
    return subprocess.Popen(list(map(str, command)), env=env, cwd=ROOT, **out)


def finish(process, expected=0, timeout=240) -> str:
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == expected, output
    return output


TIMED = ("seconds", "wait", "rate", "peak_bytes", "date", "command", "checksum")  # what two runs alike differ in


def left(workdir) -> dict[str, bytes]:
    """What must be the same byte for byte, by its path: parameters, the metrics over time, the names of best files."""
    found = {}
    for path in sorted(workdir.glob("stages/*/*")):
        name = str(path.relative_to(workdir))
        if path.name in ("model.safetensors", "metrics.jsonl", "test.csv") or path.name.startswith("best_"):
            found[name] = path.read_bytes()
        elif path.name == "result.json":
            result = json.loads(path.read_text())
            result["checksums"].pop("test.npz", None)
            found[name] = json.dumps({k: v for k, v in result.items() if k not in TIMED})
        elif path.name == "checkpoints":
            found[name] = ",".join(sorted(p.name for p in path.iterdir()))
        elif not path.name.startswith(("timing", "test.npz")):
            found[name] = b""  # nothing else may lie about
    return found


def names(folder: pathlib.Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []
