"""The standard input: sizes, where the crop is taken, and images of any shape."""

import tracemalloc

import numpy as np
import pytest

from charm.inputs.padding import PaddingInput
from charm.inputs.protocol import Input
from charm.inputs.settings import PaddingSettings, SquareSettings, StandardSettings
from charm.inputs.square import SquareInput
from charm.inputs.standard import StandardInput
from charm.tokenization.augment import IDENTITY, Symmetry, apply_symmetry
from charm.tokenization.tokenizer import CharmTokenizer
from charm.tokenization.tokens import Tokens
from tests.charm.tokenization.test_tokenizer import SYMMETRIES, turned_places, without_padding

KEYS = [f"photo-{i}" for i in range(500)]


def coded(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are: (y, x, 7)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(y, 7)], axis=2).astype(np.uint8)


def joined(tokens: Tokens) -> np.ndarray:
    """The crop, put together from its patches by a loop."""
    (grid,), p = tokens.grids, tokens.patches.shape[1]
    image = np.zeros((grid[0] * p, grid[1] * p, 3), np.uint8)
    for patch, (y, x) in zip(tokens.patches, tokens.patch_coord.tolist(), strict=True):
        image[y * p : (y + 1) * p, x * p : (x + 1) * p] = patch
    return image


def standard(patch_size: int = 14, **settings: int) -> StandardInput:
    """The crop at the centre, as in evaluation."""
    return StandardInput(patch_size, StandardSettings(**settings), training=False)  # type: ignore[arg-type]


def start(tokens: Tokens) -> tuple[int, int]:
    """Where the crop of a coded image starts."""
    y, x, _ = tokens.patches[0, 0, 0].tolist()
    return y, x


@pytest.mark.parametrize(
    ("patch_size", "crop", "edge"),
    [
        pytest.param(14, 224, 256, id="the usual one"),
        pytest.param(16, 224, 256, id="patches of 16"),
        pytest.param(32, 224, 256, id="patches of 32"),
        pytest.param(8, 224, 256, id="patches of 8"),
        pytest.param(14, 126, 144, id="of the built-in run"),
        pytest.param(14, 14, 16, id="one token"),
        pytest.param(14, 140, 140, id="no margin"),
    ],
)
def test_the_crop_is_taken_out_of_the_resized_image(patch_size: int, crop: int, edge: int) -> None:
    tokenizer = standard(patch_size, edge=edge, crop=crop)
    image = coded(edge, edge)  # already as large as it would be made: the pixels are kept
    tokens = tokenizer(image)
    first = (edge - crop) // 2
    np.testing.assert_array_equal(joined(tokens), image[first : first + crop, first : first + crop])
    assert tokens.patches.shape == ((crop // patch_size) ** 2, patch_size, patch_size, 3)
    assert tokens.grids == tokenizer.grids((edge, edge)) == ((crop // patch_size,) * 2,)


def test_the_usual_one_has_256_tokens_of_one_scale_without_padding() -> None:
    tokens = StandardInput()(coded(300, 400))
    assert tokens.seq_len == len(tokens.patches) == 256
    assert tokens.scale_id.tolist() == [0] * 256
    assert tokens.patch_coord[:17].tolist() == [[0, x] for x in range(16)] + [[1, 0]]
    assert (tokens.patches.dtype, tokens.patch_coord.dtype, tokens.scale_id.dtype, tokens.patch_valid.dtype) == (
        np.uint8,
        np.int32,
        np.uint8,
        bool,
    )


@pytest.mark.parametrize(
    ("image_hw", "expected"),
    [
        pytest.param((256, 256), (16, 16), id="square"),
        pytest.param((256, 300), (16, 38), id="wide"),
        pytest.param((306, 256), (41, 16), id="high"),
    ],
)
def test_centre_crop(image_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    # 300 columns overflow uint8, but the crop starts at most at column 76.
    tokenizer = standard()
    assert {start(tokenizer(coded(*image_hw), key=key)) for key in KEYS[:20]} == {expected}


def test_random_crops_are_everywhere_and_keyed() -> None:
    tokenizer, image = StandardInput(), coded(256, 256)
    starts = [start(tokenizer(image, key=key)) for key in KEYS]
    for axis in zip(*starts, strict=True):
        assert set(axis) == set(range(33))
        assert abs(np.mean(axis) - 16) < 2  # sigma 0.4
    assert starts[:20] == [start(tokenizer(image, key=key)) for key in KEYS[:20]]
    assert starts[:20] != [start(tokenizer(image, key=key, epoch=1)) for key in KEYS[:20]]
    assert starts[:20] != [start(tokenizer(image, key=key, seed=1)) for key in KEYS[:20]]


@pytest.mark.parametrize("scale", [2, 0.5], ids=["downscaled", "enlarged"])
def test_the_shorter_edge_is_resized_in_proportion(scale: float) -> None:
    y, x = np.mgrid[: int(256 * scale), : int(512 * scale)]
    image = np.stack([(y / scale).astype(int), (x / scale / 2).astype(int), 0 * y], axis=2).astype(np.uint8)
    crop = joined(standard()(image)).astype(float)
    rows, columns = np.mgrid[16:240, 144:368]
    assert np.abs(crop[..., 0] - rows).max() < 1.5
    assert np.abs(crop[..., 1] - columns / 2).max() < 1.5


@pytest.mark.parametrize("symmetry", [Symmetry(True, 0), Symmetry(False, 1), Symmetry(True, 3)], ids=str)
def test_symmetry_turns_the_crop(symmetry: Symmetry) -> None:
    image, tokenizer = coded(300, 256), StandardInput()
    plain, turned = tokenizer(image, key="photo-1"), tokenizer(image, key="photo-1", symmetry=symmetry)
    np.testing.assert_array_equal(joined(turned), apply_symmetry(joined(plain), symmetry))


@pytest.mark.parametrize("image_hw", [(1, 1), (1, 20000), (20000, 1), (3, 500), (7000, 13)], ids=str)
def test_images_of_any_shape_in_little_memory(image_hw: tuple[int, int]) -> None:
    image = np.full((*image_hw, 3), (10, 20, 30), np.uint8)
    tracemalloc.start()
    tokens = StandardInput()(image)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 20e6
    assert tokens.seq_len == 256
    np.testing.assert_array_equal(joined(tokens), np.broadcast_to(np.array([10, 20, 30], np.uint8), (224, 224, 3)))


@pytest.mark.parametrize("turns", [0, 1], ids=["wide", "high"])
def test_of_a_strip_the_same_places_are_seen(turns: int) -> None:
    image = np.repeat((np.arange(2000) // 8)[None, :, None], 8, axis=0).repeat(3, axis=2).astype(np.uint8)
    image = np.ascontiguousarray(np.rot90(image, -turns))
    centre = standard()(image)
    assert abs(centre.patches.mean() - 999.5 / 8) < 1
    means = [StandardInput()(image, key=key).patches.mean() for key in KEYS[:200]]
    assert min(means) < 8
    assert max(means) > 241
    assert abs(np.mean(means) - 124.5) < 20  # uniform over 0..249: sigma 5


def test_the_image_is_left_as_it_is() -> None:
    image = coded(100, 900)
    StandardInput()(image, symmetry=Symmetry(True, 1))
    np.testing.assert_array_equal(image, coded(100, 900))


def test_what_is_not_a_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 \(8, 9, 3\): expected"):
        StandardInput()(np.zeros((8, 9, 3), np.float32))


def test_a_crop_of_384_has_729_tokens() -> None:
    tokens = standard(edge=438, crop=384)(coded(200, 250))
    assert tokens.patches.shape == (729, 14, 14, 3)
    assert tokens.grids == ((27, 27),)


def test_padding_keeps_the_proportion_and_is_black() -> None:
    image = np.full((100, 200, 3), 90, np.uint8)
    tokens = PaddingInput(16)(image)
    image = joined(tokens)
    assert tokens.patch_valid.all()
    assert image.shape == (512, 512, 3)
    rows = np.flatnonzero(image.any(axis=(1, 2)))
    assert (rows[0], rows[-1]) == (128, 383)
    assert (image[128:384] == 90).all()


def test_the_papers_padding_has_1296_tokens() -> None:
    assert PaddingInput().grids((1, 1)) == ((36, 36),)
    assert PaddingInput().max_seq_len == 1296


@pytest.mark.parametrize(("edge", "image_hw", "side"), [(256, (300, 600), 252), (0, (300, 600), 588)])
def test_a_square_is_cut_at_two_scales(edge: int, image_hw: tuple[int, int], side: int) -> None:
    """256 pixels have 18 x 18 = 324 patches: fewer than 512 tokens, and still some of them are downscaled."""
    tokenizer = SquareInput(CharmTokenizer(14, max_seq_len=512), SquareSettings(edge))
    tokens = tokenizer(coded(*image_hw), key="a")
    assert tokens.grids == tokenizer.grids(image_hw)
    assert tokens.grids[-1] == (side // 14, side // 14)
    assert set(tokens.scale_id[tokens.patch_valid].tolist()) == {0, 1}


def test_squares_of_any_size_have_sequences_of_one_length() -> None:
    """A batch stacks them: a small square is cut by a tokenizer of fewer tokens, and padded."""
    tokenizer = SquareInput(CharmTokenizer(14, max_seq_len=96), SquareSettings(0))
    small, large = (tokenizer(coded(*image_hw), key="a") for image_hw in ((60, 90), (300, 400)))
    assert small.patches.shape == large.patches.shape == (96, 14, 14, 3)
    assert small.patch_coord.shape == (96, 2)
    assert small.patch_coord.dtype == np.int32
    assert large.seq_len == 96
    assert small.seq_len < 49  # 98 pixels are 7 x 7 patches, some of which are downscaled
    assert not small.patch_valid[small.seq_len :].any()
    assert not small.patches[small.seq_len :].any()


def test_a_square_takes_its_mask_along() -> None:
    mask = np.zeros((300, 600), bool)
    mask[:, :150] = True
    tokenizer = SquareInput(CharmTokenizer(14, max_seq_len=512, selection="saliency"), SquareSettings(256))
    tokens = tokenizer(coded(300, 600), saliency_mask=mask, key="a")
    native = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == 1)]
    quarter = {(y, x) for y in range(18) for x in range(4)}
    assert quarter <= set(map(tuple, native.tolist()))


@pytest.mark.parametrize("symmetry", SYMMETRIES, ids=str)
@pytest.mark.parametrize(
    "tokenizer",
    [
        StandardInput(14, StandardSettings(144, 126)),
        PaddingInput(14, PaddingSettings(140)),
        SquareInput(CharmTokenizer(14, max_seq_len=60, selection="gradient"), SquareSettings(0)),
        SquareInput(CharmTokenizer(14, max_seq_len=96, num_scales=3, budget="fill"), SquareSettings(256)),
    ],
    ids=["standard", "padding", "hr_ms", "ms"],
)
def test_other_inputs_turn_with_the_image(tokenizer: Input, symmetry: Symmetry) -> None:
    plain, turned = (tokenizer(coded(120, 250), key="a", symmetry=turn) for turn in (IDENTITY, symmetry))
    places = turned_places(without_padding(turned), IDENTITY)
    assert places == turned_places(without_padding(plain), symmetry)


@pytest.mark.parametrize("scales", [2, 3])
@pytest.mark.parametrize("budget", ["fixed", "fill", "share"])
@pytest.mark.parametrize("patch_size", [14, 16, 32])
def test_ms_is_multiscale_with_any_patches(patch_size: int, budget: str, scales: int) -> None:
    cutter = CharmTokenizer(patch_size, num_scales=scales, max_seq_len=1024, budget=budget)
    tokens = SquareInput(cutter, SquareSettings(256))(coded(250, 200), key="a")
    coarse, native = (
        int((tokens.patch_valid & (tokens.scale_id == scale)).sum()) / (tokens.grids[scale][0] * tokens.grids[scale][1])
        for scale in (0, scales - 1)
    )
    assert coarse >= 0.15  # of the image
    assert native >= 0.2


@pytest.mark.parametrize(("patch_size", "counts"), [(14, [17, 256]), (16, [13, 204]), (32, [3, 52])])
def test_ms_keeps_the_papers_share_native(patch_size: int, counts: list[int]) -> None:
    """64 of 81 coarse patches of 28 pixels, and of others the nearest number to that."""
    tokens = SquareInput(CharmTokenizer(patch_size, max_seq_len=512), SquareSettings(256))(coded(250, 200), key="a")
    assert np.bincount(tokens.scale_id[tokens.patch_valid]).tolist() == counts


@pytest.mark.parametrize("image_hw", [(240, 1000), (1000, 240)])
def test_stripes_become_grey_where_they_are_shrunk(image_hw: tuple[int, int]) -> None:
    """Also where the other axis grows."""
    along = np.arange(max(image_hw)) % 2 * 255
    stripes = along[None, :] if image_hw[0] < image_hw[1] else along[:, None]
    image = np.repeat(np.broadcast_to(stripes, image_hw)[..., None], 3, axis=2).astype(np.uint8)
    assert SquareInput(CharmTokenizer(), SquareSettings(256)).resize(image).std() < 20


def test_a_strip_becomes_no_square_of_gigabytes() -> None:
    assert SquareInput(CharmTokenizer(), SquareSettings(0)).grids((1, 60_000))[-1] == (714, 714)


def test_a_mask_of_another_size_is_refused() -> None:
    tokenizer = SquareInput(CharmTokenizer(selection="saliency"), SquareSettings(256))
    with pytest.raises(ValueError, match=r"saliency_mask is bool \(600, 300\): expected bool \(300, 600\)"):
        tokenizer(coded(300, 600), saliency_mask=np.zeros((600, 300), bool))
