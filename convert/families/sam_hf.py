"""SAM under the names of transformers' SamModel: facebook/sam-vit-base, -large, -huge, and fine-tuned ones."""

from typing import Any

from convert.config_json import Config, normalisation
from convert.families import sam
from convert.families.sam import resize_distances, resize_positions, transformer_rows
from convert.families.vit import depth, ratio
from convert.family import Family, Shapes
from convert.table import Row, conv, conv_up, embed, linear, norm, same
from kdjax.config import Model

NORM_EPS = 1e-6


def rows(model: Model) -> tuple[Row, ...]:
    return (*encoder_rows(), *prompt_rows(), *decoder_rows())


def encoder_rows() -> tuple[Row, ...]:
    here, there = "vision_encoder", "image_encoder"
    layer, block = f"{here}.layers.{{i}}", f"{there}/blocks_{{i}}"
    tables = (
        row
        for name in ("rel_pos_h", "rel_pos_w")
        for row in same(f"{layer}.attn.{name}", rank=2, target=f"{block}/attn/{name}", resize=resize_distances)
    )
    layers = (
        row
        for name in ("attn.qkv", "attn.proj", "mlp.lin1", "mlp.lin2")
        for row in linear(f"{layer}.{name}", target=f"{block}/{name.replace('.', '/')}")
    )
    return (
        *same(f"{here}.pos_embed", rank=4, target=f"{there}/pos_embed", resize=resize_positions),
        *tables,
        *layers,
        *norm(f"{layer}.layer_norm1", target=f"{block}/norm1"),
        *norm(f"{layer}.layer_norm2", target=f"{block}/norm2"),
        *conv(f"{here}.patch_embed.projection", target=f"{there}/patch_embed/proj"),
        *conv(f"{here}.neck.conv1", target=f"{there}/neck_0"),
        *norm(f"{here}.neck.layer_norm1", target=f"{there}/neck_1"),
        *conv(f"{here}.neck.conv2", target=f"{there}/neck_2"),
        *norm(f"{here}.neck.layer_norm2", target=f"{there}/neck_3"),
    )


def prompt_rows() -> tuple[Row, ...]:
    at = "prompt_encoder"
    down, ours = f"{at}.mask_embed", f"{at}/mask_downscaling"
    return (
        *same(
            "shared_image_embedding.positional_embedding",
            rank=2,
            target=f"{at}/pe_layer/positional_encoding_gaussian_matrix",
            collection="batch_stats",
            tied=(f"{at}.shared_embedding.positional_embedding",),
        ),
        *embed(f"{at}.point_embed.{{i}}", target=f"{at}/point_embeddings_{{i}}"),
        *embed(f"{at}.not_a_point_embed", f"{at}.no_mask_embed"),
        *conv(f"{down}.conv1", target=f"{ours}_0"),
        *norm(f"{down}.layer_norm1", target=f"{ours}_1"),
        *conv(f"{down}.conv2", target=f"{ours}_3"),
        *norm(f"{down}.layer_norm2", target=f"{ours}_4"),
        *conv(f"{down}.conv3", target=f"{ours}_6"),
    )


def decoder_rows() -> tuple[Row, ...]:
    at, transformer = "mask_decoder", "mask_decoder.transformer"
    layer = f"{transformer}.layers.{{i}}"
    heads = ((f"{at}.output_hypernetworks_mlps.{{i}}", f"{at}/output_hypernetworks_mlps_{{i}}"),)
    heads += ((f"{at}.iou_prediction_head", f"{at}/iou_prediction_head"),)
    return (
        *transformer_rows(),
        *norm(f"{layer}.layer_norm{{j}}", target=f"{at}/transformer/layers_{{i}}/norm{{j}}"),
        *norm(f"{transformer}.layer_norm_final_attn", target=f"{at}/transformer/norm_final_attn"),
        *embed(f"{at}.iou_token", f"{at}.mask_tokens"),
        *conv_up(f"{at}.upscale_conv1", target=f"{at}/output_upscaling_0"),
        *norm(f"{at}.upscale_layer_norm", target=f"{at}/output_upscaling_1"),
        *conv_up(f"{at}.upscale_conv2", target=f"{at}/output_upscaling_3"),
        *(
            row
            for here, there in heads
            for i, name in enumerate(("proj_in", "layers.0", "proj_out"))
            for row in linear(f"{here}.{name}", target=f"{there}/layers_{i}")
        ),
    )


def model_of(shapes: Shapes) -> Model:
    masks = shapes["mask_decoder.mask_tokens.weight"][0]
    return in_transformers(sam.model_with(shapes["vision_encoder.pos_embed"], masks))


def configured(config: Config, shapes: Shapes) -> dict[str, Any]:
    vision, prompts = config.part("vision_config"), config.part("prompt_encoder_config")
    decoder = config.part("mask_decoder_config")
    options = {
        **vision_options(vision, shapes),
        **prompt_options(prompts, shapes),
        **decoder_options(decoder, shapes),
    }
    for part in (vision, prompts):
        part.sides("image_size", 1024, image_size(shapes))
        part.sides("patch_size", 16, options["patch_size"])
    for part in (prompts, decoder):
        part.agrees("hidden_size", 256, options["embed_dim"])
    config.check()
    return options | normalisation(config.path)


def vision_options(vision: Config, shapes: Shapes) -> dict[str, Any]:
    at, blocks = "vision_encoder", "vision_encoder.layers"
    rows, _, dim = shapes[f"{at}.pos_embed"][1:]
    tables = [shapes[f"{blocks}.{i}.attn.rel_pos_h"] for i in range(depth(shapes, blocks))]
    hidden, embed_dim = shapes[f"{blocks}.0.mlp.lin1.weight"][0], shapes[f"{at}.neck.conv1.weight"][0]
    window = vision.get("window_size", 14)
    everywhere = vision.get("global_attn_indexes", (2, 5, 8, 11))
    sides = [rows if i in everywhere else window for i in range(len(tables))]
    if (told := [(length + 1) // 2 for length, _ in tables]) != sides:
        vision.fault("window_size, global_attn_indexes", f"the tensors have windows of {told}", sides)
    vision.agrees("hidden_size", 768, dim)
    vision.agrees("num_hidden_layers", 12, len(tables))
    vision.agrees("num_attention_heads", 12, dim // tables[0][1])
    vision.agrees("mlp_dim", int(dim * vision.get("mlp_ratio", 4.0)), hidden)
    vision.agrees("output_channels", 256, embed_dim)
    for name, default in (("qkv_bias", True), ("use_abs_pos", True), ("use_rel_pos", True), ("hidden_act", "gelu")):
        vision.only(name, default)
    vision.only("num_channels", 3)
    return {
        "depth": len(tables),
        "heads": dim // tables[0][1],
        "patch_size": shapes[f"{at}.patch_embed.projection.weight"][-1],
        "window": window,
        "global_blocks": everywhere,
        "mlp_ratio": ratio(dim, hidden),
        "norm_eps": vision.get("layer_norm_eps", 1e-6),
        "embed_dim": embed_dim,
    }


def prompt_options(prompts: Config, shapes: Shapes) -> dict[str, Any]:
    channels = shapes["prompt_encoder.mask_embed.conv2.weight"][0]
    prompts.agrees("mask_input_channels", 16, channels)
    prompts.only("num_point_embeddings", 4)
    prompts.only("hidden_act", "gelu")
    prompts.only("layer_norm_eps", 1e-6)
    return {"mask_channels": channels}


def decoder_options(decoder: Config, shapes: Shapes) -> dict[str, Any]:
    at = "mask_decoder"
    mlp_dim = shapes[f"{at}.transformer.layers.0.mlp.lin1.weight"][0]
    iou_dim = shapes[f"{at}.iou_prediction_head.proj_in.weight"][0]
    layers = depth(shapes, f"{at}.transformer.layers")
    decoder.agrees("num_multimask_outputs", 3, shapes[f"{at}.mask_tokens.weight"][0] - 1)
    decoder.agrees("mlp_dim", 2048, mlp_dim)
    decoder.agrees("num_hidden_layers", 2, layers)
    decoder.agrees("iou_head_hidden_dim", 256, iou_dim)
    decoder.only("iou_head_depth", 3)
    decoder.only("attention_downsample_rate", 2)
    decoder.only("hidden_act", "relu")
    return {
        "decoder_depth": layers,
        "decoder_heads": decoder.get("num_attention_heads", 8),
        "decoder_mlp_dim": mlp_dim,
        "decoder_norm_eps": decoder.get("layer_norm_eps", NORM_EPS),
        "iou_dim": iou_dim,
    }


def image_size(shapes: Shapes) -> int | None:
    """Of a square image."""
    _, rows, columns, _ = shapes["vision_encoder.pos_embed"]
    return rows * shapes["vision_encoder.patch_embed.projection.weight"][-1] if rows == columns else None


def in_transformers(model: Model) -> Model:
    """With the epsilon that transformers has in the decoder, where Meta's own has 1e-5."""
    return Model(model.name, **{**model.options, "decoder_norm_eps": NORM_EPS})


FAMILY = Family(
    name="sam_hf",
    told="SAM under Hugging Face's names: facebook/sam-vit-base, -large, -huge",
    variants={name: in_transformers(model) for name, model in sam.FAMILY.variants.items()},
    rows=rows,
    model_of=model_of,
    original="convert.originals.sam_hf",
    stacks=sam.FAMILY.stacks,
    model_types=("sam",),
    configured=configured,
    resizing="bilinear, not antialiased, as SAMed does",
    untold=sam.FAMILY.untold,
)
