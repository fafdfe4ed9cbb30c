"""Fine-tune the backbone on patches that are chosen anew in each epoch, or solve a head on its features.

Writes runs/train: the folder of the best model by validation (charm.hub), history.csv by epoch and losses.csv by step.
A run that was stopped goes on from its last checkpoint, which lies in the store under the sha256 of everything that it
reads; a run that was finished is kept there, and published again. Runs on several GPUs with hardware.processes, or
under torchrun:

    torchrun --nproc-per-node 2 -m stages.train
"""

import contextlib
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path

from charm.runtime.disk import file_sha256, fingerprint
from pipeline.features.head import train_head
from pipeline.settings.models import find_checkpoint
from pipeline.settings.params import Params
from pipeline.training.artifacts import Inputs
from pipeline.training.distributed import all_reduce_sum, is_launched, join_process_group, launch_processes
from pipeline.training.trainer import Trainer
from pipeline.work.code import run_digest
from pipeline.work.store import keep_finished, locked, publish_finished, store_folder
from stages import run_stage

OUT = Path("runs/train")


def main(params: Params) -> None:
    if params.train.mode == "fine_tune" and params.hardware.processes > 1 and not is_launched():
        launch_processes(params.hardware.processes, "stages.train")
        return
    with join_process_group() as ranks:
        inputs = Inputs(params)
        made_from = _fingerprint(params, inputs)
        work = store_folder("train") / made_from
        work.mkdir(exist_ok=True)
        with locked(work) if ranks.first else contextlib.nullcontext():
            is_published = ranks.first and publish_finished("trained", made_from, OUT)
            # The sum waits, too: no rank looks for checkpoints before the first one is alone.
            if all_reduce_sum(float(is_published))[0]:
                print("train: finished before, published again; to train anew: `python -m pipeline prune --runs`")
                return
            publish: Callable[[Path], None] = partial(train_head, params, inputs, made_from)
            if params.train.mode == "fine_tune":
                trainer = Trainer(params, inputs, ranks, work)
                trainer.run()
                publish = trainer.publish
            if ranks.first:
                publish(work / "finished")
                keep_finished("trained", made_from, work / "finished")
                publish_finished("trained", made_from, OUT)
                shutil.rmtree(work)


def _fingerprint(params: Params, inputs: Inputs) -> str:
    """Returns the sha256 of what the run reads, its params and its files, and of the code that it runs."""
    settings = asdict(params)
    chosen = ["selection", "backbone", "pretrained", "max_seq_len", "seed", "tokens", "train"]
    read = {name: settings[name] for name in chosen} | {params.tokenizer: settings["inputs"][params.tokenizer]}
    read |= {"precision": params.hardware.precision, "fit": params.pos_embeds.fit}
    path = find_checkpoint(params)
    weights = file_sha256(path / "config.json" if path.is_dir() else path) if path else ""
    versions = [version(name) for name in ("torch", "timm", "numpy")]
    is_solved = params.train.mode == "head"
    column = [file_sha256(file) for file in sorted(Path("data/features").glob("*.json")) if is_solved]
    return fingerprint(read, run_digest("stages.train"), weights, inputs.describe(), versions, column)


if __name__ == "__main__":
    run_stage(main)
