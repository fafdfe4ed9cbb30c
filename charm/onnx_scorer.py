"""OnnxScorer: images in, scores out, from the folder that `charm export` writes, by ONNX Runtime and without PyTorch.

model.onnx              the encoder (charm.export); its metadata say the scale of the scores, the input and the
                        sha256 of the positions, for those who run it by other means
positions.safetensors   the table that position embeddings are looked up in (charm.model.positions)
config.json             as in the model's own folder (charm.hub), with the sha256 of model.onnx
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from charm.hub import AnyPath, read_config, refusing
from charm.model.config import ModelConfig
from charm.model.positions import PositionTable
from charm.runtime.errors import first_line, name_extra
from charm.scores import Scorer
from charm.tokenization.tokens import Tokens

INPUTS = ("patches", "pos_embed", "scale_id", "patch_valid")
ONNX_FILE, POSITIONS_FILE = "model.onnx", "positions.safetensors"


class OnnxScorer(Scorer):
    """Scores images with an exported model on the CPU; its scores are those of CharmScorer to 1e-5 of their range.

    The session is an onnxruntime.InferenceSession of model.onnx, whose sha256 is the weights'. Raises ValueError if
    these do not fit each other.
    """

    def __init__(self, session: Any, positions: PositionTable, config: ModelConfig, weights_sha256: str = "") -> None:
        super().__init__(config, "cpu", weights_sha256=weights_sha256)
        found = {one.name: list(one.shape) for one in (*session.get_inputs(), *session.get_outputs())}
        p = self.tokenizer.patch_size
        lasts = {"patches": [p, p, 3], "pos_embed": [positions.width], "scale_id": [], "patch_valid": []}
        expected = {name: ["B", "L", *last] for name, last in lasts.items()} | {"output": ["B", len(self.unit_bins)]}
        if found != expected:
            raise ValueError(f"{ONNX_FILE} takes and gives {found}: expected {expected}, as the config says")
        self._session, self._positions = session, positions

    @classmethod
    def from_pretrained(cls, folder: AnyPath) -> "OnnxScorer":
        """Loads the scorer of a folder that `charm export` wrote.

        Raises:
            OSError: config.json is missing.
            ValueError: another file is missing or damaged, or they are not of one export.
            ModuleNotFoundError: ONNX Runtime is not installed.

        >>> scorer = OnnxScorer.from_pretrained("exported")  # doctest: +SKIP
        >>> scorer("beach.jpg").score  # doctest: +SKIP
        3.82
        """
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(f"OnnxScorer: {name_extra(error)}", name=error.name) from error

        with refusing(folder):
            config, sha256 = read_config(folder)
            files = [Path(folder, name) for name in (ONNX_FILE, POSITIONS_FILE)]
            if lost := [file.name for file in files if not file.is_file()]:
                raise ValueError(f"there is no {' and '.join(lost)}: `charm export` writes them of a model's folder")
            data, table = (file.read_bytes() for file in files)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError(f"{ONNX_FILE} is damaged, or not the file that config.json describes")
            try:
                session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
            except Exception as error:  # of many kinds
                raise ValueError(f"{ONNX_FILE} cannot be run: {first_line(error)}") from error
            known = session.get_modelmeta().custom_metadata_map.get("positions_sha256")
            if hashlib.sha256(table).hexdigest() != known:
                raise ValueError(f"{POSITIONS_FILE} is damaged, or of another export than {ONNX_FILE}")
            try:
                positions = PositionTable(load(table), config.pos_embeds)
            except SafetensorError as error:
                raise ValueError(f"{POSITIONS_FILE} cannot be read ({error})") from error
            return cls(session, positions, config, sha256)

    def predict(self, tokens: Sequence[Tokens], length: int) -> np.ndarray:
        given = {
            name: np.stack([getattr(one, name)[:length] for one in tokens]) for name in INPUTS if name != "pos_embed"
        }
        embedded = np.stack([self._positions.embed(one, length) for one in tokens])
        output: np.ndarray = self._session.run(["output"], given | {"pos_embed": embedded})[0]
        return output
