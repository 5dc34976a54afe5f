"""SAM under the names of transformers' SamModel: facebook/sam-vit-base, -large, -huge, and fine-tuned ones."""

from convert.families import sam
from convert.families.sam import resize_distances, resize_positions, transformer_rows
from convert.family import Family, Shapes
from convert.table import Row, conv, conv_up, embed, linear, norm, same
from kdjax.config import Model


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
    return sam.model_with(shapes["vision_encoder.pos_embed"], shapes["mask_decoder.mask_tokens.weight"][0])


FAMILY = Family(
    name="sam_hf",
    told="SAM under Hugging Face's names: facebook/sam-vit-base, -large, -huge",
    variants=sam.FAMILY.variants,
    rows=rows,
    model_of=model_of,
    original="convert.originals.sam_hf",
    stacks=sam.FAMILY.stacks,
)
