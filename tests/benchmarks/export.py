"""What an exported encoder costs beside PyTorch: medians in ms per image on one thread, and their ratio.

    uv run python -m tests.benchmarks.export

A model of the shape of DINOv2-small with random weights, one image at a time, L = 512, full (where PyTorch needs no
attention mask) and with a quarter of padding. The two take turns.
"""

from collections.abc import Callable

import numpy as np
import onnxruntime
import torch

from charm import CharmViT
from charm.export import INPUTS, export_onnx
from tests.benchmarks.timing import take_turns

SEQ_LEN, ROUNDS = 512, 15


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # As trained: timm starts LayerScale at 1e-5, and the blocks would change next to nothing.
    model = CharmViT("vit_small_patch14_dinov2", pretrained=False, init_values=1.0).eval()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(export_onnx(model), options, providers=["CPUExecutionProvider"])
    print("| tokens | PyTorch | ONNX Runtime | ratio | largest difference |\n|---|---|---|---|---|")
    for num_tokens in (SEQ_LEN, SEQ_LEN * 3 // 4):
        patches = torch.randint(256, (1, SEQ_LEN, 14, 14, 3), dtype=torch.uint8)
        pos_embed = 0.02 * torch.randn(1, SEQ_LEN, model.vit.embed_dim)
        scale_id = torch.randint(2, (1, SEQ_LEN), dtype=torch.uint8)
        valid = torch.arange(SEQ_LEN)[None] < num_tokens
        coord = torch.zeros(1, SEQ_LEN, 2)
        inputs = {
            name: tensor.numpy() for name, tensor in zip(INPUTS, (patches, pos_embed, scale_id, valid), strict=True)
        }
        calls: dict[str, Callable[[], np.ndarray]] = {
            "torch": lambda p=patches, s=scale_id, v=valid, e=pos_embed, c=coord: model(p, c, s, v, e).numpy(),
            "onnx": lambda inputs=inputs: session.run(["output"], inputs)[0],
        }
        difference = np.abs(calls["torch"]() - calls["onnx"]()).max()
        ours, theirs = (1e3 * seconds for seconds in take_turns(calls, ROUNDS).values())
        print(f"| {num_tokens} of {SEQ_LEN} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.2f} | {difference:.1e} |")


if __name__ == "__main__":
    main()
