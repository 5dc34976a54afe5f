"""What somebody could do to a checkpoint: to its tensors, to what lies beside them, to the bytes of its files."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.hostile_files import bombs
from tests.hostile_files.valid import State

# -- tensors: (random, state) -> state -------------------------------------------------------------------------------


def of_another_rank(random: Random, state: State, name: str) -> State:
    x = state[name]
    forms = [x[None], x[..., None], x.reshape(-1), x.reshape(-1)[0], x.reshape(1, 1, 1, 1, -1), x[0] if x.ndim else x]
    return state | {name: random.choice(forms)}


def of_another_size(random: Random, state: State, name: str) -> State:
    x = state[name]
    if not x.ndim:
        return state | {name: x.reshape(1)}
    axis = random.randrange(x.ndim)
    n = random.choice([0, 0, 1, 2, 3, x.shape[axis] + 1, 2 * x.shape[axis], max(1, x.shape[axis] // 2)])
    return state | {name: torch.zeros([n if i == axis else size for i, size in enumerate(x.shape)])}


def empty_and_huge(random: Random, state: State, name: str) -> State:
    shape = [random.choice([1, 7, 10**6, 2**31, 2**40]) for _ in state[name].shape] or [1]
    shape[random.randrange(len(shape))] = 0
    return state | ({name: torch.zeros(shape)} if math.prod(n or 1 for n in shape) < 2**62 else {})


def of_another_kind(random: Random, state: State, name: str) -> State:
    kinds = [torch.int64, torch.bool, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.uint8]
    return state | {name: state[name].to(random.choice([*kinds, torch.complex64, torch.float8_e5m2]))}


def turned(random: Random, state: State, name: str) -> State:
    return state | {name: state[name].mT if state[name].ndim > 1 else state[name].flip(0) if state[name].ndim else -1}


def gone(random: Random, state: State, name: str) -> State:
    return {other: x for other, x in state.items() if other != name}


def half_gone(random: Random, state: State, name: str) -> State:
    return {other: x for other, x in state.items() if random.random() < 0.5 or other == name}


NUMBERS = ("999999999", "10000", "99", "-1", "1" * 5000, "٣", "007", "")


def renumbered(random: Random, state: State, name: str) -> State:
    parts = name.split(".")
    places = [i for i, part in enumerate(parts) if part.isdigit()] or [len(parts) - 1]
    parts[random.choice(places)] = random.choice(NUMBERS)
    return gone(random, state, name) | {".".join(parts): state[name]}


def renamed(random: Random, state: State, name: str) -> State:
    names = ["", ".", "\x1b[2J\n", "a" * 100_000, "{0}", "{i}", "../../x", f"{name}.", name.upper(), "__metadata__x"]
    return (gone(random, state, name) if random.random() < 0.5 else state) | {random.choice(names): state[name]}


def swapped(random: Random, state: State, name: str) -> State:
    other = random.choice(list(state))
    return state | {name: state[other], other: state[name]}


def not_a_number(random: Random, state: State, name: str) -> State:
    return state | {name: state[name] * random.choice([math.nan, math.inf, 1e38])}


def more(random: Random, state: State, name: str) -> State:
    return state | {
        f"{name.rpartition('.')[0]}.{random.choice(['weight', 'bias', 'x', 'lin_src.weight'])}": state[name]
    }


def many(random: Random, state: State, name: str) -> State:
    at, number = random.choice(["blocks.", "convs.", "", "layers."]), random.choice([300, 12_000])
    return state | {f"{at}{i}.{name}": torch.zeros(1) for i in range(number)}


TENSORS = (
    *(of_another_rank, of_another_size, of_another_size, empty_and_huge, of_another_kind, turned, gone, half_gone),
    *(renumbered, renamed, swapped, not_a_number, more, many),
)


def tensors(random: Random, state: State) -> State:
    for _ in range(random.choice([1, 1, 1, 2, 5])):
        state = random.choice(TENSORS)(random, state, random.choice(list(state)))
    return state


# -- what PyTorch alone can hold: (random, state) -> what is saved ---------------------------------------------------


def expanded(random: Random, state: State) -> Any:
    """One number that says it is many."""
    name = random.choice(list(state))
    return state | {name: torch.zeros(1).expand(*(state[name].shape[:-1] or (3,)), random.choice([10, 10**6, 10**9]))}


def shared(random: Random, state: State) -> Any:
    """Many tensors that are the same numbers."""
    numbers = torch.zeros(100_000)
    return state | {f"{random.choice(['blocks.', ''])}{i}.weight": numbers for i in range(random.choice([10, 2000]))}


def strange(random: Random, state: State) -> Any:
    name = random.choice(list(state))
    kinds = [
        torch.eye(3).to_sparse(),
        torch.ones(3, device="meta"),
        torch.nn.Parameter(state[name]),
        torch.ones(3).conj(),
    ]
    return state | {
        name: random.choice([*kinds, "text", 3, None, [state[name]], {"x": state[name]}, (state[name],) * 3])
    }


def nested(random: Random, state: State) -> Any:
    """Lists and dictionaries in each other, each there many times."""
    thing: Any = random.choice([[1.5], {"a": 1}, [torch.ones(2)]])
    for _ in range(random.choice([3, 30, 60])):
        thing = random.choice([[thing] * 9, {str(i): thing for i in range(9)}, (thing, thing)])
    return {"state_dict": state, random.choice(["history", "state", "model_ema"]): thing}


def deep(random: Random, state: State) -> Any:
    thing: Any = state
    for _ in range(random.choice([5, 30, 200])):
        thing = random.choice([{"state_dict": thing}, {"model": thing, "epoch": 3}, [thing]])
    return thing


def endless(random: Random, state: State) -> Any:
    around: dict[str, Any] = {"state_dict": state, "args": {"lr": 0.1}}
    around[random.choice(["args", "model", "state"])] = [around] if random.random() < 0.5 else around
    return around


def ambiguous(random: Random, state: State) -> Any:
    names = random.sample(["model", "state_dict", "student", "teacher", "optimizer", "ema", "params", "", "a/b"], 3)
    return {name: random.choice([state, {}, tensors(random, state), {"x": state}]) for name in names}


CONTENTS = (expanded, shared, strange, nested, deep, endless, ambiguous)


# -- bytes: (random, path) -------------------------------------------------------------------------------------------


def flipped(random: Random, path: Path) -> None:
    content = bytearray(path.read_bytes())
    near = random.choice([64, 2000, len(content)])
    for _ in range(random.choice([1, 3, 20])):
        at = random.randrange(min(near, len(content)))
        content[at if random.random() < 0.5 else -1 - at] = random.choice([0, 255, random.randrange(256)])
    path.write_bytes(content)


def cut(random: Random, path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: random.choice([0, 1, 8, 60, len(content) // 2, len(content) - 1, len(content) - 60])])


def longer(random: Random, path: Path) -> None:
    content = path.read_bytes()
    at = random.randrange(len(content))
    path.write_bytes(content[:at] + random.choice([b"\0" * 99, content[:999], b"PK\1\2" * 9]) + content[at:])


def other(random: Random, path: Path) -> None:
    path.write_bytes(
        random.choice([b"{}", b"{" * 10_000, b"[" * 10**6, b"\x80\x02.", b"PK\5\6" + bytes(18), bytes(999)])
    )


def header(random: Random, path: Path) -> None:
    """What the head of a safetensors file says."""
    content = path.read_bytes()
    n = int.from_bytes(content[:8], "little")
    told: dict[str, Any] = json.loads(content[8 : 8 + n])
    name = random.choice(list(told))
    ways: list[Callable[[], Any]] = [
        lambda: told[name].update(dtype=random.choice(["F64", "I8", "F8_E4M3", "C64", "F4", "X", 3, None])),
        lambda: told[name].update(
            shape=random.choice([[], [0], [2**62, 4], [-1], [1.5], "x", None, [10**30], [1] * 99])
        ),
        lambda: told[name].update(data_offsets=random.choice([[0, 0], [0, 2**62], [9, 3], [], None, [-8, 8]])),
        lambda: told.update(
            {"__metadata__": random.choice([{"a": 1}, [], {"model": "vit"}, {"x": "y" * 10**6}, None])}
        ),
        lambda: told.pop(name),
        lambda: told.update({random.choice(["", "x", "\ud800"]): told[name]}),
    ]
    random.choice(ways)()
    text = json.dumps(told).encode()
    text = random.choice([text, text, text, text[:-1], b"[" * 10**6, text + b" " * 999])
    length = random.choice([len(text)] * 5 + [0, 2**63, len(text) + 8])
    path.write_bytes(length.to_bytes(8, "little") + text + content[8 + n :])


def index(random: Random, path: Path) -> None:
    """What the index of shards says."""
    told = json.loads(path.read_text())
    where = told["weight_map"]
    name, here = random.choice(list(where)), path.name
    ways: list[Callable[[], Any]] = [
        lambda: where.update({name: random.choice(["../x", "/etc/passwd", here, "", ".", 3, None, [], "gone", "\0"])}),
        lambda: where.pop(name),
        lambda: where.update(dict.fromkeys(where, here)),
        lambda: told.update(weight_map=random.choice([[], {}, None, 3, "x", {"a": {}}])),
        lambda: told.update(metadata=random.choice([[], 3, "x", {"a": {"b": [1]}}])),
    ]
    random.choice(ways)()
    path.write_text(random.choice([json.dumps(told)] * 5 + [json.dumps(told)[:-3], "[" * 10**6, "{" * 999]))


BYTES = (flipped, flipped, cut, longer, other)


# -- kdjax's own files, and --set ------------------------------------------------------------------------------------

NASTY: tuple[Any, ...] = (
    *("abc", "", 0, -1, 1, 3, 7, 97, 10**6, 10**9, 10**30, 1.5, 1e300, math.inf, math.nan, None, True),
    *(
        [],
        [1],
        [0],
        [-1, 5],
        [97, 161],
        (48, 32),
        [1] * 1000,
        ["a"],
        {},
        {"a": 1},
        "float99",
        "bfloat16",
        [[1]],
        "os:system",
    ),
)
OPTIONS = (
    *("image_size", "heads", "depth", "dim", "patch_size", "mlp_ratio", "dtype", "variant", "num_classes", "taps"),
    *(
        "scan",
        "remat",
        "name",
        "window",
        "embed_dim",
        "layers",
        "hidden",
        "features",
        "num_ids",
        "conv",
        "dims",
        "depths",
    ),
    *(
        "reductions",
        "encoder",
        "decoder",
        "latent",
        "drop_path",
        "global_blocks",
        "pool",
        "mean",
        "std",
        "norm_eps",
        "x",
    ),
)


def option(random: Random) -> str:
    value = random.choice(NASTY)
    return f"{random.choice(OPTIONS)}={value!r}".replace(" ", "") if random.random() < 0.9 else "(" * 300


SETTINGS = (
    *("model_type", "hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size", "hidden_act"),
    *("layer_norm_eps", "image_size", "patch_size", "qkv_bias", "num_labels", "id2label", "hidden_sizes", "depths"),
    *("vision_config", "prompt_encoder_config", "mask_decoder_config", "sr_ratios", "strides", "num_channels", "x"),
)


def settings(random: Random, kinds: tuple[str, ...], path: Path) -> None:
    """A config.json beside the weights."""
    told: Any = {"model_type": random.choice(kinds)} | {random.choice(SETTINGS): random.choice(NASTY) for _ in range(2)}
    for part in random.sample(SETTINGS[14:17], 1):
        told |= {part: {random.choice(SETTINGS): random.choice(NASTY)}} if random.random() < 0.5 else {}
    text = json.dumps(random.choice([told] * 9 + [[told], 3]))
    path.write_text(random.choice([text] * 9 + [text[:-1], "[" * 100_000]))


def metadata(random: Random, told: dict[str, str]) -> dict[str, str]:
    """Of a file of kdjax: which model it is for."""
    options = json.loads(told["options"])
    models = ["vit", "sam", "can_gat", "peers", "can_fusion", "dqn", "convnet", "os:system", "", "no such", "node_mlp"]
    ways: list[Callable[[], dict[str, str]]] = [
        lambda: told | {"model": random.choice(models)},
        lambda: told | {"options": json.dumps(options | {random.choice([*options, *OPTIONS]): random.choice(NASTY)})},
        lambda: told | {"options": json.dumps(options | {random.choice([*options, *OPTIONS]): random.choice(NASTY)})},
        lambda: told | {"options": json.dumps({k: v for k, v in options.items() if random.random() < 0.7})},
        lambda: told | {"options": random.choice(["", "3", "[]", "null", "{", "[" * 10**5, '{"variant": {}}', "NaN"])},
        lambda: {"model": told["model"]},
        lambda: {"options": told["options"]},
    ]
    return random.choice(ways)()


# -- one of a kind ---------------------------------------------------------------------------------------------------


def content(random: Random, what: str, state: State) -> Any:
    """What is to be saved."""
    if what == "tensors":
        return tensors(random, dict(state))
    return random.choice(CONTENTS)(random, dict(state)) if what == "contents" else dict(state)


def damage(random: Random, what: str, path: Path, model_types: tuple[str, ...]) -> None:
    """Changes what was saved: a file, or one of a folder of shards."""
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.iterdir())
    if what == "bytes":
        random.choice(BYTES)(random, random.choice(files))
    elif what == "pickle":
        bombs.pickle(random, path)
    elif what == "zip bomb":
        bombs.bomb(random, path)
    elif what == "header":
        header(random, random.choice([file for file in files if file.suffix != ".json"]))
    elif what == "index":
        index(random, next(file for file in files if file.suffix == ".json"))
    elif what == "config.json":
        settings(random, model_types, folder / "config.json")
