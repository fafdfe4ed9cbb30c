"""The encoder of a CharmViT for use without PyTorch code: tokens with their position embeddings -> outputs.

    write_export(folder, model, config)  # all that charm.onnx_scorer.OnnxScorer scores images with
    data = export_onnx(model)  # the content of an .onnx file, weights included
    program = export_program(model)  # for torch.export.save

All take the same inputs, by these names and in this order, for any B and L from 1 on:

    patches      uint8 (B, L, p, p, 3), RGB; float32 for inputs whose patches overshoot 0..255 (`published`)
    pos_embed    float32 (B, L, D), for a rotary backbone (B, L, 2 * d): looked up at each token's place in the
                 tables of `CharmViT.pos_embed_tables`
    scale_id     uint8 (B, L), 0 = coarsest, as CharmTokenizer gives it; read by nothing with one scale
    patch_valid  bool (B, L), False where padding

and give `output`, float32 (B, num_outputs): scores, or the logits of a distribution. Pixels are scaled and normalized
within, and padding is never attended to. Only `export_onnx` needs the packages onnx and onnxscript.
"""

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers.patch_embed import PatchEmbedResamplerFixedOrigSize
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from charm.hub import AnyPath, encode_config
from charm.inputs.preparation import Preparation
from charm.model.config import ModelConfig
from charm.model.positions import FREQUENCIES, LEARNT
from charm.model.protocol import Model
from charm.onnx_scorer import INPUTS, ONNX_FILE, POSITIONS_FILE
from charm.runtime.disk import atomic_write
from charm.runtime.errors import name_extra

OPSET = 20  # the first that has GELU as one operation
MAX_ONNX_BYTES = 2_000_000_000  # of weights; a protocol buffer ends at 2 GiB, and the graph needs room, too
_DYNAMIC = {name: {0: Dim("B", min=1), 1: Dim("L", min=1)} for name in INPUTS}


class _Encoder(nn.Module):
    """CharmViT.forward without its branch on the data: it masks padding whether there is any or not."""

    def __init__(self, model: Any, patch_size: int) -> None:
        super().__init__()
        self.model = model
        if patch_size != model.patch_size:  # resampled now: ONNX has no pseudo-inverse
            embed = model.vit.patch_embed
            resample = PatchEmbedResamplerFixedOrigSize((model.patch_size, model.patch_size))
            embed.proj.weight = nn.Parameter(resample(embed.proj.weight.detach(), [patch_size, patch_size]))
            embed.patch_size = (patch_size, patch_size)

    def forward(self, patches: Tensor, pos_embed: Tensor, scale_id: Tensor, patch_valid: Tensor) -> Tensor:
        """Returns the outputs, float (B, num_outputs)."""
        attended = self.model.attn_mask(patch_valid)
        # A mask of numbers to add, made once: from bools each block would make its own, and look for NaN besides.
        attn_mask = torch.zeros_like(attended, dtype=pos_embed.dtype).masked_fill(~attended, -torch.inf)
        *_, last = self.model.run_blocks(patches, scale_id, patch_valid, pos_embed, attn_mask)
        features = self.model.pool(self.model.head_kind, last, scale_id, patch_valid, attn_mask)
        output: Tensor = self.model.score_features(features)
        return output


def export_program(model: Model, patch_size: int | None = None, dtype: torch.dtype = torch.uint8) -> ExportedProgram:
    """Exports the encoder as a graph of PyTorch's operations, on the CPU, in float32 and as in evaluation.

    The model itself keeps its device, type and mode. `patch_size` is the side of the patches, pixels, if they are not
    those of the backbone (FlexiViT), `dtype` their type. Raises ValueError if the model reads whole images, and not any
    number of tokens.
    """
    if model.whole_image:
        kind = type(model.backbone).__name__
        raise ValueError(f"export: this model reads whole images by a {kind}: only a CharmViT's encoder is exported")
    if model.resizer is not None:
        raise ValueError("export: this model mixes residuals with the pixels: there is no input for them in the graph")
    p = patch_size or model.patch_size
    encoder = _Encoder(copy.deepcopy(model).cpu().float(), p).eval()
    batch_size, seq_len = 2, 3  # sizes of 1 would be taken for constants
    width = encoder.model.pos_embed_tables([(1, 1)])[0].shape[-1]
    example = (
        torch.zeros(batch_size, seq_len, p, p, 3, dtype=dtype),
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


def export_onnx(
    model: Model,
    metadata: Mapping[str, str] | None = None,
    patch_size: int | None = None,
    dtype: torch.dtype = torch.uint8,
) -> bytes:
    """Exports the encoder as a serialized ONNX model with its weights, for ONNX Runtime and others that read opset 20.

    The metadata, facts by name, are written into the file; the rest is as for export_program. Raises ValueError if the
    weights are too large for one file, or the model reads whole images.
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
        export_program(model, patch_size, dtype),
        input_names=INPUTS,
        output_names=("output",),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert exported is not None  # None is for the exporter that dynamo=True replaces
    shape: Any = exported.model.graph.inputs[0].shape
    exported.rename_axes({shape[0]: "B", shape[1]: "L"})  # torch.onnx.export loses the names of the axes
    exported.model.metadata_props.update(metadata or {})
    ClearMetadataAndDocStringPass()(exported.model)  # the origin of nodes differs from one export to the next
    data: bytes = exported.model_proto.SerializeToString()
    return data


def write_export(folder: AnyPath, model: Model, config: ModelConfig) -> None:
    """Writes the folder that OnnxScorer reads; config.json, which names the others, comes last.

    Raises ValueError if the model cannot be exported, or is too large for one file.
    """
    from safetensors.numpy import save

    positions = save(read_positions(model))
    metadata = {
        "score_range": json.dumps(config.labels.score_range),
        "num_bins": str(config.labels.num_bins),
        "tokenizer": json.dumps({"name": config.tokenizer.name, "settings": config.tokenizer.settings}),
        "cutter": json.dumps(config.tokenizer.cutter),
        "selection": str(config.tokenizer.cutter["selection"]),
        "pos_embeds": config.pos_embeds.mode,
        "positions_sha256": hashlib.sha256(positions).hexdigest(),
    }
    tokenizer = Preparation.from_config(config).tokenizer
    dtype = torch.uint8 if tokenizer.pixel_bytes == 1 else torch.float32
    data = export_onnx(model, metadata, tokenizer.patch_size, dtype)
    files = {ONNX_FILE: data, POSITIONS_FILE: positions, "config.json": encode_config(config, data)}
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(Path(folder, name)) as file:
            file.write(content)


def read_positions(model: Model) -> dict[str, Any]:
    """Returns the table that charm.model.positions.PositionTable looks embeddings up in."""
    if model.learnt_grid is not None:
        return {LEARNT: model.learnt_grid.detach().cpu().float().contiguous().numpy()}
    # The sines of the token next to the middle of an axis whose places float32 holds exactly, 1/4096 from it.
    length = 4096
    sines = model.fixed_axis(length)[:, length // 2].chunk(2, dim=-1)[0]
    return {FREQUENCIES: (sines.double().asin() * length).float().cpu().numpy()}
