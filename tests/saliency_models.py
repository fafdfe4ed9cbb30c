"""A Grounding DINO and a SAM-HQ with random weights, small enough for tests; built from the libraries' own classes."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from charm.runtime.disk import file_sha256
from charm.saliency.sam_hq import SamHqSettings
from charm.saliency.weights import find_checkpoint, find_detector
from pipeline.settings.params import SamHqParams

# Grounding DINO's code holds the ids of [CLS], [SEP], the full stop and the question mark.
VOCABULARY = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029}
WORDS = "salient object figure ground reversal separation segmentation camo hidden"


def save_detector(folder: Path, config_class: str = "GroundingDinoConfig") -> None:
    """0.4 million parameters; images are shrunk to at most 80 pixels."""
    import transformers
    from transformers import AutoModelForZeroShotObjectDetection, BertConfig, SwinConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.manual_seed(0)
    config = getattr(transformers, config_class)(
        backbone_config=SwinConfig(
            embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, out_indices=[2, 3, 4]
        ),
        text_config=BertConfig(
            vocab_size=2048, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        ),
        d_model=64,
        encoder_layers=1,
        decoder_layers=2,  # one is refused
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_queries=20,
        encoder_n_points=2,
        decoder_n_points=2,
    )
    model = AutoModelForZeroShotObjectDetection.from_config(config)
    model.model.decoder.layer_norm.weight.data *= 0.2  # scores of random features are nearly all 0 or 1
    model.save_pretrained(folder)
    save_processor(folder, size={"shortest_edge": 48, "longest_edge": 80})


def save_processor(folder: Path, **settings: Any) -> None:
    """A processor with these settings of its images, and a tokenizer that knows the words of the paper's prompts."""
    from transformers import GroundingDinoImageProcessor, GroundingDinoProcessor, PreTrainedTokenizerFast

    vocabulary = VOCABULARY | {word: 2000 + index for index, word in enumerate(WORDS.split())}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)
    GroundingDinoProcessor(GroundingDinoImageProcessor(**settings), fast).save_pretrained(folder)


def save_owl(folder: Path) -> None:
    """An OWLv2 of 31,000 parameters, with a tokenizer of characters; images are padded to squares of 32 pixels."""
    from transformers import (
        CLIPTokenizerFast,
        Owlv2Config,
        Owlv2ForObjectDetection,
        Owlv2ImageProcessor,
        Owlv2Processor,
    )

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config=sizes | {"vocab_size": 64, "max_position_embeddings": 16},
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    model = Owlv2ForObjectDetection(config)
    model.box_head.dense2.bias.data += torch.tensor([0.0, 0.0, -1.0, -1.0])  # boxes of all sizes
    model.save_pretrained(folder)
    words = [letter + end for end in ("", "</w>") for letter in "abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: place for place, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizerFast(vocab=vocabulary, merges=[], model_max_length=16)
    Owlv2Processor(Owlv2ImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)


def build_tiny_sam() -> Any:
    """14,181 parameters; images of 64 x 64 pixels. In place of a builder of SAM_MODELS."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from segment_anything_hq import modeling

    torch.manual_seed(3)  # of four seeds the one whose masks are neither nearly empty nor nearly full
    dim = 16
    encoder = modeling.ImageEncoderViT(
        img_size=64,
        patch_size=8,
        embed_dim=8,
        depth=2,
        num_heads=2,
        mlp_ratio=2,
        out_chans=dim,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=[1],
    )
    prompts = modeling.PromptEncoder(
        embed_dim=dim, image_embedding_size=(8, 8), input_image_size=(64, 64), mask_in_chans=4
    )
    decoder = modeling.MaskDecoderHQ(
        transformer=modeling.TwoWayTransformer(depth=1, embedding_dim=dim, mlp_dim=16, num_heads=2),
        transformer_dim=dim,
        iou_head_depth=2,
        iou_head_hidden_dim=8,
        vit_dim=8,
    )
    return modeling.Sam(encoder, prompts, decoder).eval()


def save_models(folder: Path) -> SamHqParams:
    """Saves both, in detector/ and sam.pth; returns params that name them, at thresholds that find objects."""
    save_detector(folder / "detector")
    torch.save(build_tiny_sam().state_dict(), folder / "sam.pth")
    return SamHqParams(
        prompt="salient object",
        box_threshold=0.3,
        text_threshold=0.25,
        top_k=5,
        hq_token_only=False,
        detector=str(folder / "detector"),
        sam="vit_tiny",
        sam_checkpoint=str(folder / "sam.pth"),
        sam_sha256=file_sha256(folder / "sam.pth"),
    )


def resolve(params: SamHqParams) -> SamHqSettings:
    """As the stage does."""
    detector, detector_sha256 = find_detector(params.detector)
    checkpoint, sha256 = find_checkpoint(params.sam, params.sam_checkpoint, params.sam_sha256)
    given = {"detector": str(detector), "sam_checkpoint": str(checkpoint), "sam_sha256": sha256, "device": "cpu"}
    return SamHqSettings(**vars(params) | given, detector_sha256=detector_sha256)


def segment_directly(image: np.ndarray, params: SamHqParams) -> tuple[np.ndarray, torch.Tensor]:
    """The mask, bool (H, W), by plain calls of both libraries, and the boxes (x, y, x, y) in pixels."""
    from segment_anything_hq import SamPredictor
    from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

    processor = GroundingDinoProcessor.from_pretrained(params.detector)
    detector = GroundingDinoForObjectDetection.from_pretrained(params.detector)
    sam = build_tiny_sam()
    sam.load_state_dict(torch.load(str(params.sam_checkpoint), weights_only=True))
    predictor = SamPredictor(sam)
    height, width = image.shape[:2]
    with torch.no_grad():
        inputs = processor(
            images=image, text=f"{params.prompt}.", input_data_format="channels_last", return_tensors="pt"
        )
        (found,) = processor.post_process_grounded_object_detection(
            detector(**inputs),
            inputs["input_ids"],
            threshold=params.box_threshold,
            text_threshold=params.text_threshold,
            target_sizes=[(height, width)],
        )
        ranked = sorted(range(len(found["scores"])), key=lambda index: -float(found["scores"][index]))
        kept = [index for index in ranked if found["text_labels"][index]][: params.top_k]
        boxes = found["boxes"][kept]
        if not kept:
            return np.zeros((height, width), bool), boxes
        predictor.set_image(image)
        masks, _, _ = predictor.predict_torch(
            point_coords=None,
            point_labels=None,
            boxes=predictor.transform.apply_boxes_torch(boxes, (height, width)),
            multimask_output=False,
            hq_token_only=params.hq_token_only,
        )
    return np.logical_or.reduce(masks[:, 0].numpy()), boxes
