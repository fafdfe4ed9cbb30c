"""Prepare the backbone's position embeddings for every grid that the images have."""

from pathlib import Path

from charm.tokenization.geometry import limit_edge
from pipeline.manifest.table import read_manifest
from pipeline.pos_embeds.axes import list_axes, write_axes, write_rotary_axes
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.models import start_model
from pipeline.settings.params import Params
from stages import run_stage


def main(params: Params) -> None:
    out = Path("data/pos_embeds")
    manifest = read_manifest(Path("data/manifest"))
    model = start_model(params, num_bins=1)
    # In evaluation images are seen no larger than those of the training.
    sizes = {*manifest.image_hws, *(limit_edge(size, manifest.train_edge) for size in manifest.image_hws)}
    axes = list_axes(build_tokenizer(params, model.patch_size), sizes)
    if model.rotary:
        write_rotary_axes(out, params.backbone, {length: model.rotary_axis(length) for length in axes})
    else:
        write_axes(
            out, params.backbone, model.learnt_grid.detach(), axes, params.pos_embeds.mode, params.pos_embeds.antialias
        )
    print(f"pos_embeds: {params.backbone}, grids of {axes[0]} to {axes[-1]} tokens a side")


if __name__ == "__main__":
    run_stage(main)
