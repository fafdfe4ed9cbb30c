"""Make the features of the frozen backbone, one column shard beside each image shard, for a head to be solved on.

Made in blocks of 64 images, which are kept in the store. Without train.mode: head the column is empty.
"""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from charm.runtime.disk import fingerprint
from pipeline.settings.params import Params
from pipeline.work.store import publish_shards, write_record
from stages import run_stage

DATA, OUT = Path("data"), Path("data/features")


def main(params: Params) -> None:
    facts: dict[str, Any] = {"map": None}
    made: dict[str, Path] = {}
    if params.train.mode == "head":
        made, facts = make_columns(params)
    else:
        print("features: none, since train.mode is fine_tune")
    publish_shards(made, OUT)
    write_record(OUT / "column.json", facts)


def make_columns(params: Params) -> tuple[dict[str, Path], dict[str, Any]]:
    """Makes the column shards that the store lacks; returns the path of each shard's sidecar, and what they hold."""
    from charm.model.frozen import hash_weights  # torch takes seconds, which who fine-tunes does not wait here
    from pipeline.features.make import describe_job, make_block
    from pipeline.features.start import choose_features, start_frozen
    from pipeline.shards.blocks import make_in_blocks
    from pipeline.training.artifacts import Inputs
    from pipeline.work.code import run_digest
    from pipeline.work.executor import Job

    model, inputs = start_frozen(params), Inputs(params)
    facts: dict[str, Any] = {"map": "features", "draws": params.features.draws, "weights": hash_weights(model)}
    facts |= choose_features(params, model)
    read = [params.selection, params.tokenizer, params.input_settings, params.max_seq_len, params.seed, params.tokens]
    code = run_digest("pipeline.features.make"), [version(name) for name in ("torch", "timm", "numpy")]
    given = inputs.describe()
    settings = str(read), params.train.normalize, params.hardware.precision, inputs.manifest.train_edge, given["axes"]
    columns = dict(zip(inputs.images.shards, given["column"], strict=False))
    job = describe_job(params, facts["weights"], given)
    jobs = [
        Job(
            shard,
            fingerprint(facts, settings, code, sha256, columns.get(shard)),
            (str(DATA.resolve()), shard, job),
            images=len(inputs.images.keys_of(shard)),
        )
        for shard, sha256 in inputs.images.images.items()
    ]
    return make_in_blocks("features", jobs, make_block, params.dask), facts


if __name__ == "__main__":
    run_stage(main)
