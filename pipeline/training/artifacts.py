"""What training and evaluation read, put together from the folders under data/ and runs/."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from charm.inputs.protocol import Input
from charm.runtime.disk import file_sha256
from charm.runtime.errors import UserError
from pipeline.manifest.table import Manifest, read_manifest
from pipeline.pos_embeds.axes import PosEmbeds
from pipeline.settings.inputs import sketch_tokenizer
from pipeline.settings.params import Params
from pipeline.shards.columns import ColumnReader
from pipeline.shards.read import ShardReader
from pipeline.training.loader import TokenDataset

DATA = Path("data")


class Inputs:
    """Shards, the selected column and position embeddings, opened once for all splits.

    Shards and columns are read from data/, or from the copy of it that hardware.remote names.
    """

    def __init__(self, params: Params, data: Path = DATA) -> None:
        self._seed = params.seed
        self.manifest = read_manifest(data / "manifest")
        if params.train.mode == "head":  # which learns means of distributions
            self.manifest = self.manifest.as_scores()
        place = params.hardware.remote or str(data)
        self.images = ShardReader(f"{place}/shards")
        for key in self.manifest.keys:
            if key not in self.images:
                raise UserError(f"{self.images.folder} lacks {key} of the manifest; run dvc repro")
        self._column = None
        reads = sketch_tokenizer(params).reads
        if reads is not None:
            self._column = ColumnReader(f"{place}/importance", self.images, reads)
        self._data = data
        self.pos_embeds = PosEmbeds(data / "pos_embeds", params.backbone)

    def describe(self) -> dict[str, Any]:
        """Returns what tells these inputs from any others: the labels, and the sha256 of each file."""
        facts = asdict(self.manifest.facts)
        told = (
            "dataset",
            "meaning",
            "num_bins",
            "score_range",
            "accuracy_threshold",
            "max_edge",
            "colour",
            "split_sha256",
        )
        axes = file_sha256(self.pos_embeds.folder / "axes.safetensors"), self.pos_embeds.facts
        files = [file_sha256(self._data / "manifest" / "manifest.parquet"), *self.images.shards.values()]
        column = list(self._column.shards.values()) if self._column else []
        return {"labels": {name: facts[name] for name in told}, "files": files, "column": column, "axes": axes}

    def training_data(self, split: Manifest, tokenizer: Input, flip: float, rotate: float, grey: float) -> TokenDataset:
        """Returns the tokens of some images, drawn by their keys and augmented with these probabilities."""
        images = (split, self.images, self._column, tokenizer, self.pos_embeds, self._seed)
        return TokenDataset(*images, flip=flip, rotate=rotate, grey=grey)

    def evaluation_data(self, split: Manifest, tokenizer: Input) -> TokenDataset:
        """Returns the tokens of some images, drawn by their pixels as in charm.scorer."""
        images = (split, self.images, self._column, tokenizer, self.pos_embeds, self._seed)
        return TokenDataset(*images, by_pixels=True, max_edge=self.manifest.train_edge)
