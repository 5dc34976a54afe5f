"""SAM as segment_anything computes it, with SAMed's low-rank pairs added where a checkpoint has them."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from convert.originals import sam
from kdjax.config import Model

outputs = sam.outputs


class Samed(torch.nn.Module):
    """Its parameters have the names of both files: those of SAM, and those of the pairs that were loaded."""

    def __init__(self, whole: Any):
        super().__init__()
        self.image_encoder = whole.image_encoder
        self.prompt_encoder = whole.prompt_encoder
        self.mask_decoder = whole.mask_decoder

    def places(self) -> Iterator[tuple[str, str, torch.nn.Module, slice]]:
        """(name of a, name of b, layer, the columns of its output that they add to)"""
        for i, block in enumerate(self.image_encoder.blocks):
            width = block.attn.qkv.in_features
            for n, columns in ((2 * i, slice(width)), (2 * i + 1, slice(-width, None))):
                yield f"w_a_{n:03d}", f"w_b_{n:03d}", block.attn.qkv, columns
        transformer = self.mask_decoder.transformer
        for i, layer in enumerate(transformer.layers):
            for name, attention in (
                ("sa", layer.self_attn),
                ("cti", layer.cross_attn_token_to_image),
                ("cit", layer.cross_attn_image_to_token),
            ):
                for n, projection in ((2 * i, attention.q_proj), (2 * i + 1, attention.v_proj)):
                    yield f"{name}_a_{n:03d}", f"{name}_b_{n:03d}", projection, slice(None)
        final = transformer.final_attn_token_to_image
        yield "fati_qa", "fati_qb", final.q_proj, slice(None)
        yield "fati_va", "fati_vb", final.v_proj, slice(None)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Adds the pairs of which there is a tensor, of its shape."""
        for a, b, layer, columns in self.places():
            if a in state_dict and not hasattr(self, a):
                self.register_parameter(a, torch.nn.Parameter(torch.zeros_like(state_dict[a])))
                self.register_parameter(b, torch.nn.Parameter(torch.zeros_like(state_dict[b])))
                layer.register_forward_hook(self.adding(a, b, columns))
        return super().load_state_dict(state_dict, strict, assign)

    def adding(self, a: str, b: str, columns: slice) -> Any:
        def add(layer, given, output):
            output = output.clone()
            output[..., columns] += F.linear(F.linear(given[0], getattr(self, a)), getattr(self, b))
            return output

        return add


def build(model: Model) -> torch.nn.Module:
    return Samed(sam.build(model)).eval()
