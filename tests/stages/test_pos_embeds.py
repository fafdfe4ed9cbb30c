from pathlib import Path

import torch

from charm import CharmTokenizer, CharmViT
from pipeline.manifest.table import read_manifest
from pipeline.pos_embeds.axes import PosEmbeds
from pipeline.settings.inputs import build_tokenizer
from pipeline.settings.params import Params
from pipeline.shards.read import ShardReader

Workspace = tuple[Path, Params]


def test_every_image_finds_the_embeddings_of_its_tokens(workspace: Workspace) -> None:
    folder, params = workspace
    pos_embeds = PosEmbeds(folder / "data/pos_embeds", "charm_demo")
    model = CharmViT("charm_demo", num_scales=2)
    tokenizer = build_tokenizer(params, model.patch_size)
    assert isinstance(tokenizer, CharmTokenizer)
    images = ShardReader(folder / "data/shards")
    for key in read_manifest(folder / "data/manifest").keys:
        tokens = tokenizer(images.read_image(key), key=key)
        found = pos_embeds.gather(torch.from_numpy(pos_embeds.rows(tokens)))
        expected = model.pos_embed_tables(tokens.grids)
        for token in range(tokens.seq_len):
            y, x = tokens.patch_coord[token]
            torch.testing.assert_close(found[token], expected[tokens.scale_id[token]][y, x], atol=1e-6, rtol=0)
