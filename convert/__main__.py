"""PyTorch checkpoints in and out, each conversion proved on the spot.

python -m convert --list                                                 what there is
python -m convert inspect FILE                                           what is in a file; nothing in it is run
python -m convert sam --src sam_vit_b_01ec64.pth --dst sam_vit_b.safetensors
python -m convert verify sam --src sam_vit_b_01ec64.pth --weights sam_vit_b.safetensors
python -m convert export sam --weights sam_vit_b.safetensors --dst back.pth
python -m convert samed_lora --src lora.pth --base sam_vit_b.safetensors --dst sam_lora.safetensors
python -m convert ladeda --src LaDeDa.pth --images photographs --dst ladeda.safetensors

FILE may also be a Hugging Face folder, or hf:owner/name. --set image_size=512 builds the model with other options.
"""

import argparse
import ast
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from convert import families
from convert.describe import describe
from convert.export import export_file, load, loading
from convert.family import ConvertError, Family, fit, refuse_other, tensors, told, write
from convert.notes import LIKE, assumption, nearest, notes, record
from convert.onto import check_written, differing, options_of, put_on, put_on_exactly, random_base, read
from convert.photographs import chosen
from convert.sources import SourceError, check_sums, open_source
from kdjax import registry
from kdjax.config import ConfigError
from kdjax.weights import safetensors


def main(argv: list[str] | None = None) -> int:
    args = arguments().parse_args(argv)
    registry.trust(*filter(None, getattr(args, "trust", "").split(",")))
    if args.list:
        return show_families()
    if not args.command:
        arguments().print_help()
        return 2
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold is told
            return args.run(args)
    except (ConvertError, SourceError, ConfigError, safetensors.WeightsError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except MemoryError:
        print("error: there is not enough memory for this; use a machine that has more", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m convert", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--list", action="store_true", help="the families, their variants and what their files look like"
    )
    commands = parser.add_subparsers(dest="command", metavar="inspect | verify | export | FAMILY")
    inspect = commands.add_parser("inspect", help="what is in a file, and which family it looks like")
    inspect.add_argument("src", metavar="FILE")
    inspect.set_defaults(run=run_inspect)
    verify = commands.add_parser("verify", help="both sides on one input: the largest error of each endpoint")
    verify.add_argument("family", choices=sorted(families.NAMES))
    verify.add_argument("--src", default="", help="the PyTorch checkpoint; without it, the weights are exported first")
    verify.add_argument("--weights", required=True, help="the kdjax file")
    verify.set_defaults(run=run_verify)
    export = commands.add_parser("export", help="a kdjax file in PyTorch's names")
    export.add_argument("family", choices=sorted(families.NAMES))
    export.add_argument("--weights", required=True, help="a converted file, or the model.safetensors of a stage")
    export.set_defaults(run=run_export)
    for name in sorted(families.NAMES):
        family = commands.add_parser(name, help=argparse.SUPPRESS)
        family.add_argument("--src", required=True, help="a file, a folder, or hf:owner/name")
        if option := families.get(name).told_by_photographs:
            family.add_argument("--images", default="", help=f"photographs, a file or a folder, that tell {option}")
        family.set_defaults(run=run_convert)
    for command in (verify, export):
        command.add_argument("--trust", default="", metavar="MODULES", help="your own, that the file may name")
    for command in (verify, *(commands.choices[name] for name in families.NAMES if families.get(name).base)):
        command.add_argument("--base", default="", help="for low-rank pairs: the kdjax file of the SAM they are put on")
    for command in (export, *(commands.choices[name] for name in families.NAMES)):
        command.add_argument("--dst", required=True, help="where to write")
        command.add_argument("--overwrite", action="store_true", help="where --dst exists")
    for command in (verify, *(commands.choices[name] for name in families.NAMES)):
        command.add_argument("--entry", default="", help="which of several dictionaries in the file")
    for command in (verify, export, *(commands.choices[name] for name in families.NAMES)):
        command.add_argument("--set", nargs="*", default=[], metavar="OPTION=VALUE", help="options of the model")
    return parser


def show_families() -> int:
    for family in families.all().values():
        print(f"{family.name:12} {family.told}\n{'':12} {', '.join(family.variants)}")
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    source = open_source(args.src)
    print(describe(source))
    alike = [resemblance(family, source) for family in nearest(source).values()]
    fitting = [text for text, fits in alike if fits]
    texts = fitting or [text for text, _ in alike] or ["no family that kdjax knows: none has half of these names"]
    print("", *texts, sep="\n")
    if len(fitting) > 1:  # ViTs are of several families
        print("\nThese families fit equally; no tensor tells which. Where the file comes from does.")
    return 0


def resemblance(family: Family, source: Any) -> tuple[str, bool]:
    """What to say of a file with this family's names, and whether all of it fits."""
    try:
        converted = fit(family, source)
        known = f"looks like {family.name}: {told(converted.model)}, every tensor in its place"
        return "\n".join([known, *assumption(converted)]), True
    except (ConvertError, SourceError, ConfigError) as error:
        first, *faults = str(error).splitlines()
        more = [f"  and {len(faults) - 5} more"] if len(faults) > 5 else []
        share = family.likeness_of(source)
        return "\n".join(
            [f"looks like {family.name} ({share:.0%} of the names), but {first}", *faults[:5], *more]
        ), False


def run_convert(args: argparse.Namespace) -> int:
    begin, family, dst = time.monotonic(), families.get(args.command), Path(args.dst)
    check_destination(dst, args.overwrite)
    source = open_source(args.src, args.entry)
    check_sums(source.path)
    about, told_of_it = {"family": family.name, "source": source.path.name}, ""
    about |= {name: str(source.extras[name]) for name in family.kept if name in source.extras}
    if getattr(args, "base", ""):
        base = load(Path(args.base), options(args.set))
        converted = matched(family, source, options_of(base[0]))
        about |= record(converted)
        model, _, whole = put_on(family, (converted.model, read(converted.variables)), base)
        about |= {**safetensors.about(model), "base": Path(args.base).name}
        safetensors.save(dst, whole, about, lambda written: check_written(written, whole))
        proof = f"{len(jax.tree.leaves(whole))} leaves, the base's with the tensors put on it"
    else:
        given = options(args.set)
        if getattr(args, "images", ""):
            given, told_of_it = chosen(family, partial(matched, family, source), given, args.images)
        converted = matched(family, source, given)
        model = converted.model
        write(converted, dst, about | record(converted))
        proof = f"compared with the source: {converted.compared} tensors"
    print(f"{told(model)}: {len(source)} tensors, {len(converted.slots)} leaves, {dst.stat().st_size:,} bytes")
    for note in filter(None, (told_of_it, *notes(converted, source))):
        print(note)
    print(f"read back and {proof}, bit for bit")
    print(f"{dst} in {time.monotonic() - begin:.1f} s")
    return 0


def run_verify(args: argparse.Namespace) -> int:
    from convert import verify

    family = families.get(args.family)
    weights = Path(args.weights)
    model, variables = load(weights, options(args.set), pairs=bool(family.base))
    refuse_other(family, model, families.all())
    part, config = (model, variables), None
    if args.src:
        converted = matched(
            family, open_source(args.src, args.entry), options_of(model) if family.base else model.options
        )
        arrays, config = verify.original_tensors(converted), converted.config
        part = (model, read(converted.variables)) if family.base else part
    else:
        arrays = dict(tensors(family, model, variables))
    if family.base:
        base = load(Path(args.base), options(args.set)) if args.base else random_base(model)
        merged = variables if "lora" not in variables else None
        model, plain, variables = put_on_exactly(family, part, base)
        arrays = dict(tensors(families.get(family.base), model, plain)) | arrays
        if merged is not None and (name := differing(merged, variables)):
            raise ConvertError(f"{weights}: {name} is not that of the base with the pairs: not the same weights")
    found = verify.verify(family, model, arrays, variables, config=config)
    print(told(model), verify.HEADINGS, *found, sep="\n")
    if not (worst := verify.worst(found)).same:
        raise ConvertError(f"{worst.fault}: not the same weights, or not computed in the same way")
    print(*verify.remarks(found, config, safetensors.stored(weights)[1].get("assumed", "")), sep="\n")
    return 0


def run_export(args: argparse.Namespace) -> int:
    family, dst = families.get(args.family), Path(args.dst)
    check_destination(dst, args.overwrite)
    model, variables = load(Path(args.weights), options(args.set), pairs=bool(family.base))
    refuse_other(family, model, families.all())
    metadata = safetensors.stored(Path(args.weights))[1]
    count = export_file(family, model, variables, dst, metadata)
    print(f"{count} tensors of {told(model)}: {dst}\n{loading(family, dst, metadata)}")
    return 0


def matched(family: Family, source: Any, given: Mapping[str, Any]) -> Any:
    """The fit; where it fails and another family knows the names better, that is said."""
    try:
        return fit(family, source, given)
    except ConvertError as error:
        likeness = {name: other.likeness_of(source) for name, other in families.all().items()}
        best = max(likeness, key=lambda name: likeness[name])
        better = likeness[best] > likeness[family.name] and likeness[best] >= LIKE
        hint = f"; it looks like {best}, use `python -m convert {best}`" if better else ""
        raise ConvertError(f"{source.path}: {error}{hint}") from error


def check_destination(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise ConvertError(f"{path} is a folder; --dst names a file")
    if path.exists() and not path.is_file():
        raise ConvertError(f"{path} is a device or a pipe; --dst names a file")
    if path.exists() and not overwrite:
        raise ConvertError(f"{path} exists; choose another --dst, or add --overwrite")
    if not path.parent.is_dir():
        raise ConvertError(f"{path} cannot be written, since there is no folder {path.parent}; create it first")


def options(words: list[str]) -> dict[str, Any]:
    """["image_size=512", "variant=vit_b"] as Python values"""
    found = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals:
            raise ConvertError(f"--set {word}: expected OPTION=VALUE")
        try:
            found[name] = ast.literal_eval(text.title() if text in ("true", "false") else text)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # of what is no Python
            found[name] = text
    return found


if __name__ == "__main__":
    sys.exit(main())
