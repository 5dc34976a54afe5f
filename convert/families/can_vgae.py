"""GraphAutoencoderNeighborhood, the VGAE of CAN windows: teachers, students, and files with a threshold beside them."""

from convert.families.pyg_gat import conv_options, conv_rows, newer, width_into
from convert.families.vit import depth
from convert.family import Family, Shapes, nearest
from convert.table import Row, batch_norm, embed, linear
from kdjax.config import Model
from kdjax.models.graphs.can_vgae import VARIANTS


def rows(model: Model) -> tuple[Row, ...]:
    return (
        *embed("id_embedding"),
        *(row for part in ("encoder", "decoder") for row in conv_rows(f"{part}_layers.{{i}}")),
        *batch_norm("encoder_bns.{i}", "decoder_bns.{i}"),
        *linear("z_mean", "z_logvar", "canid_classifier", "neighborhood_decoder.{i}"),
    )


def model_of(shapes: Shapes) -> Model:
    (ids, embed_dim), latent = shapes["id_embedding.weight"], shapes["z_mean.weight"][0]
    hidden = shapes["neighborhood_decoder.0.weight"][0]
    encoder, decoder = (
        [conv_options(shapes, f"{part}_layers.{i}") for i in range(depth(shapes, f"{part}_layers"))]
        for part in ("encoder", "decoder")
    )
    told = {
        "latent": latent,
        "neighbour_hidden": 0 if hidden == latent else hidden,
        "num_ids": ids,
        "embed_dim": embed_dim,
        "features": width_into(shapes, "encoder_layers.0") - embed_dim,
        "conv": encoder[0]["conv"],
    }
    for part, convs in (("encoder", encoder), ("decoder", decoder[:-1])):  # the last decoder's width is the features'
        told[part] = tuple(of["heads"] * of["hidden"] for of in convs)
        told[f"{part}_heads"] = tuple(of["heads"] for of in convs)
    return Model("can_vgae", **nearest("can_vgae", VARIANTS, told))


FAMILY = Family(
    name="can_vgae",
    told="GraphAutoencoderNeighborhood of DQN-Fusion, alone or as {state_dict, threshold}: the threshold is kept",
    variants={name: Model("can_vgae", variant=name) for name in VARIANTS},
    rows=rows,
    model_of=model_of,
    original="convert.originals.can_vgae",
    prepared=newer,
    kept=("threshold",),
)
