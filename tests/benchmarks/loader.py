"""What the loader reaches beside plain decoding: images per second, each with its ratio to decoding the same JPEGs.

    uv run python -m tests.benchmarks.loader

64 images of 1024 x 768 (bundled photographs, JPEG quality 92) in shards; p = 14, l = 1024, batches of 16. All ways
take turns in one run; medians. `read, decode, tokenize, collate` is the loader in this process, without workers.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
import skimage.data
import torch

from charm import CharmTokenizer
from charm.model.demo_backbone import charm_demo
from charm.model.pos_embed import learnt_grid
from pipeline.manifest.labels import Listed, Listing
from pipeline.manifest.rows import build_rows, inspect_images
from pipeline.manifest.table import Manifest, read_manifest, write_manifest
from pipeline.pos_embeds.axes import PosEmbeds, list_axes, write_axes
from pipeline.settings.params import load_params
from pipeline.shards.read import ShardReader
from pipeline.shards.write import pack_shard
from pipeline.training.loader import Loader, TokenDataset
from pipeline.training.sampler import EpochSampler
from pipeline.work.store import parse_record
from tests.benchmarks.timing import take_turns

HEIGHT, WIDTH, COUNT, PER_SHARD, BATCH, ROUNDS = 768, 1024, 64, 16, 16, 7
TOKENIZER = CharmTokenizer(max_seq_len=1024)


def main() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = [simplejpeg.encode_jpeg(image, quality=92) for image in draw_photographs()]
        manifest, pos_embeds = pack(data, Path(folder))
        jpeg, raw = (
            TokenDataset(manifest, ShardReader(Path(folder) / kind), None, TOKENIZER, pos_embeds, seed=0)
            for kind in ("jpeg", "raw")
        )
        ways: dict[str, Callable[[], object]] = {
            "decode alone": lambda: [simplejpeg.decode_jpeg(one, strict=True) for one in data],
            "read, decode, tokenize, collate": loading(jpeg, 0),
            "1 worker": loading(jpeg, 1),
            "2 workers": loading(jpeg, 2),
            "raw: read, tokenize, collate": loading(raw, 0),
            "raw, 1 worker": loading(raw, 1),
            "raw, 2 workers": loading(raw, 2),
        }
        found = take_turns(ways, ROUNDS)  # the first round starts workers and checks what is read
    print("| | images/s | ratio to decoding |\n|---|---|---|")
    for name, seconds in found.items():
        print(f"| {name} | {COUNT / seconds:.0f} | {found['decode alone'] / seconds:.2f} |")


def draw_photographs() -> list[np.ndarray]:
    """uint8 (768, 1024, 3) each."""
    sources = [getattr(skimage.data, name)() for name in ("astronaut", "coffee", "chelsea", "hubble_deep_field")]
    images = []
    for index in range(COUNT):
        source = sources[index % len(sources)]
        top, left = index % 7, index % 11
        crop = source[top : top + 3 * source.shape[1] // 4, left : source.shape[1] - 11 + left]
        images.append(cv2.resize(crop, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    return images


def pack(data: list[bytes], folder: Path) -> tuple[Manifest, PosEmbeds]:
    """Writes folder/jpeg and folder/raw."""
    for name in ("images", "manifest", "jpeg", "raw"):
        (folder / name).mkdir()
    listed = []
    for index, one in enumerate(data):
        (folder / "images" / f"{index}.jpg").write_bytes(one)
        listed.append(Listed(f"{index}.jpg", f"{index}.jpg", (0.5,), "train", str(index)))
    listing = Listing(folder / "images", listed, (0.0, 1.0), 0.5, "nothing")
    params = load_params()
    inspect_images(str(listing.root), [one.path for one in listed], 10**8, None, folder / "found")
    found = parse_record((folder / "found.json").read_bytes())["images"]
    rows = build_rows(listing, found, params.manifest, 0)
    write_manifest(folder / "manifest", rows, listing, "csv")
    for start in range(0, COUNT, PER_SHARD):
        for kind, member in {"jpeg": "jpg", "raw": "npy"}.items():
            target = folder / kind / f"shard-{start // PER_SHARD:06d}"
            pack_shard(rows[start : start + PER_SHARD], str(listing.root), member, 95, (0.0, 1.0), target)
    manifest = read_manifest(folder / "manifest")
    grid = learnt_grid(charm_demo().pos_embed.detach())
    write_axes(folder / "pos_embeds", "charm_demo", grid, list_axes(TOKENIZER, manifest.image_hws), "bilinear", False)
    return manifest, PosEmbeds(folder / "pos_embeds", "charm_demo")


def loading(dataset: TokenDataset, workers: int) -> Callable[[], object]:
    loader = Loader(dataset, EpochSampler(COUNT, BATCH, seed=0, shuffle=True), workers, torch.device("cpu"))
    return lambda: sum(len(batch.keys) for batch in loader)


if __name__ == "__main__":
    main()
