"""Many tiny images through all stages and the loader: time and memory, beside those of a hundredth of them.

    uv run python -m tests.benchmarks.scale --count 300000

Each stage runs in a process of its own, as under DVC; memory is the largest resident size of that process and of its
largest child (a Dask worker). The images are 32 x 24 pixels, all different.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[2]
READ = """
import torch
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.params import load_params
from pipeline.training.artifacts import Inputs
from pipeline.training.loader import Loader
from pipeline.training.sampler import EpochSampler
inputs = Inputs(load_params())
train = inputs.manifest.of_split("train")
dataset = inputs.training_data(train, build_tokenizer(load_params(), 14), 0.0, 0.0, 0.0)
sampler = EpochSampler(len(dataset), 64, 0, shuffle=True)
print(sum(len(batch.keys) for batch in Loader(dataset, sampler, 1, torch.device("cpu"))), "read")
"""
MADE = ("manifest", "shards", "importance", "pos_embeds", "train", "evaluate", "report")
STAGES = {
    **{name: f"from stages import {name} as stage, run_stage; run_stage(stage.main)" for name in MADE},
    "loader": READ,
}
MEASURE = """
import atexit, resource
def tell():
    own, child = (resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"memory {own:.0f} {child:.0f}")
atexit.register(tell)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300_000)
    count = parser.parse_args().count
    print("| images | stage | seconds | MB, process | MB, largest child |\n|---|---|---|---|---|")
    for number in (count // 100, count):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder), number)
            for stage, code in STAGES.items():
                started = time.perf_counter()
                command = [sys.executable, "-c", MEASURE + code]
                environment = {**os.environ, "PYTHONPATH": str(ROOT), "CHARM_STORE": "store"}
                run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
                if run.returncode:
                    sys.exit(f"{stage} of {number} images: {run.stdout}{run.stderr}")
                own, child = run.stdout.split()[-2:]
                print(f"| {number} | {stage} | {time.perf_counter() - started:.0f} | {own} | {child} |", flush=True)


def write_images(folder: Path, count: int) -> None:
    """Images in subfolders of 1,000, labels.csv and params.yaml."""
    rows = ["path,score"]
    for index in range(count):
        path = folder / "images" / f"{index // 1000:04d}" / f"{index}.jpg"
        if index % 1000 == 0:
            path.parent.mkdir(parents=True)
        coarse = np.frombuffer(index.to_bytes(4, "little") * 9, np.uint8).reshape(3, 4, 3)
        path.write_bytes(simplejpeg.encode_jpeg(cv2.resize(coarse, (32, 24)), quality=80))
        rows.append(f"{path.relative_to(folder / 'images')},{index % 101 / 100}")
    (folder / "images" / "labels.csv").write_text("\n".join(rows) + "\n")
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    params["dataset"] = "csv"
    params["labels"] = "images/labels.csv"
    params["selection"], params["max_seq_len"] = "gradient", 24
    params["shards"]["samples_per_shard"] = 1000
    params["train"] |= {"epochs": 1, "batch_size": 128, "warmup_epochs": 0.0}
    yaml.dump(params, folder / "params.yaml")


if __name__ == "__main__":
    main()
