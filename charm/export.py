"""The encoder of a CharmViT for use without PyTorch code: tokens with their position embeddings -> outputs.

    data = export_onnx(model)  # the content of an .onnx file, weights included
    program = export_program(model)  # for torch.export.save

Both take the same inputs, by these names and in this order, for any B and L from 1 on:

    patches      uint8 (B, L, p, p, 3), RGB
    pos_embed    float32 (B, L, D), for a rotary backbone (B, L, 2 * d): looked up at each token's place in the
                 tables of `CharmViT.pos_embed_tables`
    scale_id     uint8 (B, L), 0 = coarsest, as CharmTokenizer gives it; read by nothing with one scale
    patch_valid  bool (B, L), False where padding

and give `output`, float32 (B, num_outputs): scores, or the logits of a distribution. Pixels are scaled and normalized
within, and padding is never attended to. Only `export_onnx` needs the packages onnx and onnxscript.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from charm.model.protocol import Model
from charm.runtime.errors import name_extra

INPUTS = ("patches", "pos_embed", "scale_id", "patch_valid")
OPSET = 20  # the first that has GELU as one operation
MAX_ONNX_BYTES = 2_000_000_000  # of weights; a protocol buffer ends at 2 GiB, and the graph needs room, too
_DYNAMIC = {name: {0: Dim("B", min=1), 1: Dim("L", min=1)} for name in INPUTS}


class _Encoder(nn.Module):
    """CharmViT.forward without its branch on the data: it masks padding whether there is any or not."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, patches: Tensor, pos_embed: Tensor, scale_id: Tensor, patch_valid: Tensor) -> Tensor:
        """Returns the outputs, float (B, num_outputs)."""
        attended = self.model.attn_mask(patch_valid)
        # A mask of numbers to add, made once: from bools each block would make its own, and look for NaN besides.
        attn_mask = torch.zeros_like(attended, dtype=pos_embed.dtype).masked_fill(~attended, -torch.inf)
        output: Tensor = self.model.encode(patches, scale_id, patch_valid, pos_embed, attn_mask)
        return output


def export_program(model: Model) -> ExportedProgram:
    """Exports the encoder as a graph of PyTorch's operations, on the CPU, in float32 and as in evaluation.

    The model itself keeps its device, type and mode.

    Raises:
        ValueError: the model reads whole images, and not any number of tokens.
    """
    if model.whole_image:
        kind = type(model.backbone).__name__
        raise ValueError(f"export: this model reads whole images by a {kind}: only a CharmViT's encoder is exported")
    if model.resizer is not None:
        raise ValueError("export: this model mixes residuals with the pixels: there is no input for them in the graph")
    encoder = _Encoder(copy.deepcopy(model).cpu().float()).eval()
    batch_size, seq_len, p = 2, 3, model.patch_size  # sizes of 1 would be taken for constants
    width = encoder.model.pos_embed_tables([(1, 1)])[0].shape[-1]
    example = (
        torch.zeros(batch_size, seq_len, p, p, 3, dtype=torch.uint8),
        torch.zeros(batch_size, seq_len, width),
        torch.zeros(batch_size, seq_len, dtype=torch.uint8),
        torch.ones(batch_size, seq_len, dtype=torch.bool),
    )
    with torch.no_grad():
        program = torch.export.export(encoder, example, dynamic_shapes=_DYNAMIC)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # it names folders of the machine that exported
    return program


def export_onnx(model: Model) -> bytes:
    """Exports the encoder as a serialized ONNX model with its weights, for ONNX Runtime and others that read opset 20.

    Raises:
        ValueError: the weights are too large for one file, or the model reads whole images.
    """
    num_bytes = 4 * sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    if num_bytes > MAX_ONNX_BYTES:
        raise ValueError(
            f"the weights take {num_bytes / 1e9:.1f} GB in float32, and an ONNX file with its weights holds "
            f"{MAX_ONNX_BYTES / 1e9:.0f} GB: use export_program, which has no limit, or a smaller backbone"
        )
    try:
        from onnx_ir.passes.common import ClearMetadataAndDocStringPass
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"export_onnx: {name_extra(error)}", name=error.name) from error

    exported = torch.onnx.export(
        export_program(model),
        input_names=INPUTS,
        output_names=("output",),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None  # None is for the exporter that dynamo=True replaces
    shape: Any = exported.model.graph.inputs[0].shape
    exported.rename_axes({shape[0]: "B", shape[1]: "L"})  # torch.onnx.export loses the names of the axes
    ClearMetadataAndDocStringPass()(exported.model)  # the origin of nodes differs from one export to the next
    data: bytes = exported.model_proto.SerializeToString()
    return data
