"""Resample the backbone's position embeddings to every grid that the pictures have.

Run as `python -m stages.pos_embeds <backbone>`.
"""

import sys
from pathlib import Path

from pipeline.manifest import read_manifest
from pipeline.models import build_model, model_config
from pipeline.params import Params
from pipeline.pos_embeds import list_grids, write_tables
from pipeline.tokenizers import build_tokenizer
from stages import run_stage


def main(params: Params) -> None:
    out = Path("data/pos_embeds") / sys.argv[1]
    manifest = read_manifest(Path("data/manifest"))
    model = build_model(model_config(params, num_bins=1), params.pretrained)
    grids = list_grids(build_tokenizer(params, model.patch_size), manifest.image_hws)
    settings = params.pos_embeds
    write_tables(out, model.pos_embed.detach(), model.num_pos_prefix, grids, settings.mode, settings.antialias)
    megabytes = (out / "tables.safetensors").stat().st_size / 1e6
    print(f"pos_embeds: {len(grids)} grids of {params.backbone}, {megabytes:.1f} MB")


if __name__ == "__main__":
    run_stage(main)
