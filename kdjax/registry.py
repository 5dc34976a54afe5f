"""Names and what they stand for: `"module:symbol"`, imported when asked for.

A name that is not in a table is code of somebody's own, `"package.module:symbol"`. Importing it runs it, so it is
imported only where a person has named it: in the config that they run, in a call of `kdjax.build`, or by --trust. A
name that comes from a file (metadata of weights, a working directory's config.json) is trusted by nobody.
"""

import importlib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from kdjax.config import ConfigError, nearest, raised_at
from kdjax.type_faults import type_faults

GREATEST = 1 << 24  # of any whole number that a model is built with

TABLES: dict[str, dict[str, str]] = {
    "models": {
        "bert": "kdjax.models.text.bert:build_bert",
        "convnet": "kdjax.models.vision.convnet:build_convnet",
        "can_fusion": "kdjax.models.graphs.can_fusion:build_can_fusion",
        "can_gat": "kdjax.models.graphs.can_gat:build_can_gat",
        "can_vgae": "kdjax.models.graphs.can_vgae:build_can_vgae",
        "convnextv2": "kdjax.models.vision.convnext:build_convnextv2",
        "distilbert": "kdjax.models.text.bert:build_distilbert",
        "dqn": "kdjax.models.graphs.dqn:build_dqn",
        "hybrid": "kdjax.models.vision.hybrid:build_hybrid",
        "image_text": "kdjax.models.fusion.image_text:build_image_text",
        "ladeda": "kdjax.models.vision.ladeda:build_ladeda",
        "mobilenetv2": "kdjax.models.vision.mobilenet:build_mobilenetv2",
        "mobilevit": "kdjax.models.vision.mobilevit:build_mobilevit",
        "node_gat": "kdjax.models.graphs.node_gat:build_node_gat",
        "node_mlp": "kdjax.models.graphs.node_mlp:build_node_mlp",
        "peers": "kdjax.models.peers:build_peers",
        "sam": "kdjax.models.vision.sam:build_sam",
        "sam_seg": "kdjax.models.vision.sam:build_sam_seg",
        "segformer": "kdjax.models.vision.segformer:build_segformer",
        "segformer_encoder": "kdjax.models.vision.segformer:build_segformer_encoder",
        "swinv2": "kdjax.models.vision.swin:build_swinv2",
        "tiny_ladeda": "kdjax.models.vision.ladeda:build_tiny_ladeda",
        "tinyusfm": "kdjax.models.vision.tinyusfm:build_tinyusfm",
        "tinyusfm_cls": "kdjax.models.vision.tinyusfm:build_tinyusfm_cls",
        "tinyusfm_seg": "kdjax.models.vision.tinyusfm:build_tinyusfm_seg",
        "usfm": "kdjax.models.vision.usfm:build_usfm",
        "usfm_cls": "kdjax.models.vision.usfm:build_usfm_cls",
        "usfm_seg": "kdjax.models.vision.usfm:build_usfm_seg",
        "vit": "kdjax.models.vision.vit:build_vit",
    },
    "losses": {
        "kl": "kdjax.losses.logits:kl",
        "binary_kl": "kdjax.losses.logits:binary_kl",
        "dkd": "kdjax.losses.logits:dkd",
        "mse": "kdjax.losses.features:mse",
        "l1": "kdjax.losses.features:l1",
        "cosine": "kdjax.losses.features:cosine",
        "vid": "kdjax.losses.features:Vid",
        "projected": "kdjax.losses.projected:Projected",
        "seed": "kdjax.losses.relations:Seed",
        "rkd_distance": "kdjax.losses.relations:rkd_distance",
        "rkd_angle": "kdjax.losses.relations:rkd_angle",
        "mmd": "kdjax.losses.relations:mmd",
        "bce": "kdjax.losses.labels:bce",
        "ce": "kdjax.losses.labels:ce",
        "dice": "kdjax.losses.labels:dice",
        "soft_ce": "kdjax.losses.labels:soft_ce",
        "value": "kdjax.losses.penalties:value",
        "focal": "kdjax.losses.labels:focal",
        "focal_ce": "kdjax.losses.labels:focal_ce",
        "evidential": "kdjax.losses.labels:evidential",
        "supcon": "kdjax.losses.contrastive:SupCon",
        "infonce": "kdjax.losses.contrastive:infonce",
        "arcface": "kdjax.losses.margins:arcface",
        "cosface": "kdjax.losses.margins:cosface",
        "adaface": "kdjax.losses.margins:AdaFace",
        "curricularface": "kdjax.losses.margins:CurricularFace",
        "normal_kl": "kdjax.losses.graphs:normal_kl",
        "neighbour_bce": "kdjax.losses.graphs:neighbour_bce",
        "batch_softmax_kl": "kdjax.losses.graphs:batch_softmax_kl",
    },
    "tasks": {
        "answers": "kdjax.tasks.answers:Answers",
        "autoencoder": "kdjax.tasks.can.autoencoder:Autoencoder",
        "classification": "kdjax.tasks.classification:Classification",
        "contrastive": "kdjax.tasks.contrastive:Contrastive",
        "detection": "kdjax.tasks.detection:Detection",
        "fusion": "kdjax.tasks.can.fusion:Fusion",
        "segmentation": "kdjax.tasks.segmentation:Segmentation",
    },
    "data": {
        "can": "kdjax.data.can.folders:Can",
        "can_traffic": "kdjax.data.can.traffic:Traffic",
        "citations": "kdjax.data.graphs.citations:Citations",
        "cora": "kdjax.data.graphs.cora:Cora",
        "cifar": "kdjax.data.images.cifar:Cifar",
        "classes": "kdjax.data.images.folders:Classes",
        "digits": "kdjax.data.images.digits:Digits",
        "tfds": "kdjax.data.images.tfds:Tfds",
        "ultrasound": "kdjax.data.images.ultrasound:Ultrasound",
        "beetles": "kdjax.data.images.beetles:Beetles",
        "forgeries": "kdjax.data.images.forgeries:Forgeries",
        "real_fake": "kdjax.data.images.real_fake:RealFake",
        "real_fake_table": "kdjax.data.images.real_fake:RealFakeTable",
        "busi": "kdjax.data.images.readers:Busi",
        "bus_bra": "kdjax.data.images.readers:BusBra",
        "bus_uclm": "kdjax.data.images.readers:BusUclm",
        "medpix": "kdjax.data.text.medpix:Medpix",
        "scans": "kdjax.data.text.scans:Scans",
        "records": "kdjax.data.text.records:Records",
        "layout": "kdjax.data.images.folders:Layout",
        "folder": "kdjax.data.images.folders:Folder",
        "unlabelled": "kdjax.data.images.folders:Unlabelled",
        "union": "kdjax.data.images.readers:Union",
    },
}


def names(kind: str) -> list[str]:
    return sorted(TABLES[kind])


_trusted: set[str] = set()


def trust(*names: str) -> None:
    """Lets `get` import these: "package.module:symbol", or all that a module or package holds, "package.module"."""
    _trusted.update(names)


def is_trusted(name: str) -> bool:
    parts = name.partition(":")[0].split(".")
    return name in _trusted or any(".".join(parts[: i + 1]) in _trusted for i in range(len(parts)))


def get(kind: str, name: str) -> Any:
    """The thing registered under `name`; one's own is written "package.module:symbol" and has to be trusted."""
    target = TABLES[kind].get(name, name)
    module, colon, symbol = target.partition(":")
    if not colon:
        raise ConfigError(f"no {kind} entry {name!r}; {nearest(name, TABLES[kind])}")
    if name in TABLES[kind]:
        return getattr(importlib.import_module(module), symbol)
    refuse_untrusted([name])
    return _own(module, symbol)


def _own(module: str, symbol: str) -> Any:
    """A symbol of somebody's own module."""
    name = f"'{module}:{symbol}'"
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        if error.name and f"{module}.".startswith(f"{error.name}."):
            where = "in the folder that you start from, or installed in this environment"
            raise ConfigError(f"{name}: there is no module {error.name!r}; expected it {where}") from error
        file, line = raised_at(error)
        raise ConfigError(f"{name} cannot be imported: {file}, line {line}: {error}") from error
    if not hasattr(imported, symbol):
        known = [public for public in vars(imported) if not public.startswith("_")]
        raise ConfigError(f"{name}: the module has no {symbol!r}; {nearest(symbol, known)}")
    return getattr(imported, symbol)


def build(kind: str, name: str, options: Mapping[str, Any]) -> Any:
    """What `get` gives, called with these options. Of what is registered their types are checked first, since they may
    come from a file."""
    make = get(kind, name)
    if name in TABLES[kind]:
        takes = inspect.signature(make).parameters
        faults = [fault for k, x in options.items() if k in takes for fault in type_faults(takes[k].annotation, x, k)]
        faults += [f"{k}: expected at most {GREATEST:,}" for k, x in options.items() if k in takes and _is_greater(x)]
        if not any(one.kind is one.VAR_KEYWORD for one in takes.values()):
            faults += [f"no option {option!r}; {nearest(option, takes)}" for option in options if option not in takes]
        if faults:
            raise ConfigError(f"{name} cannot be built:\n  " + "\n  ".join(faults))
    return make(**options)


def _is_greater(value: Any) -> bool:
    return isinstance(value, int) and abs(value) > GREATEST


def check_arguments(name: str, loss: Any, args: Iterable[str]) -> None:
    """Refuses an argument that a loss does not take: of a function those by keyword, of a module its fields."""
    taken, of_module = inspect.signature(loss).parameters.values(), isinstance(loss, type)
    named = [p.name for p in taken if of_module or p.kind == p.KEYWORD_ONLY]
    accepted = [name for name in named if name not in ("where", "parent", "name")]
    for argument in args:
        if argument not in accepted:
            raise ConfigError(f"the loss {name!r} takes no argument {argument!r}; {nearest(argument, accepted)}")


def refuse_untrusted(names: Iterable[str]) -> None:
    """Raises one ConfigError that lists the names that nobody vouches for."""
    if strange := sorted({name for name in names if not is_trusted(name)}):
        modules = sorted({name.partition(":")[0] for name in strange})
        raise ConfigError(
            f"{', '.join(map(repr, strange))}: expected registered names, found code outside kdjax, which importing "
            "would run. If you know that code and want to run it, give the config file that names it with --config, or "
            f"add --trust={','.join(modules)}"
        )
