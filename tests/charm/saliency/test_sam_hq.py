"""Text to mask by the real libraries on tiny random models: bit for bit theirs, and no wrong weights in silence."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from charm.runtime.disk import file_sha256
from charm.runtime.errors import UserError
from charm.saliency import sam_hq
from charm.saliency.sam_hq import detect, format_prompt, load_detector, load_sam
from pipeline.settings.params import SamHqParams
from tests.saliency_models import build_tiny_sam, resolve, save_detector, save_owl, save_processor, segment_directly

Drawn = Callable[..., np.ndarray]
PAPER = [  # appendix 8
    "salient object",
    "hidden object",
    "camo object",
    "figure ground reversal",
    "figure ground separation",
    "figure ground segmentation",
]


@pytest.mark.parametrize("prompt", PAPER)
def test_masks_are_those_of_direct_calls_for_each_prompt_of_the_paper(
    prompt: str, tiny_models: SamHqParams, drawn: Drawn
) -> None:
    params = replace(tiny_models, prompt=prompt)
    image = drawn(96, 130, seed=1)
    expected, boxes = segment_directly(image, params)
    found = detect(image, resolve(params))
    assert found.saliency_mask.dtype == bool
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(found.saliency_mask, expected)
    np.testing.assert_array_equal(found.boxes, boxes.numpy()[:, [1, 0, 3, 2]])


@pytest.mark.parametrize(
    "shape", [(60, 80), (131, 57), (3, 90), (90, 1), (1, 1)], ids=["wide", "high", "three rows", "one column", "pixel"]
)
@pytest.mark.parametrize("hq_token_only", [False, True], ids=["sum", "hq alone"])
def test_masks_are_those_of_direct_calls_at_any_size(
    shape: tuple[int, int], hq_token_only: bool, tiny_models: SamHqParams, drawn: Drawn
) -> None:
    params = replace(tiny_models, hq_token_only=hq_token_only)
    image = drawn(*shape)
    expected, _ = segment_directly(image, params)
    np.testing.assert_array_equal(detect(image, resolve(params)).saliency_mask, expected)


def test_the_high_quality_token_alone_is_another_mask(tiny_models: SamHqParams, drawn: Drawn) -> None:
    image = drawn(96, 130)
    masks = [detect(image, resolve(replace(tiny_models, hq_token_only=flag))).saliency_mask for flag in (False, True)]
    assert not np.array_equal(*masks)


def test_top_k_keeps_the_boxes_of_highest_score(tiny_models: SamHqParams, drawn: Drawn) -> None:
    image = drawn(96, 130)
    many = detect(image, resolve(replace(tiny_models, top_k=20)))
    two = detect(image, resolve(replace(tiny_models, top_k=2)))
    assert len(many.scores) > 5
    assert sorted(many.scores, reverse=True) == many.scores.tolist()
    np.testing.assert_array_equal(two.boxes, many.boxes[:2])
    assert not (two.saliency_mask & ~many.saliency_mask).any()


@pytest.mark.parametrize("key", ["box_threshold", "text_threshold"])
def test_a_threshold_that_nothing_reaches_leaves_nothing(key: str, tiny_models: SamHqParams, drawn: Drawn) -> None:
    found = detect(drawn(60, 80), resolve(replace(tiny_models, **{key: 1.0})))
    assert not found.saliency_mask.any()
    assert found.saliency_mask.shape == (60, 80)
    assert found.boxes.shape == (0, 4)


def test_nothing_found_asks_sam_nothing(
    tiny_models: SamHqParams, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve(replace(tiny_models, box_threshold=1.0))
    predictor = sam_hq.load_models(settings).predictor
    monkeypatch.setattr(predictor, "set_image", lambda _: pytest.fail("encoded an image for nothing"))
    detect(drawn(60, 80), settings)


def test_a_image_too_thin_for_the_models_has_no_object(tiny_models: SamHqParams) -> None:
    assert not detect(np.zeros((1, 1001, 3), np.uint8), resolve(tiny_models)).saliency_mask.any()


def test_boxes_of_a_huge_image_are_taken_in_turns(
    tiny_models: SamHqParams, drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = drawn(96, 130)
    at_once = detect(image, resolve(tiny_models)).saliency_mask
    monkeypatch.setattr(sam_hq, "MAX_LOGITS", 2 * 96 * 130)
    np.testing.assert_array_equal(detect(image, resolve(tiny_models)).saliency_mask, at_once)


def test_models_are_loaded_once(tiny_models: SamHqParams, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    detect(drawn(60, 80), resolve(tiny_models))
    monkeypatch.setattr(sam_hq, "load_sam", lambda *_: pytest.fail("loaded again"))
    detect(drawn(60, 80), resolve(replace(tiny_models, prompt="hidden object", top_k=1)))


def test_half_precision_is_near(tiny_models: SamHqParams, drawn: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU does to the encoder, done on the CPU."""
    image = drawn(96, 130)
    exact = detect(image, resolve(tiny_models))
    monkeypatch.setattr(sam_hq, "_half_precision", lambda _: torch.autocast("cpu", torch.bfloat16))
    near = detect(image, resolve(tiny_models))
    np.testing.assert_array_equal(near.boxes, exact.boxes)
    assert 0 < (near.saliency_mask != exact.saliency_mask).mean() < 0.02


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("salient object", "salient object."), (" Cat. DOG. ", "cat. dog."), ("Camo Object", "camo object.")],
)
def test_prompts_are_written_as_the_detector_learnt_them(prompt: str, expected: str) -> None:
    assert format_prompt(prompt) == expected


def drop(weights: dict) -> None:
    for key in [key for key in weights if "hf_" in key]:
        del weights[key]


def add(weights: dict) -> None:
    weights["image_encoder.blocks.2.norm1.weight"] = torch.zeros(8)


def reshape(weights: dict) -> None:
    weights["image_encoder.pos_embed"] = torch.zeros(1, 4, 4, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(drop, r"7 missing \(mask_decoder\.hf_mlp\.layers\.0\.bias, .*, \.\.\.\)", id="partial"),
        pytest.param(add, r"1 unexpected \(image_encoder\.blocks\.2\.norm1\.weight\)", id="of a deeper model"),
        pytest.param(reshape, r"1 of another shape \(image_encoder\.pos_embed is \[", id="of another size"),
    ],
)
def test_weights_that_do_not_fit_are_counted_in_one_line(
    change: Callable[[dict], None], message: str, tiny_models: SamHqParams, tmp_path: Path
) -> None:
    weights = dict(build_tiny_sam().state_dict())
    change(weights)
    path = tmp_path / "other.pth"
    torch.save(weights, path)
    with pytest.raises(UserError, match=message) as error:
        load_sam("vit_tiny", path, file_sha256(path))
    assert "\n" not in str(error.value)


class Trap:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("sprung"),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param({"x": Trap()}, "holds more than tensors .*, which may run code", id="code"),
        pytest.param({"model": {"x": torch.zeros(1)}}, "1 unexpected .x.", id="nested, of another model"),
        pytest.param([1, 2], "expected names and tensors", id="a list"),
    ],
)
def test_what_is_no_table_of_weights_is_refused_and_never_run(
    content: object, message: str, tmp_path: Path, tiny_models: SamHqParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "x.pth")
    with pytest.raises(UserError, match=message):
        load_sam("vit_tiny", Path("x.pth"), file_sha256(Path("x.pth")))
    assert not Path("sprung").exists()


def test_a_checkpoint_that_changed_or_went_is_refused(tiny_models: SamHqParams, tmp_path: Path) -> None:
    path = tmp_path / "sam.pth"
    with pytest.raises(UserError, match="is not on this machine"):
        load_sam("vit_tiny", path, "0" * 64)
    path.write_bytes(b"x")
    with pytest.raises(UserError, match="has changed"):
        load_sam("vit_tiny", path, "0" * 64)


def test_attention_biases_of_the_checkpoint_reach_the_published_tiny_model(tmp_path: Path) -> None:
    """TinyViT keeps sums of them from the first eval(), which its builder calls before there are weights."""
    weights = sam_hq.SAM_MODELS["vit_tiny"]().state_dict()
    biases = [key for key in weights if key.endswith("attention_biases")]
    assert len(biases) == 10
    for key in biases:
        weights[key] = torch.randn_like(weights[key])
    torch.save(weights, tmp_path / "sam.pth")
    model = load_sam("vit_tiny", tmp_path / "sam.pth", file_sha256(tmp_path / "sam.pth"))
    for key in biases:
        attention = model.get_submodule(key.removesuffix(".attention_biases"))
        torch.testing.assert_close(attention.ab, weights[key][:, attention.attention_bias_idxs], rtol=0, atol=0)


def test_mm_grounding_dino_finds_the_boxes_of_its_own_class(
    tiny_models: SamHqParams, drawn: Drawn, tmp_path: Path
) -> None:
    from transformers import GroundingDinoProcessor, MMGroundingDinoForObjectDetection

    save_detector(tmp_path, "MMGroundingDinoConfig")
    save_processor(tmp_path, size={"shortest_edge": 48, "longest_edge": 80})
    params = replace(tiny_models, detector=str(tmp_path), box_threshold=0.001, text_threshold=0.001)
    image = drawn(96, 130, seed=1)
    processor, model = (
        one.from_pretrained(tmp_path) for one in (GroundingDinoProcessor, MMGroundingDinoForObjectDetection)
    )
    inputs = processor(images=image, text="salient object.", input_data_format="channels_last", return_tensors="pt")
    with torch.no_grad():
        (expected,) = processor.post_process_grounded_object_detection(
            model(**inputs), threshold=0.001, text_threshold=0.001, target_sizes=[(96, 130)]
        )
    found = detect(image, resolve(params))
    assert len(found.scores) == 5
    np.testing.assert_array_equal(found.scores, expected["scores"].sort(descending=True).values[:5].numpy())


def test_owlv2_finds_the_boxes_of_its_own_class_for_each_phrase(
    tiny_models: SamHqParams, drawn: Drawn, tmp_path: Path
) -> None:
    from transformers import Owlv2ForObjectDetection, Owlv2Processor

    save_owl(tmp_path)
    image = drawn(96, 130, seed=1)
    processor, model = (one.from_pretrained(tmp_path) for one in (Owlv2Processor, Owlv2ForObjectDetection))
    inputs = processor(
        images=image, text=[["salient object", "camo"]], input_data_format="channels_last", return_tensors="pt"
    )
    with torch.no_grad():
        (expected,) = processor.post_process_grounded_object_detection(
            model(**inputs), threshold=0.0, target_sizes=[(96, 130)]
        )
    best = expected["scores"].argsort(descending=True, stable=True)[:3]
    params = replace(tiny_models, detector=str(tmp_path), prompt="Salient object. camo.", box_threshold=0.0, top_k=3)
    found = detect(image, resolve(params))
    np.testing.assert_array_equal(found.scores, expected["scores"][best].numpy())
    np.testing.assert_array_equal(found.boxes, expected["boxes"][best].numpy()[:, [1, 0, 3, 2]])
    assert len(set(found.scores.tolist())) == 3
    assert found.saliency_mask.any()


def test_a_detector_without_all_its_weights_is_refused(tiny_models: SamHqParams, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in Path(tiny_models.detector).iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    lost = [key for key in weights if key.startswith("model.encoder.")]
    save_file({key: weights[key] for key in weights if key not in lost}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"as a detector .grounding-dino.: {len(lost)} missing \(model\.encoder\."):
        load_detector(tmp_path)


def test_a_folder_of_another_model_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        UserError, match=r"cannot be loaded as a detector of transformers \(it is a bert\); expected grounding-dino, "
    ) as error:
        load_detector(tmp_path)
    assert "\n" not in str(error.value)
