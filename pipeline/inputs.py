"""What training and evaluation read, put together from the folders under data/ and runs/."""

from pathlib import Path

from pipeline.columns import ColumnReader
from pipeline.errors import UserError
from pipeline.loader import TokenDataset
from pipeline.manifest import Manifest, read_manifest
from pipeline.params import Params
from pipeline.pos_embeds import PosEmbeds
from pipeline.shards import ShardReader
from pipeline.tokenizers import build_tokenizer

DATA = Path("data")
# Selections whose column a tokenizer reads. Pictures made square have another grid; their masks are squared with them.
_FROM_COLUMN = {
    "charm": ("frequency", "gradient", "entropy", "saliency"),
    "ms": ("saliency",),
    "hr_ms": ("saliency",),
}


class Inputs:
    """Shards, the selected column and position embeddings, opened once for all splits.

    Attributes:
        manifest: of all kept pictures.
        pictures: their shards.
        pos_embeds: of the backbone.
    """

    def __init__(self, params: Params, patch_size: int) -> None:
        self._params = params
        self._patch_size = patch_size
        self.manifest = read_manifest(DATA / "manifest")
        self.pictures = ShardReader(DATA / "shards")
        for key in self.manifest.keys:
            if key not in self.pictures:
                raise UserError(f"{self.pictures.folder} lacks {key} of the manifest; run dvc repro")
        self._column = None
        if params.selection in _FROM_COLUMN.get(params.tokenizer, ()):
            self._column = ColumnReader(DATA / "importance" / params.selection, self.pictures)
        self.pos_embeds = PosEmbeds(DATA / "pos_embeds" / params.backbone)

    def dataset(self, split: Manifest, training: bool) -> TokenDataset:
        """The tokens of some pictures; augmented and cropped at random in training alone."""
        return TokenDataset(
            split,
            self.pictures,
            self._column,
            build_tokenizer(self._params, self._patch_size, training),
            self.pos_embeds,
            self._params.seed,
            flip=self._params.train.flip if training else 0.0,
            rotate=self._params.train.rotate if training else 0.0,
        )
