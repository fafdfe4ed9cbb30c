"""Prepare the backbone's position embeddings for every grid that the images have.

The grids also tell how much of the images is seen: area_seen.json has it beside the position embeddings.
"""

from pathlib import Path

from charm.tokenization.geometry import limit_edge
from pipeline.manifest.table import read_manifest
from pipeline.pos_embeds.axes import AreaSummary, list_axes, summarize_area, write_area, write_axes, write_fixed_axes
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.models import start_model
from pipeline.settings.params import Params
from stages import run_stage


def main(params: Params) -> None:
    out = Path("data/pos_embeds")
    manifest = read_manifest(Path("data/manifest"))
    model = start_model(params, num_bins=1)
    # In evaluation images are seen no larger than those of the training.
    sizes, edge = set(manifest.image_hws), manifest.train_edge
    sizes |= {limit_edge(size, edge) for size in sizes}
    tokenizer = build_tokenizer(params, model.patch_size)
    axes = sorted({*list_axes(tokenizer, sizes), *params.input_settings.drawn_sides})
    area = summarize_area(tokenizer, manifest.image_hws)
    out.mkdir(parents=True, exist_ok=True)
    write_area(out, area)
    asked = params.pos_embeds
    made, learnt = model.pos_embed_config(asked.mode, asked.antialias), model.learnt_grid
    if learnt is None:
        write_fixed_axes(out, params.backbone, {length: model.fixed_axis(length) for length in axes}, made.mode)
    else:
        write_axes(out, params.backbone, learnt.detach(), axes, made.mode, made.antialias)
    print(f"pos_embeds: {params.backbone}, grids of {axes[0]} to {axes[-1]} tokens a side")
    if made.antialias and not asked.antialias:
        print(f"pos_embeds: antialiased, as {params.backbone} learnt its positions, whatever pos_embeds.antialias says")
    if area is not None:
        _show_area(area, tokenizer.max_seq_len, manifest.facts.max_edge)


def _show_area(area: AreaSummary, max_seq_len: int, max_edge: int | None) -> None:
    print(f"pos_embeds: of an image's area, median: {area.median}; lowest: {area.lowest}")
    if area.median.dropped > 0.5:
        print(
            "pos_embeds: warning: more than half of the area of most images is dropped; raise max_seq_len "
            f"({max_seq_len}) or lower manifest.max_edge ({max_edge or 'no limit'})"
        )


if __name__ == "__main__":
    run_stage(main)
