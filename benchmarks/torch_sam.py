"""The original SAM (segment-anything) as a segmenter the SAMed way: no prompts, a mask token per class, LoRA."""

from functools import partial

from torch import nn
from torch.nn import functional as F

from benchmarks.cases import LORA_RANK, NECK, PATCH, SAM, WINDOW
from convert.originals.sam import modeling

NORMAL = (123.675 / 255, 116.28 / 255, 103.53 / 255), (58.395 / 255, 57.12 / 255, 57.375 / 255)  # mean, std


def encoder(variant: str, size: int) -> nn.Module:
    width, depth, heads, everywhere = SAM[variant]
    return modeling().ImageEncoderViT(
        img_size=size,
        patch_size=PATCH,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_ratio=4,
        out_chans=NECK,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=WINDOW,
        global_attn_indexes=everywhere,
    )


class Segmenter(nn.Module):
    """Normalised [b, 3, h, w] -> the logits of the foreground [b, 1, h, w], and the image embeddings."""

    def __init__(self, variant: str, size: int):
        super().__init__()
        original, grid = modeling(), (size // PATCH, size // PATCH)
        self.image_encoder = encoder(variant, size)
        self.prompt_encoder = original.PromptEncoder(NECK, grid, (size, size), 16)
        self.mask_decoder = original.MaskDecoder(
            transformer_dim=NECK,
            transformer=original.TwoWayTransformer(2, NECK, 8, 2048),
            num_multimask_outputs=1,
            iou_head_hidden_dim=256,
        )

    def forward(self, image):
        embeddings = self.image_encoder(image)
        sparse, dense = self.prompt_encoder(points=None, boxes=None, masks=None)
        low, _ = self.mask_decoder(
            image_embeddings=embeddings,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return F.interpolate(low, image.shape[2:], mode="bilinear", align_corners=False), embeddings


class LoraQkv(nn.Module):
    """A frozen fused projection, and low-rank pairs for its q and v thirds."""

    def __init__(self, qkv: nn.Linear, rank: int):
        super().__init__()
        self.qkv, width = qkv, qkv.in_features
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in "qv")
        up = [nn.Linear(rank, width, bias=False) for _ in "qv"]
        for pair in up:
            nn.init.zeros_(pair.weight)
        self.up = nn.ModuleList(up)

    def forward(self, x):
        y, width = self.qkv(x), x.shape[-1]
        y[..., :width] += self.up[0](self.down[0](x))
        y[..., -width:] += self.up[1](self.down[1](x))
        return y


def with_lora(model: Segmenter) -> Segmenter:
    """The encoder frozen but for the pairs; prompt encoder and decoder trained."""
    model.image_encoder.requires_grad_(False)
    for name, layer in list(model.image_encoder.named_modules()):
        if name.endswith("attn.qkv") and isinstance(layer, nn.Linear):
            model.image_encoder.set_submodule(name, LoraQkv(layer, LORA_RANK))
    return model
