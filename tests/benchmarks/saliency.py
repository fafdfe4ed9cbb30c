"""Times saliency by SAM-HQ on one thread, beside plain calls of the libraries on the same image in the same run.

    python -m tests.benchmarks.saliency [vit_tiny | vit_b | ...] [rounds]

Weights are random, so nothing is downloaded: the detector has the architecture of grounding-dino-tiny, SAM-HQ the one
asked for. The pipeline's way is all that a worker does for an image of a shard: read, decode, find, segment, encode,
write. The plain way starts with the decoded image and ends with the mask. Plain over pipeline is to be about
1.0, the pipeline's overhead at most 5 %.
"""

import os

# Before torch is imported: the number of threads is read once.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
from skimage.data import astronaut

from charm.runtime.disk import file_sha256
from charm.saliency import sam_hq
from pipeline.importance.make import make_column
from pipeline.shards.write import write_shard
from tests.saliency_models import save_processor

HW = (768, 1024)
TOP_K = 5


def save_models(folder: Path, name: str) -> dict[str, Any]:
    """Random weights of full size on disk; returns the settings of the way `sam_hq`, which let five boxes pass."""
    from transformers import GroundingDinoConfig, GroundingDinoForObjectDetection

    torch.manual_seed(0)
    GroundingDinoForObjectDetection(GroundingDinoConfig()).save_pretrained(folder / "detector")
    save_processor(folder / "detector")
    torch.save(sam_hq.SAM_MODELS[name]().state_dict(), folder / "sam.pth")
    return {
        "prompt": "salient object",
        "box_threshold": 0.0,
        "text_threshold": 0.0,
        "top_k": TOP_K,
        "hq_token_only": False,
        "sam": name,
        "sam_sha256": file_sha256(folder / "sam.pth"),
        "detector_sha256": "",
        "sam_checkpoint": str(folder / "sam.pth"),
        "detector": str(folder / "detector"),
        "device": "cpu",
    }


def segment_plainly(models: sam_hq.Models, image: np.ndarray) -> np.ndarray:
    """As the libraries' own examples do: bool (H, W)."""
    with torch.no_grad():
        inputs = models.processor(images=image, text="salient object.", return_tensors="pt")
        (found,) = models.processor.post_process_grounded_object_detection(
            models.detector(**inputs),
            inputs["input_ids"],
            threshold=0.0,
            text_threshold=0.0,
            target_sizes=[image.shape[:2]],
        )
        boxes = found["boxes"][found["scores"].argsort(descending=True, stable=True)[:TOP_K]]
        models.predictor.set_image(image)
        masks, _, _ = models.predictor.predict_torch(
            point_coords=None,
            point_labels=None,
            boxes=models.predictor.transform.apply_boxes_torch(boxes, image.shape[:2]),
            multimask_output=False,
        )
    return np.asarray(masks.numpy().any(axis=(0, 1)))


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of the processor: where others use the machine, the second are the steadier."""
    wall, busy = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - busy


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "vit_tiny"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    image = np.ascontiguousarray(cv2.resize(astronaut(), HW[::-1], interpolation=cv2.INTER_CUBIC))
    encoded = simplejpeg.encode_jpeg(image, quality=92)
    image = simplejpeg.decode_jpeg(encoded)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        settings = save_models(folder, name)
        write_shard(folder / "shard-000000", [("00000000", {"jpg": encoded})])
        models = sam_hq.load_models(sam_hq.SamHqSettings(**settings))

        def ours() -> None:
            make_column(str(folder), "shard-000000", "sam_hq", settings, folder / "column")

        found = sam_hq.detect(image, sam_hq.SamHqSettings(**settings))
        same = np.array_equal(found.saliency_mask, segment_plainly(models, image))
        times: dict[str, list[tuple[float, float]]] = {"pipeline": [], "plain": []}
        runs = {"pipeline": ours, "plain": lambda: segment_plainly(models, image)}
        for turn in range(rounds):
            for way in sorted(runs, reverse=turn % 2 == 1):
                times[way].append(measure(runs[way]))
    print(f"{name}, {HW[1]}x{HW[0]}, {len(found.scores)} boxes, {rounds} rounds in turns; masks equal: {same}")
    for index, clock in enumerate(("wall", "processor")):
        ours_s, plain_s = (statistics.median(time[index] for time in times[way]) for way in ("pipeline", "plain"))
        overhead = 100 * (ours_s / plain_s - 1)
        print(
            f"{clock}: pipeline {ours_s:.2f} s, plain calls {plain_s:.2f} s, plain / pipeline {plain_s / ours_s:.3f}, "
            f"overhead {overhead:+.1f} % (at most 5)"
        )


if __name__ == "__main__":
    main()
