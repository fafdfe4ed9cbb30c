"""The checkpoints that Charm's authors published, as model folders: `charm import koniq10k`.

    scorer = import_checkpoint("koniq10k")  # or ("koniq10k_charm.pth", "koniq10k")
    scorer.save_pretrained("koniq10k")

They are pickled modules of transformers' DINOv2 and the authors' own classes, under the key "model_state_dict"; the
position embeddings are a file besides. Names, shapes and numbers of heads say what the model is. It sees the tokens of
the published code (charm.inputs.published), as the published package cuts them to score: nothing dropped or padded.
"""

import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from charm.inputs.published import PADDING
from charm.model import config as facts
from charm.model.pos_embed import resample_pos_embed
from charm.model.registry import build_model, restore_model
from charm.runtime.downloads import fetch
from charm.runtime.errors import UserError, did_you_mean, in_one_line
from charm.runtime.inert import Archive, Stored
from charm.runtime.weights import describe_misfit
from charm.scorer import CharmScorer
from charm.tokenization.draws import DRAWS_VERSION
from charm.tokenization.tokenizer import CharmTokenizer

REPOSITORY = "FatemehBehrad/Charm"
_KEY = "model_state_dict"
_PATCH_SIZE, _HEAD_WIDTH = 14, 64  # of DINOv2
_EDGE = 1024  # pixels: what is larger was downscaled, or seldom there, in training
_MOST_TOKENS = 2048  # of an image; one of 1024 x 1024 pixels has 1561
_POSITIONS: Literal["bicubic_offset"] = "bicubic_offset"
# Width and depth -> timm's name; any other model is the first in another shape.
_BACKBONES = {
    (384, 12): "vit_small_patch14_dinov2",
    (768, 12): "vit_base_patch14_dinov2",
    (1024, 24): "vit_large_patch14_dinov2",
}


@dataclass(frozen=True)
class Published:
    """A published checkpoint; score_range, accuracy_threshold and meaning as of LabelConfig."""

    file: str  # its name in the repository
    bins: int  # of the distribution; 1 for scores, which were learnt as fractions of the highest
    score_range: tuple[float, float]
    accuracy_threshold: float
    tokens: int = 1024  # l of its training
    meaning: str = "its beauty, as people rated it"
    positions: str = "dino_small_pos.pt"  # in the repository, too


_QUALITY = "its technical quality, as people rated it"
CHECKPOINTS = {
    "aadb": Published("aadb_charm.pth", 1, (0.0, 1.0), 0.5),
    "ava": Published("Ava_large_charm.pth", 10, (1.0, 10.0), 5.0, tokens=512, positions="dino_large.pt"),
    "para": Published("para_charm.pth", 9, (1.0, 5.0), 3.0),
    "baid": Published("baid_charm.pth", 1, (0.0, 10.0), 5.0),
    "koniq10k": Published("koniq10k_charm.pth", 1, (1.0, 5.0), 2.5, meaning=_QUALITY),
    "spaq": Published("spaq_charm.pth", 1, (0.0, 100.0), 50.0, meaning=_QUALITY),
    "tad66k": Published("tad66k_charm.pth", 1, (0.0, 10.0), 5.0, tokens=768),
}
_PARTS = {
    r"patch_embeddings\.cls_token": "vit.cls_token",
    r"patch_embeddings\.mask_token": "mask_token",
    r"patch_embeddings\.se": "scale_embed",
    r"patch_embeddings\.patch_embedder\.": "vit.patch_embed.proj.",
    r"encoder\.layernorm\.": "vit.norm.",
    r"mlp_head\.linear\.": "head.",
    r"encoder\.encoder\.layer\.(\d+)\.(norm[12]|mlp\.fc[12])\.": r"vit.blocks.\1.\2.",
    r"encoder\.encoder\.layer\.(\d+)\.layer_scale([12])\.lambda1": r"vit.blocks.\1.ls\2.gamma",
    r"encoder\.encoder\.layer\.(\d+)\.attention\.output\.dense\.": r"vit.blocks.\1.attn.proj.",
    r"encoder\.encoder\.layer\.(\d+)\.attention\.attention\.(query|key|value)\.": r"vit.blocks.\1.attn.\2.",
}
_QKV = ("query", "key", "value")


def import_checkpoint(source: str, dataset: str | None = None, padded: bool = False) -> CharmScorer:
    """Loads a published checkpoint as a scorer; nothing in it is executed.

    Args:
        source: a key of CHECKPOINTS, which is downloaded if need be, or the path of such a file.
        dataset: of a file, a key of CHECKPOINTS. Its position embeddings are looked for beside it, then on the hub.
        padded: whether every image has as many tokens as in training, filled up by padding that is attended to.

    Raises:
        UserError: the file is missing, damaged, hostile or of another model: one line says what was found.
    """
    named = source in CHECKPOINTS and dataset is None
    name = source if named else dataset
    if name not in CHECKPOINTS:
        known = list(CHECKPOINTS)
        came = f"{source!r} is none of {', '.join(known)}; of a file" if dataset is None else f"--dataset {dataset}"
        raise UserError(f"{came}: say by --dataset which one it is of{did_you_mean(name or source, known)}")
    published = CHECKPOINTS[name]
    files = [published.file, published.positions] if named else [published.positions]
    path, positions = Path(source), Path(source).with_name(published.positions)
    if named or not positions.is_file():
        folder = fetch(
            REPOSITORY, files, remedy="download its files by any other way, and name the .pth with --dataset"
        )
        path, positions = (folder / published.file if named else path), folder / published.positions
    try:
        tensors, heads = _read_model(path)
        tensors["vit.pos_embed"] = _read_positions(positions)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    config = _describe(name, tensors, heads, path, padded)
    try:
        with torch.device("meta"):
            expected = build_model(config.model).state_dict()
    except (AssertionError, ValueError) as error:  # timm's, of a width that the heads do not divide
        raise UserError(in_one_line(f"{path} is not the published model of {name}: {error}")) from error
    _compose(tensors)
    if problems := describe_misfit(expected, tensors):
        raise UserError(in_one_line(f"{path} is not the published model of {name}: {problems}"))
    return CharmScorer(restore_model(config.model, tensors), config)


def _read_model(path: Path) -> tuple[dict[str, Tensor], int | None]:
    """Reads the tensors of a checkpoint under the names of CharmViT, unknown names as they are; and heads, if said."""
    with closing(Archive(path)) as archive:
        module = archive.content.get(_KEY) if isinstance(archive.content, dict) else None
        found, numbers = archive.list_tensors(module)
        if not found:
            there = list(archive.content) if isinstance(archive.content, dict) else type(archive.content).__name__
            raise UserError(in_one_line(f"{path} holds no module with tensors under {_KEY!r}: found {there}"))
        heads = numbers.get("encoder.encoder.layer.0.attention.attention.num_attention_heads")
        read = archive.read(found)
    return {_rename(name): tensor for name, tensor in read.items()}, heads if isinstance(heads, int) else None


def _rename(name: str) -> str:
    for old, new in _PARTS.items():
        if match := re.match(old, name):
            return match.expand(new) + name[match.end() :]
    return name


def _read_positions(path: Path) -> Tensor:
    with closing(Archive(path)) as archive:
        if not isinstance(archive.content, Stored) or len(archive.content.shape) != 3:
            raise UserError(f"{path} holds no position embeddings, (1, 1 + g * g, D)")
        return archive.read({"positions": archive.content})["positions"]


def _describe(name: str, tensors: dict[str, Tensor], heads: int | None, path: Path, padded: bool) -> facts.ModelConfig:
    """Describes the model of a data set that has these tensors."""
    published = CHECKPOINTS[name]
    width = tensors["vit.pos_embed"].shape[2]
    depth = len({found[1] for one in tensors if (found := re.match(r"vit\.blocks\.(\d+)\.", one))})
    grid = round((tensors["vit.pos_embed"].shape[1] - 1) ** 0.5)
    heads = heads or max(1, width // _HEAD_WIDTH)
    backbone = _BACKBONES.get((width, depth))
    is_known = backbone is not None and (heads, grid) == (width // _HEAD_WIDTH, 37)
    own = None if is_known else facts.ViTShape(width, depth, heads, grid * _PATCH_SIZE)
    length = published.tokens if padded else _MOST_TOKENS
    cutter = CharmTokenizer(_PATCH_SIZE, max_seq_len=length, selection="frequency", threshold=1.0)
    config = facts.ModelConfig(
        model=facts.ViTConfig(
            backbone or next(iter(_BACKBONES.values())),
            num_scales=3,
            num_outputs=published.bins,
            head="cls_mean",
            normalize=False,
            pos_embed="frozen",
            # Of distributions the scorer takes the softmax.
            activation="none" if published.bins > 1 else "sigmoid_fifths" if published.score_range[0] else "sigmoid",
            shape=own,
        ),
        tokenizer=facts.InputConfig("published", {"tokens": published.tokens, "padded": padded}, cutter.settings),
        pos_embeds=facts.PosEmbedConfig(_POSITIONS, False),
        labels=facts.LabelConfig(
            published.bins, published.score_range, published.accuracy_threshold, published.meaning
        ),
        max_edge=None,
        seed=0,
        draws=1,
        saliency=None,
        data=facts.DataConfig(name, "", "", {}),
        training=facts.TrainingConfig(0, _EDGE, REPOSITORY, None),
        versions={"torch": torch.__version__, "draws": str(DRAWS_VERSION)},
    )
    try:
        return facts.ModelConfig.from_json(config.to_json())
    except ValueError as error:
        raise UserError(in_one_line(f"{path} is not the published model of {name}: {error}")) from error


def _compose(tensors: dict[str, Tensor]) -> None:
    """Joins queries, keys and values, and makes the scale embedding of padding: it shows the mask token.

    A black patch is embedded as the projection's bias, at the middle of the learnt positions; padding of the published
    code as the mask token, with the scale embedding of coarse tokens and no position.
    """
    for name in [name for name in tensors if ".attn.query." in name]:
        parts = [name.replace("query", part) for part in _QKV]
        if all(part in tensors for part in parts):
            tensors[name.replace("query", "qkv")] = torch.cat([tensors.pop(part) for part in parts])
    needed = ("vit.patch_embed.proj.bias", "scale_embed", "mask_token", "vit.pos_embed")
    if any(name not in tensors for name in needed) or tensors["scale_embed"].ndim != 3:
        return
    bias, scales, mask, positions = (tensors[name].double() for name in needed)
    scales, mask = scales[0, :2], mask.reshape(-1)
    if not bias.shape == mask.shape == scales.shape[1:] == positions.shape[2:] or len(scales) != 2:
        return
    middle = resample_pos_embed(positions, (1, 1), _POSITIONS)[0, 0]
    made = torch.cat([(mask + scales[0] - bias - middle)[None], scales])
    assert PADDING == 0
    tensors |= {"scale_embed": made.float(), "mask_token": mask.float()}
