"""GATWithJK, the classifiers of CAN windows: files of generations a (LSTM over the layers), b and c (id embedding)."""

import re

from convert.families.pyg_gat import conv_options, conv_rows, newer, width_into
from convert.families.vit import depth
from convert.family import Family, Shapes, nearest
from convert.table import Row, embed, linear, same
from kdjax.config import Model
from kdjax.models.graphs.can_gat import VARIANTS


def rows(model: Model) -> tuple[Row, ...]:
    lstm = [f"{which}_l0{way}" for which in ("ih", "hh") for way in ("", "_reverse")]
    return (
        *embed("id_embedding"),
        *conv_rows("convs.{i}"),
        *same(*(f"jk.lstm.weight_{name}" for name in lstm), rank=2),
        *same(*(f"jk.lstm.bias_{name}" for name in lstm), rank=1),
        *linear("jk.att", "lin", "fc_layers.{i}"),
    )


def model_of(shapes: Shapes) -> Model:
    ids, width = shapes.get("id_embedding.weight", (0, 0))
    last = max(
        (int(match[1]) for name in shapes if (match := re.fullmatch(r"fc_layers\.([0-9]{1,4})\.weight", name))),
        default=-3,
    )
    told = {
        **conv_options(shapes, "convs.0"),
        "layers": depth(shapes, "convs"),
        "jumping": "lstm" if "jk.att.weight" in shapes else "cat",
        "fc_layers": last // 3 + 1,
        "num_ids": ids,
        "features": width_into(shapes, "convs.0") - width,
        **({"embed_dim": width} if ids else {}),
    }
    logits = shapes[f"fc_layers.{last}.weight" if last >= 0 else "lin.weight"][0]
    binary = {"binary_logit": False} if logits == 2 else {}
    classes = {"num_classes": logits} if logits > 2 else {}
    return Model("can_gat", **nearest("can_gat", VARIANTS, told), **classes, **binary)


FAMILY = Family(
    name="can_gat",
    told="GATWithJK of KD-GAT and DQN-Fusion, students and teachers of all generations: best_model.pth ...",
    variants={name: Model("can_gat", variant=name) for name in VARIANTS},
    rows=rows,
    model_of=model_of,
    original="convert.originals.can_gat",
    prepared=newer,
    kept=("threshold",),
)
