"""Makes the column of features: pooled tokens of some layers of the backbone that training starts from.

Tokens are those of the scorer: draws follow from an image's pixels, and large images are downscaled.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from charm.model.frozen import hash_weights, layer_features
from charm.model.vit import CharmViT
from charm.runtime.devices import autocast
from charm.runtime.disk import fingerprint
from charm.runtime.errors import UserError
from charm.runtime.schema import build
from charm.saliency.gpus import choose_worker_device
from pipeline.features.start import choose_features, start_frozen
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.models import find_checkpoint
from pipeline.settings.params import Params
from pipeline.shards.write import Sample, encode_array, write_shard
from pipeline.training.artifacts import Inputs
from pipeline.training.loader import TokenDataset, collate
from pipeline.training.predictions import gather_arguments
from pipeline.training.sampler import SampleRef
from pipeline.work.executor import counting

BATCH = 16  # images that a worker takes at a time


def describe_job(params: Params, weights: str, inputs: dict[str, Any]) -> str:
    """Encodes what workers need, which may run in other folders; they open everything anew where any of it differs.

    Args:
        params: of the run.
        weights: sha256 that `hash_weights` gives of the model.
        inputs: of Inputs.describe.
    """
    path = find_checkpoint(params)
    given = asdict(replace(params, checkpoint=str(path.absolute()) if path else None))
    return json.dumps({"params": given, "weights": weights, "inputs": fingerprint(inputs)})


@dataclass(frozen=True)
class _Workplace:
    """What a worker keeps from block to block."""

    params: Params
    inputs: Inputs
    model: CharmViT
    dataset: TokenDataset
    rows: dict[str, int]  # of the manifest, by key


@lru_cache(maxsize=1)
def _open_workplace(data: str, job: str) -> _Workplace:
    told = json.loads(job)
    params = build(Params, told["params"])
    inputs, model = Inputs(params, Path(data)), start_frozen(params)
    if hash_weights(model) != told["weights"]:
        raise UserError(f"{params.backbone}: this worker found other weights than the stage: give a checkpoint")
    device = choose_worker_device(params.hardware.device)
    inputs.pos_embeds = inputs.pos_embeds.to(device)
    dataset = inputs.evaluation_data(inputs.manifest, build_tokenizer(params, model.patch_size))
    rows = {key: row for row, key in enumerate(inputs.manifest.keys)}
    return _Workplace(params, inputs, model.to(device), dataset, rows)


def make_block(data: str, shard: str, job: str, span: tuple[int, int | None], target: Path) -> None:
    """Makes the features of the images span[0] to span[1] - 1 of a shard.

    Args:
        data: the folder of Inputs.
        shard: name of the shard.
        job: of describe_job.
        span: as above.
        target: where to write, without an ending.
    """
    place = _open_workplace(data, job)
    keys = place.inputs.images.keys_of(shard)[slice(*span)]
    write_shard(target, _make_samples(place, keys), source=place.inputs.images.images[shard])


@torch.inference_mode()
def _make_samples(place: _Workplace, keys: list[str]) -> Iterator[tuple[str, Sample]]:
    """Yields the sample of each image; all draws of an image in a row, several images in a batch."""
    params, draws, pos_embeds = place.params, place.params.features.draws, place.inputs.pos_embeds
    layers = choose_features(params, place.model)["layers"]
    done, size = counting(keys), max(1, BATCH // draws)
    while some := list(islice(done, size)):
        refs = [SampleRef(draw, place.rows[key]) for key in some for draw in range(draws)]
        batch = collate([place.dataset[ref] for ref in refs])
        if isinstance(batch, UserError):
            raise batch
        with autocast(pos_embeds.device, params.hardware.precision):
            arguments = gather_arguments(batch, pos_embeds, place.model.trained_grid)
            found = layer_features(place.model, layers, *arguments)
        half = found.float().cpu().numpy().astype(np.float16).reshape(len(some), draws, *found.shape[1:])
        yield from ((key, {"features.npy": encode_array(array)}) for key, array in zip(some, half, strict=True))
