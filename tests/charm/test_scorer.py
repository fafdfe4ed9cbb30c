"""CharmScorer: a score is the image's own, whoever asks for it, how, and beside what."""

import hashlib
import io
import json
import math
import os
import re
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from charm import CharmScorer
from charm.hub import write_model_folder
from charm.inputs.registry import INPUTS
from charm.model.config import METRICS, ModelConfig, PosEmbedConfig
from charm.model.registry import build_model
from charm.model.vit import CharmViT
from charm.runtime.errors import UserError
from charm.tokenization.geometry import limit_edge
from charm.tokenization.tokens import stack_tokens
from tests.charm.images.files import encode
from tests.charm.images.test_colour import P3
from tests.conftest import draw_image
from tests.untrained import build_scorer, describe

SIZES = ((40, 60), (150, 100), (333, 222), (200, 400), (16, 500), (9, 9))


@pytest.fixture
def scorer() -> CharmScorer:
    return build_scorer()


@pytest.fixture
def images() -> list[np.ndarray]:
    return [draw_image(*size, seed) for seed, size in enumerate(SIZES)]


def test_a_score_does_not_depend_on_batch_mates_order_or_threads(
    scorer: CharmScorer, images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [scorer(image).score for image in images]
    assert np.ptp(alone) > 0.1
    together = [found.score for found in scorer(images)]
    backwards = [found.score for found in scorer(images[::-1])][::-1]
    monkeypatch.setattr("charm.scores._BATCH_TOKENS", 100)
    in_turns = [found.score for found in scorer(images)]
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    threaded = [found.score for found in scorer(images)]
    torch.set_num_threads(threads)
    for scores in (together, backwards, in_turns, threaded):
        np.testing.assert_allclose(scores, alone, atol=4e-5)  # 1e-5 of the scale, which is four wide


def test_it_is_the_models_own_output_on_the_scale_of_the_labels(scorer: CharmScorer) -> None:
    image = draw_image(150, 100)
    output = scorer.model(stack_tokens(scorer.tokenize(image)))
    assert scorer(image).raw == pytest.approx(1 + 4 * float(output), abs=1e-5)
    assert scorer(image).distribution is None


def test_any_kind_of_image_will_do(scorer: CharmScorer, tmp_path: Path) -> None:
    array = draw_image(90, 120)
    path = tmp_path / "a.png"
    Image.fromarray(array).save(path)
    kinds = (
        array,
        Image.fromarray(array),
        torch.from_numpy(array).permute(2, 0, 1),
        path,
        str(path),
        path.read_bytes(),
    )
    scores = [found.score for found in scorer(kinds)]
    np.testing.assert_allclose(scores, scores[0], atol=1e-6)
    assert scorer(kinds) == scorer(list(kinds))
    assert scorer(()) == []
    with pytest.raises(FileNotFoundError):
        scorer(tmp_path / "b.png")


def test_draws_follow_from_the_pixels(scorer: CharmScorer) -> None:
    image = draw_image(333, 222)
    (first,), (again,) = scorer.tokenize(image), scorer.tokenize(image.copy())
    np.testing.assert_array_equal(first.patch_coord, again.patch_coord)
    other = image.copy()
    other[0, 0] ^= 1
    assert not np.array_equal(first.patch_coord, scorer.tokenize(other)[0].patch_coord)


def test_draws_are_averaged_with_their_spread(scorer: CharmScorer) -> None:
    image = draw_image(333, 222)
    each = [scorer.score_tokens([[tokens]])[0].raw for tokens in scorer.tokenize(image, draws=5)]
    found = scorer(image, draws=5)
    assert np.std(each) > 1e-4
    assert (found.raw, found.spread) == pytest.approx((np.mean(each), np.std(each)), abs=1e-5)
    assert build_scorer(draws=5)(image) == found
    assert scorer(image).spread is None  # of one draw nobody knows


def test_a_score_is_within_the_range_and_raw_is_not_clipped(scorer: CharmScorer) -> None:
    torch.nn.init.constant_(scorer.model.head.bias, -3.0)
    found = scorer(draw_image(100, 120))
    assert found.score == 1.0
    assert found.raw < -5


def test_a_score_that_is_no_number_is_an_error(scorer: CharmScorer) -> None:
    torch.nn.init.constant_(scorer.model.head.bias, math.nan)
    with pytest.raises(ValueError, match="a score that is no number"):
        scorer(draw_image(100, 120))


def test_larger_images_than_the_trainings_are_downscaled_unless_told_not_to(scorer: CharmScorer) -> None:
    config = replace(scorer.config, training=replace(scorer.config.training, edge=200))
    limited = CharmScorer(scorer.model, config)
    image = draw_image(300, 400)
    assert limited.limited_hw((300, 400)) == (150, 200)
    assert limited(image) == scorer(cv2.resize(image, (200, 150), interpolation=cv2.INTER_AREA))
    assert CharmScorer(scorer.model, config, full_size=True)(image) == scorer(image)


def test_a_distribution_has_its_mean_as_score() -> None:
    scorer = build_scorer(5)
    found = scorer(draw_image(150, 100))
    assert found.distribution is not None
    assert found.distribution.shape == (5,)
    assert found.distribution.sum() == pytest.approx(1)
    assert np.ptp(found.distribution) > 0.01
    assert found.score == pytest.approx(found.distribution @ [1, 2, 3, 4, 5])


def test_large_images_are_first_downscaled_as_in_training() -> None:
    scorer = build_scorer(max_edge=100)
    (tokens,) = scorer.tokenize(draw_image(333, 222))
    expected = scorer.tokenizer.grids(limit_edge((333, 222), 100))
    assert tokens.grids == expected != scorer.tokenizer.grids((333, 222))


def test_wide_colours_are_seen_as_in_training() -> None:
    """Of files, bytes and PIL images, by scorers whose config says so, and by what is loaded from their folders."""
    image = Image.open(io.BytesIO(encode(draw_image(150, 100), "PNG", icc_profile=P3)))
    plain = build_scorer()
    as_is = CharmScorer(plain.model, replace(plain.config, colour="as_is"))
    assert ModelConfig.from_json(as_is.config.to_json()).colour == "as_is"
    assert as_is(image) == plain(draw_image(150, 100)) != plain(image)


def test_a_saliency_model_needs_a_mask_and_follows_it() -> None:
    scorer = build_scorer(selection="saliency", max_seq_len=40)
    image = draw_image(112, 112)  # 4 x 4 coarse patches, 8 of which stay native
    left = np.zeros((112, 112), bool)
    left[:, :56] = True
    for mask, expected in ((left, True), (~left, False)):
        (tokens,) = scorer.tokenize(image, mask)
        x = tokens.patch_coord[tokens.patch_valid & (tokens.scale_id == 1), 1]
        assert len(x) == 32
        assert set(x < 4) == {expected}
    assert scorer([image, image], saliency_mask=[left, ~left])[0] == scorer(image, saliency_mask=left)
    with pytest.raises(ValueError, match="this model needs saliency_mask"):
        scorer(image)
    with pytest.raises(ValueError, match=r"saliency_mask is \(56, 112\): expected \(112, 112\)"):
        scorer(image, saliency_mask=left[:56])
    with pytest.raises(ValueError, match="2 images and 1 masks"):
        scorer([image, image], saliency_mask=[left])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda scorer: scorer(b"score,path"), "not a JPEG", id="another file"),
        pytest.param(lambda scorer: scorer(np.zeros((4, 4, 3))), "float64", id="floats"),
        pytest.param(lambda scorer: scorer(draw_image(9, 9), draws=0), "draws=0: expected at least 1", id="no draw"),
        pytest.param(
            lambda scorer: scorer(draw_image(9, 9), saliency_mask=np.ones((9, 9), bool)), "takes no", id="a mask"
        ),
    ],
)
def test_what_cannot_be_scored_is_refused(
    call: Callable[[CharmScorer], Any], message: str, scorer: CharmScorer
) -> None:
    with pytest.raises(ValueError, match=message):
        call(scorer)


def test_no_images_have_no_scores(scorer: CharmScorer) -> None:
    assert scorer([]) == []


def test_half_precision_is_near(scorer: CharmScorer, images: list[np.ndarray]) -> None:
    half = build_scorer(precision="bfloat16")
    scores = [[found.score for found in one(images)] for one in (scorer, half)]
    np.testing.assert_allclose(*scores, atol=0.1)
    assert scores[0] != scores[1]
    with pytest.raises(ValueError, match="precision='int8': expected one of float32"):
        build_scorer(precision="int8")


@pytest.mark.parametrize("name", list(INPUTS))
def test_every_input_scores_alone_as_in_a_batch(name: str, images: list[np.ndarray]) -> None:
    scorer = build_scorer(tokenizer=name)
    alone = [scorer(image).score for image in images]
    np.testing.assert_allclose([found.score for found in scorer(images)], alone, atol=1e-5)


def test_it_says_what_it_is(scorer: CharmScorer) -> None:
    expected = "backbone='charm_demo', tokenizer='charm', score_range=(1.0, 5.0), draws=1, device='cpu'"
    assert repr(scorer) == f"CharmScorer({expected})"


def test_devices_have_the_names_of_the_command(scorer: CharmScorer, tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    for loaded in (CharmScorer.from_pretrained(tmp_path), CharmScorer(scorer.model, scorer.config, "auto")):
        assert loaded.device.startswith(expected)
        assert loaded.model.head.weight.device.type == expected
    with pytest.raises(UserError, match="device 'abacus' cannot be used here"):
        CharmScorer.from_pretrained(tmp_path, device="abacus")


def test_a_folder_gives_the_same_scores(scorer: CharmScorer, images: list[np.ndarray], tmp_path: Path) -> None:
    scorer.save_pretrained(tmp_path)
    assert CharmScorer.from_pretrained(str(tmp_path), "cpu")(images) == scorer(images)


# A change of config.json, by section and key, and what the refusal says.
HOSTILE = {
    "another model": ("model", "num_scales", 1, "2 unexpected (mask_token, scale_embed)"),
    "bins of another model": ("labels", "num_bins", 10, "labels.num_bins: expected 1, as model.num_outputs, got 10"),
    "range upside down": ("labels", "score_range", [5.0, 1.0], "labels.score_range: expected [lowest, highest]"),
    "range of a point": ("labels", "score_range", [1.0, 1.0], "labels.score_range: expected [lowest, highest]"),
    "range without end": ("labels", "score_range", [1.0, math.inf], "labels.score_range: expected a finite number"),
    "range that is no number": (
        "labels",
        "score_range",
        [math.nan, 1.0],
        "labels.score_range: expected a finite number",
    ),
    "no range": ("labels", "score_range", None, "labels.score_range: expected a list of 2 entries"),
    "no labels": (None, "labels", {}, "missing key labels.num_bins"),
    "many bins": ("labels", "num_bins", 10**9, "labels.num_bins: expected a number from 1 to 1000"),
    "another input": ("tokenizer", "name", "naflex", "tokenizer: missing key enlarge"),
    "an unknown input": ("tokenizer", "name", "nonsense", "tokenizer.name='nonsense': expected one of charm"),
    "an input that is a list": ("tokenizer", "name", ["charm"], "tokenizer.name: expected str, got ['charm']"),
    "an unknown setting": ("tokenizer", "settings", {"flavour": 1}, "tokenizer: unknown key flavour"),
    "an unknown setting of the cutter": ("tokenizer", "cutter", {"flavour": 1}, "tokenizer: CharmTokenizer.__init__()"),
    "a whole image": ("model", "image_edge", 64, "contradict each other: whole image None and 64"),
    "a whole image without end": ("model", "image_edge", 10**9, "model.image_edge: expected a number from 1 to 8192"),
    "a backbone for whole images": (
        "model",
        "backbone",
        "resnet18",
        "as an image model needs an input that shows whole",
    ),
    "patches of a pixel": ("tokenizer", "cutter", {"patch_size": 1}, "contradict each other: patch size 14 and 1"),
    "an edge below zero": (None, "max_edge", -4, "max_edge: expected a number from 32"),
    "a seed that is a text": (None, "seed", "a", "seed: expected int, got 'a'"),
    "no draw": (None, "draws", 0, "draws: expected a number from 1 to 64"),
    "draws that are a text": (None, "draws", "1", "draws: expected int, got '1'"),
    "draws without end": (None, "draws", 10**9, "draws: expected a number from 1 to 64"),
    "an unknown detector": ("saliency", "backend", "magic", "'magic' is not known"),
    "a backbone that is a path": ("model", "backbone", "../x", "model.backbone: expected a name of a timm model"),
    "a backbone that nobody knows": ("model", "backbone", "vit_nonsense", "is not a model of timm"),
    "a huge backbone": (
        "model",
        "backbone",
        "vit_7b_patch16_dinov3",
        "patch size 16 and 14; positions rotary and bilinear",
    ),
    "a huge backbone of the same patches": ("model", "backbone", "vit_giant_patch14_dinov2", "are not of one model"),
    "weights that nobody published": ("model", "backbone", "vit_tiny_patch16_224.mine", "no such weights"),
    "settings of SAM-HQ that it does not have": (
        "saliency",
        "settings",
        {"code": 1},
        "unknown key saliency.settings.code",
    ),
    "a metric without its ends": (
        "evaluation",
        "metrics",
        {},
        "evaluation.metrics: expected value, low and high of plcc",
    ),
    "a threshold beyond the scores": ("labels", "accuracy_threshold", 9.0, "expected within score_range"),
    "positions of another kind": ("pos_embeds", "mode", "rotary", "positions bilinear and rotary"),
    "an unknown key": (None, "code", "import os", "unknown key code"),
}


SAM_HQ = {
    **{"prompt": "object", "box_threshold": 0.3, "text_threshold": 0.25, "top_k": 1, "hq_token_only": False},
    **{"sam": "vit_b", "sam_sha256": "0" * 64, "detector_sha256": "0" * 64},
}


def write_config(folder: Path, facts: dict[str, Any]) -> None:
    """Writes config.json with a right checksum, as whoever makes such a folder can."""
    facts.pop("config_sha256", None)
    facts["config_sha256"] = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    (folder / "config.json").write_text(json.dumps(facts))


def write_hostile(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes a folder's config.json, in which every section is there."""
    facts = json.loads((folder / "config.json").read_bytes())
    facts["saliency"] = {"backend": "sam_hq", "settings": dict(SAM_HQ), "detector": "somebody/detector"}
    ends = {"value": 0.5, "low": 0.4, "high": 0.6}
    facts["evaluation"] = {"scored": 4, "draw_spread": None, "metrics": {name: dict(ends) for name in METRICS}}
    change(facts)
    write_config(folder, facts)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_folder_whose_numbers_cannot_be_right_is_refused(name: str, scorer: CharmScorer, tmp_path: Path) -> None:
    section, key, value, message = HOSTILE[name]
    scorer.save_pretrained(tmp_path)
    write_hostile(tmp_path, lambda facts: (facts[section] if section else facts).__setitem__(key, value))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        CharmScorer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)


ODD = [
    *(None, True, -1, 0, 1, 2, 0.5, 10**9, 10**30, 1e308, -1e308, math.nan, math.inf, -math.inf),
    *("", "a", "\0\x1b[2J", "../x", "x" * 5000, [], [1], [[1, 2]], ["a"] * 1000, {}, {"a": 1}),
]


def list_fields(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values of a JSON document, sections and lists included."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return ([path] if path else []) + [found for key, one in items for found in list_fields(one, (*path, key))]


def test_any_field_with_any_value_is_refused_in_a_line_or_scores_within_its_range(
    scorer: CharmScorer, tmp_path: Path
) -> None:
    """Every field of config.json with some odd values, in bounded time and memory."""
    scorer.save_pretrained(tmp_path)
    write_hostile(tmp_path, lambda facts: None)
    whole = (tmp_path / "config.json").read_bytes()
    fields, random, image = list_fields(json.loads(whole)), np.random.default_rng(0), draw_image(150, 100)
    assert len(fields) > 80
    refusals, seconds = [], []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, index in ((path, index) for path in fields for index in random.choice(len(ODD), 4, replace=False)):
        facts = json.loads(whole)
        reduce(getitem, path[:-1], facts)[path[-1]] = ODD[index]
        write_config(tmp_path, facts)
        started = time.process_time()
        try:
            loaded = CharmScorer.from_pretrained(tmp_path)
        except ValueError as error:
            refusals.append(str(error))
        else:
            low, high = loaded.score_range
            assert low <= loaded(image).score <= high, (path, ODD[index])
            assert all(isinstance(doubt, str) for doubt in loaded.config.doubts)
        seconds.append(time.process_time() - started)
    assert len(refusals) > 2 * len(fields)
    assert [line for line in refusals if len(line) > 500 or not line.isprintable()] == []
    assert max(seconds) < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # KB


def test_draws_of_more_tokens_than_a_machine_may_hold_are_refused() -> None:
    config = describe(draws=64, max_seq_len=2**16)
    with pytest.raises(ValueError, match="draws: expected at most 65536 tokens of an image, got 64 draws of 65536"):
        ModelConfig.from_json(config.to_json())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        ("model.safetensors", b"<html>", "is a web page"),
        ("model.safetensors", b"\xff" * 7 + b"\x00" + b"[" * 100_000, "is no safetensors file"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"{}" + bytes(1000), "is no safetensors file"),
        ("config.json", b"[" * 100_000, "is not the description of a Charm model"),
        ("config.json", b'{"a": "' + b"x" * 2_000_000 + b'"}', "is not the description of a Charm model"),
    ],
    ids=[
        "pointer for weights",
        "page for weights",
        "brackets for weights",
        "more than its tensors",
        "brackets",
        "two megabytes",
    ],
)
def test_files_that_are_no_models_are_refused(
    name: str, content: bytes, message: str, scorer: CharmScorer, tmp_path: Path
) -> None:
    scorer.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        CharmScorer.from_pretrained(tmp_path)


def test_weights_of_another_size_are_refused_by_their_header_alone(scorer: CharmScorer, tmp_path: Path) -> None:
    """A file of a terabyte (sparse: it takes no space here) is never read."""
    scorer.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    header = json.dumps({"head.weight": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 2**40)
    with pytest.raises(ValueError, match="are not of one model"):
        CharmScorer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor.to(torch.int8), "of another shape \\(head.weight is I8"),
        (lambda tensor: tensor.fill_(math.nan), "head.weight has values that are not finite"),
        (lambda tensor: tensor[:, 1:].contiguous(), "of another shape \\(head.weight is F32"),
    ],
    ids=["integers", "no numbers", "another shape"],
)
def test_weights_that_cannot_be_right_are_refused(
    change: Callable[[torch.Tensor], torch.Tensor], message: str, scorer: CharmScorer, tmp_path: Path
) -> None:
    tensors = {name: tensor.clone() for name, tensor in scorer.model.state_dict().items()}
    write_model_folder(tmp_path, tensors | {"head.weight": change(tensors["head.weight"])}, scorer.config)
    with pytest.raises(ValueError, match=message):
        CharmScorer.from_pretrained(tmp_path)


def test_a_backbone_with_rotary_positions(images: list[np.ndarray]) -> None:
    backbone = "vit_small_patch16_dinov3"
    model = CharmViT(backbone, pretrained=False, depth=1, embed_dim=48, num_heads=3)
    config = describe(patch_size=model.patch_size)
    with pytest.raises(ValueError, match="positions rotary and bilinear"):
        CharmScorer(model, config)
    scorer = CharmScorer(model, replace(config, pos_embeds=PosEmbedConfig("rotary", False)))
    alone = [scorer(image).score for image in images]
    np.testing.assert_allclose([found.score for found in scorer(images)], alone, atol=1e-5)


def test_a_backbone_for_whole_images(images: list[np.ndarray], tmp_path: Path) -> None:
    """With batch norms, whose counts are integers; from its folder, alone as in a batch; not with images of a size
    that it was not made for."""
    whole = {"edge": 72, "crop": 64, "place": "random", "resize": "shortest"}
    config = describe(tokenizer="standard", patch_size=16, given=whole)
    config = replace(
        config,
        model=replace(config.model, backbone="test_resnet", head="mean"),
        pos_embeds=PosEmbedConfig("none", False),
    )
    torch.manual_seed(0)
    model = build_model(config.model)
    torch.nn.init.normal_(model.head.weight)
    scorer = CharmScorer(model, config)
    alone = [scorer(image).raw for image in images]
    assert np.ptp(alone) > 0.01
    scorer.save_pretrained(tmp_path)
    found = CharmScorer.from_pretrained(tmp_path)(images)
    np.testing.assert_allclose([one.raw for one in found], alone, atol=1e-4)
    other = replace(config, model=replace(config.model, image_edge=80))
    with pytest.raises(ValueError, match="contradict each other: whole image 64 and 80"):
        CharmScorer(build_model(other.model), other)
