"""ConvNeXt-V2 under timm's names, convnextv2_tiny.fcmae_ft_in22k_in1k ..., and under those of its authors' files."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from convert.families.vit import depth
from convert.family import ConvertError, Family, Shapes, build, nearest
from convert.table import Row, conv, conv_1x1, linear, norm
from kdjax.config import Model
from kdjax.models.vision.convnext import STAGES, VARIANTS

# timm has 1 × 1 convolutions for the linear layers of its smallest variants, which it tells from others by no more
# than their name: here it is their first width.
CONVOLVED = tuple(VARIANTS[name]["dims"][0] for name in ("atto", "femto", "pico", "nano"))
BLOCK = "stages.{i}.blocks.{j}"
MLP = re.compile(r"stages\.\d+\.blocks\.\d+\.mlp\.fc[12]\.weight")
GRN = re.compile(r"stages\.\d+\.blocks\.\d+\.mlp\.grn\.(weight|bias)")
# Names of the authors' files -> timm's.
AUTHORS = (
    (r"downsample_layers\.0\.(\d)\.", r"stem.\1."),
    (r"downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"stages\.(\d+)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d+)\.(\d+)\.norm\.", r"stages.\1.blocks.\2.norm."),
    (r"stages\.(\d+)\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"stages\.(\d+)\.(\d+)\.grn\.gamma$", r"stages.\1.blocks.\2.mlp.grn.weight"),
    (r"stages\.(\d+)\.(\d+)\.grn\.beta$", r"stages.\1.blocks.\2.mlp.grn.bias"),
    (r"norm\.", r"head.norm."),
    (r"head\.(?=weight$|bias$)", r"head.fc."),
)


def rows(model: Model) -> tuple[Row, ...]:
    layer = conv_1x1 if build(model).options.dims[0] in CONVOLVED else linear
    return (
        *conv("stem.0", "stages.{i}.downsample.1", f"{BLOCK}.conv_dw"),
        *norm("stem.1", "stages.{i}.downsample.0", f"{BLOCK}.norm", f"{BLOCK}.mlp.grn", "head.norm"),
        *layer(f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2"),
        *linear("head.fc"),
    )


def prepared(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Under timm's names, with the axes that timm's model of that width has."""
    tensors = {in_timm(name): tensor for name, tensor in tensors.items()}
    stem = tensors.get("stem.0.weight")
    further = (1, 1) if stem is not None and stem.shape[:1] and stem.shape[0] in CONVOLVED else ()
    return {name: tensor if tensor is None else _fitted(name, tensor, further) for name, tensor in tensors.items()}


def in_timm(name: str) -> str:
    for theirs, ours in AUTHORS:
        if re.match(theirs, name):
            return re.sub(f"^{theirs}", ours, name)
    return name


def _fitted(name: str, tensor: Any, further: tuple[int, ...]) -> Any:
    shape = tuple(tensor.shape)
    if MLP.fullmatch(name) and shape[2:] in ((), (1, 1)):
        return _reshaped(tensor, shape[:2] + further)
    if GRN.fullmatch(name) and shape[:-1] == (1, 1, 1):  # the authors'
        return _reshaped(tensor, shape[3:])
    return tensor


def _reshaped(tensor: Any, shape: tuple[int, ...]) -> Any:
    return replace(tensor, shape=shape, get=lambda: tensor.get().reshape(shape)) if tensor.shape != shape else tensor


def model_of(shapes: Shapes) -> Model:
    """The published variant that is the nearest, and what differs from it."""
    if found := next((name for name in shapes if re.fullmatch(r"stages\.\d+\.(blocks\.)?\d+\.gamma", name)), None):
        raise ConvertError(f"it is a ConvNeXt of the first version, with LayerScale, which kdjax has not: {found}")
    dims = widths(shapes, "stem.0.weight", "stages.{}.downsample.1.weight")
    told = {"dims": dims, "depths": depths(shapes, "stages.{}.blocks")}
    options = nearest("convnextv2", VARIANTS, told)
    return Model("convnextv2", **options, num_classes=shapes.get("head.fc.weight", (0,))[0])


def widths(shapes: Shapes, stem: str, down: str) -> tuple[int, ...]:
    return (shapes[stem][0], *(shapes[down.format(i)][0] for i in range(1, STAGES)))


def depths(names: Iterable[str], blocks: str) -> tuple[int, ...]:
    names = list(names)
    return tuple(depth(names, blocks.format(i)) for i in range(STAGES))


UNTOLD = ("activation", "head_norm_eps", "mean", "std")
FAMILY = Family(
    name="convnextv2",
    told="ConvNeXt-V2 under timm's names, timm/convnextv2_tiny.fcmae_ft_in1k; convnextv2_tiny_1k_224_ema.pt",
    variants={name: Model("convnextv2", variant=name) for name in VARIANTS},
    rows=rows,
    model_of=model_of,
    original="convert.originals.convnextv2",
    prepared=prepared,
    untold=lambda model: UNTOLD,
    dropped=((r"head\.fc\..*", "features alone were asked for, --set num_classes=0"),),
)
