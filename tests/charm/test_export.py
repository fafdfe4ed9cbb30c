"""Exported encoders: the outputs of CharmViT.forward for every B and L, with padding and without."""

import sys
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import charm
from charm import CharmTokenizer, CharmViT
from charm.export import INPUTS, export_onnx, export_program
from charm.model.pos_embed import gather_pos_embed

TINY = {"depth": 1, "embed_dim": 48, "num_heads": 3}
CLS: dict[str, Any] = {"backbone": "vit_tiny_patch16_224", "img_size": 64, **TINY}
MODELS: dict[str, dict[str, Any]] = {  # with the head "cls": tests/charm/test_onnx_scorer.py
    "registers without positions": {
        "backbone": "vit_small_patch14_reg4_dinov2",
        "img_size": 56,
        "num_scales": 3,
        "num_outputs": 10,
        "head": "cls_mean",
        "normalize": True,
        **TINY,
    },
    "mean, one scale": {
        "backbone": "vit_base_patch16_siglip_224",
        "img_size": 64,
        "num_scales": 1,
        "head": "mean",
        **TINY,
    },
    "rotary": {"backbone": "vit_small_patch16_dinov3", **TINY},
    "means by scale": {"backbone": "charm_demo", "num_outputs": 5, "head": "cls_native_coarse"},
}
SHAPES = [(1, 1), (1, 40), (3, 7), (5, 1)]  # (B, L); exported at (2, 3)


class Exported(NamedTuple):
    model: CharmViT
    data: bytes
    saved: bytes
    session: onnxruntime.InferenceSession
    program: nn.Module  # as torch.export.load gives it

    def run_onnx(self, inputs: tuple[Tensor, ...]) -> Tensor:
        arrays = dict(zip(INPUTS, (tensor.numpy() for tensor in inputs), strict=True))
        (output,) = self.session.run(["output"], arrays)
        return torch.from_numpy(output)


def build(backbone: str, **settings: Any) -> CharmViT:
    """A model whose every parameter matters, and its attention above all."""
    model = CharmViT(backbone, pretrained=False, **settings).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(model.vit.patch_embed.proj.weight, std=0.02)
    return model


@pytest.fixture(scope="module", params=MODELS, ids=str)
def exported(request: pytest.FixtureRequest) -> Exported:
    model = build(**MODELS[request.param])
    program, file = export_program(model), BytesIO()
    torch.export.save(program, file)
    with pytest.MonkeyPatch.context() as patch:  # its first step, which would make the same program
        patch.setattr(charm.export, "export_program", lambda *given: program)
        saved, data = file.getvalue(), export_onnx(model)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return Exported(model, data, saved, session, torch.export.load(BytesIO(saved)).module())


def draw(model: CharmViT, batch_size: int, seq_len: int, padded: bool) -> tuple[Tensor, ...]:
    """Random inputs; of the padded ones image b has b + 1 tokens of padding, but 1 token at least."""
    generator = torch.Generator().manual_seed(seq_len)
    shape, p = (batch_size, seq_len), model.patch_size
    width = model.pos_embed_tables([(1, 1)])[0].shape[-1]
    num_scales = 1 if model.scale_embed is None else len(model.scale_embed)
    num_tokens = (seq_len - padded * torch.arange(1, batch_size + 1)).clamp(min=1)
    return (
        torch.randint(256, (*shape, p, p, 3), generator=generator, dtype=torch.uint8),
        torch.randn(*shape, width, generator=generator),
        torch.randint(num_scales, shape, generator=generator, dtype=torch.uint8),
        torch.arange(seq_len) < num_tokens[:, None],
    )


@torch.no_grad()
def forward(model: CharmViT, inputs: tuple[Tensor, ...]) -> Tensor:
    patches, pos_embed, scale_id, patch_valid = inputs
    output: Tensor = model(patches, torch.zeros(*scale_id.shape, 2), scale_id, patch_valid, pos_embed)
    return output


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [False, True], ids=["full", "padded"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_outputs_are_those_of_forward(exported: Exported, shape: tuple[int, int], padded: bool) -> None:
    inputs = draw(exported.model, *shape, padded)
    expected = forward(exported.model, inputs)
    close(exported.run_onnx(inputs), expected)
    close(exported.program(*inputs), expected)


def test_neither_padding_nor_what_stands_in_it_changes_a_score(exported: Exported) -> None:
    inputs = draw(exported.model, 2, 9, padded=False)
    expected = exported.run_onnx(inputs)
    assert (expected[0] - expected[1]).abs().max() > 0.01
    patches, pos_embed, scale_id, valid = draw(exported.model, 2, 20, padded=False)
    valid[:, 9:] = False
    for longer, tokens in zip((patches, pos_embed, scale_id), inputs, strict=False):
        longer[:, :9] = tokens
    close(exported.run_onnx((patches, pos_embed, scale_id, valid)), expected)
    valid[:, 9:] = True
    assert (exported.run_onnx((patches, pos_embed, scale_id, valid)) - expected).abs().max() > 1e-3


def test_names_types_and_axes(exported: Exported) -> None:
    onnx.checker.check_model(exported.data, full_check=True)
    p, num_outputs = exported.model.patch_size, exported.model.head.out_features
    width = exported.model.pos_embed_tables([(1, 1)])[0].shape[-1]
    assert [(each.name, each.type, each.shape) for each in exported.session.get_inputs()] == [
        ("patches", "tensor(uint8)", ["B", "L", p, p, 3]),
        ("pos_embed", "tensor(float)", ["B", "L", width]),
        ("scale_id", "tensor(uint8)", ["B", "L"]),
        ("patch_valid", "tensor(bool)", ["B", "L"]),
    ]
    (output,) = exported.session.get_outputs()
    assert (output.name, output.type, output.shape) == ("output", "tensor(float)", ["B", num_outputs])


@pytest.mark.parametrize("exported", ["means by scale"], indirect=True)
def test_4096_tokens(exported: Exported) -> None:
    inputs = draw(exported.model, 1, 4096, padded=True)
    close(exported.run_onnx(inputs), forward(exported.model, inputs))


@pytest.mark.parametrize("exported", ["means by scale"], indirect=True)
def test_a_image_is_scored_from_what_the_tokenizer_gives(exported: Exported) -> None:
    image = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    tokens = CharmTokenizer(patch_size=14, max_seq_len=120, budget="fill")(image)
    tables = exported.model.pos_embed_tables(tokens.grids)
    arrays = (tokens.patches, tokens.patch_coord, tokens.scale_id, tokens.patch_valid)
    patches, coord, scale_id, valid = (torch.from_numpy(array) for array in arrays)
    assert set(scale_id[valid].tolist()) == {0, 1}
    pos_embed = gather_pos_embed(tables, coord, scale_id)
    with torch.no_grad():
        expected = exported.model(*(each[None] for each in (patches, coord, scale_id, valid)), pos_embed=[tables])
    close(exported.run_onnx((patches[None], pos_embed[None], scale_id[None], valid[None])), expected)


def test_a_model_in_training_stays_as_it_is_and_is_exported_as_in_evaluation() -> None:
    model = build(**CLS, proj_drop_rate=0.5).to(torch.bfloat16).train()
    model.vit.set_grad_checkpointing(True)
    block: Any = model.vit.blocks[0]
    block.attn.fused_attn = False
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    module = export_program(model).module()
    assert all(child.training for child in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.head.weight.requires_grad
    inputs = draw(model, 2, 6, padded=True)
    close(module(*inputs), forward(model.float().eval(), inputs))


@pytest.mark.parametrize("exported", ["means by scale"], indirect=True)
def test_bytes_are_a_function_of_the_model(exported: Exported) -> None:
    """A second export gives the same, and neither names a folder of this machine."""
    assert export_onnx(exported.model) == exported.data
    sources = [torch.__file__, charm.__file__]
    for data in (exported.data, exported.saved):
        assert not any(str(Path(source).parent).encode() in data for source in sources)


def test_a_model_that_no_onnx_file_can_hold_is_refused() -> None:
    with torch.device("meta"):  # a billion parameters, and no memory
        model = CharmViT("vit_giant_patch14_dinov2", pretrained=False)
    with pytest.raises(ValueError, match=r"the weights take 4\.5 GB in float32.*use export_program"):
        export_onnx(model)


def test_packages_that_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx_ir.passes.common", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install .charm-vit\[onnx\]."):
        export_onnx(build("charm_demo"))
