"""params.yaml at the door: every mistake is one line with the file, the right line and the key."""

import pickle
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from charm.images.limits import LIMITS
from charm.model import losses, pos_embed
from charm.model.registry import MODELS
from charm.runtime import devices
from charm.runtime.errors import UserError
from charm.saliency import weights
from charm.tokenization import selection
from pipeline.datasets import READERS
from pipeline.importance import make as maps
from pipeline.settings import params
from pipeline.settings.params import load_params

ROOT = Path(__file__).parents[3]
SHIPPED = (ROOT / "params.yaml").read_text()


def edit(folder: Path, key: str, line: str) -> tuple[Path, int]:
    """params.yaml with the line of a key replaced (once, at any depth): the file, and the line's number."""
    text, count = re.subn(rf"^( *){key}:.*$", lambda found: found[1] + line, SHIPPED, count=1, flags=re.MULTILINE)
    assert count == 1, key
    file = folder / "params.yaml"
    file.write_text(text)
    return file, SHIPPED[: re.search(rf"^ *{key}:", SHIPPED, re.MULTILINE).start()].count("\n") + 1


def set_all(folder: Path, edits: dict[str, str]) -> Path:
    """params.yaml with other values of some keys, each the first of its name at any depth."""
    text = SHIPPED
    for key, value in edits.items():
        text = re.sub(rf"^( *{key}:).*$", rf"\1 {value}", text, count=1, flags=re.MULTILINE)
    (folder / "params.yaml").write_text(text)
    return folder / "params.yaml"


def line_of(key: str) -> int:
    return next(number for number, line in enumerate(SHIPPED.splitlines(), 1) if line.lstrip().startswith(f"{key}:"))


def test_the_shipped_file_is_right_and_holds_plain_python_types() -> None:
    loaded = load_params(ROOT / "params.yaml")
    assert type(loaded.train.learning_rate) is float
    assert type(loaded.importance.gradient.coarse_patch_sizes) is list
    assert {type(size) for size in loaded.importance.gradient.coarse_patch_sizes} == {int}
    assert type(loaded.manifest.path_column) is str
    assert loaded.manifest.root is None


@pytest.mark.parametrize(
    ("key", "line", "message"),
    [
        pytest.param("seed", "seeed: 0", "unknown key seeed; did you mean 'seed'?", id="typo at the top"),
        pytest.param(
            "drop", "dropp: uniform", "unknown key tokens.dropp; did you mean 'drop'?", id="typo in a section"
        ),
        pytest.param(
            "random", "random: {x: 1}", "unknown key importance.random.x; known: none", id="key of an empty one"
        ),
        pytest.param(
            "entropy",
            "entropy: {coarse_patch_sizes: [28], window: 3}",
            "unknown key importance.entropy.window; known: coarse_patch_sizes",
            id="two sections deep",
        ),
        pytest.param("epochs", "[a]: 1", "unknown key train.", id="a key that is a list"),
        pytest.param(
            "backend",
            "backend: samhq",
            "importance.saliency.backend: 'samhq' is not known; did you mean 'sam_hq'?",
            id="of saliency",
        ),
        pytest.param("fit", "fit: neares", "tokens.fit: 'neares' is not known; did you mean 'nearest'?", id="choice"),
        pytest.param(
            "dataset",
            "dataset: imagenet",
            "'imagenet' is not known; known: demo, csv, hf, folder, stars, ava,",
            id="none near",
        ),
        pytest.param(
            "dataset", "dataset: tad66", "dataset: 'tad66' is not known; did you mean 'tad66k'?", id="data set"
        ),
        pytest.param(
            "max_seq_len", "max_seq_len: atuo", "expected int, got 'atuo' (str); auto takes", id="auto, misspelt"
        ),
        pytest.param(
            "budget", "budget: atuo", "tokens.budget: 'atuo' is not known; known: fixed", id="auto of a choice"
        ),
        pytest.param("learning_rate", "learning_rate: AUTO", "expected float, got 'AUTO'", id="auto in capitals"),
        pytest.param(
            "max_edge", "max_edge: [auto]", "expected int, got ['auto'] (list); auto takes", id="auto in a list"
        ),
        pytest.param(
            "clip_norm", "clip_norm: auto", "train.clip_norm: expected float, got 'auto' (str)", id="no recipe's"
        ),
        pytest.param("dataset", "dataset:", "dataset: None is not known", id="nothing"),
        pytest.param(
            "epochs", "epochs: forty", "train.epochs: expected int, got 'forty' (str)", id="text for a number"
        ),
        pytest.param("epochs", "epochs: 2.0", "train.epochs: expected int, got 2.0 (float)", id="float for an integer"),
        pytest.param("epochs", "epochs: true", "train.epochs: expected int, got True (bool)", id="bool for an integer"),
        pytest.param("epochs", "epochs: [1]", "train.epochs: expected int, got [1] (list)", id="list for an integer"),
        pytest.param("threshold", "threshold: true", "tokens.threshold: expected float, got True", id="bool for float"),
        pytest.param("threshold", "threshold: .nan", "tokens.threshold: expected a finite number, got nan", id="nan"),
        pytest.param("threshold", "threshold: .inf", "expected a finite number, got inf", id="infinite"),
        pytest.param("threshold", "threshold: 1" + "0" * 400, "expected a finite number, got 10", id="beyond floats"),
        pytest.param(
            "antialias", "antialias: 1", "pos_embeds.antialias: expected bool, got 1 (int)", id="int for bool"
        ),
        pytest.param("antialias", "antialias: no", "expected bool, got 'no' (str)", id="no is text in YAML 1.2"),
        pytest.param("path_column", "path_column: 3", "manifest.path_column: expected str, got 3 (int)", id="number"),
        pytest.param("score_columns", "score_columns: score", "expected a list of at least one", id="not a list"),
        pytest.param("score_columns", "score_columns: []", "expected a list of at least one", id="empty list"),
        pytest.param("score_columns", "score_columns: [a, 3]", "expected str, got 3 (int)", id="wrong entry"),
        pytest.param("score_range", "score_range: [1, 0]", "expected [lowest, highest]", id="range upside down"),
        pytest.param("score_range", "score_range: [0, 1, 2]", "expected [lowest, highest]", id="range of three"),
        pytest.param("score_range", "score_range: [1, 1]", "expected [lowest, highest]", id="range of no width"),
        pytest.param(
            "batch_size", "batch_size: 0", "train.batch_size: expected a number of at least 1, got 0", id="least"
        ),
        pytest.param("flip", "flip: 1.01", "train.flip: expected a number from 0 to 1, got 1.01", id="beyond the most"),
        pytest.param("seed", "seed: -1", "seed: expected a number from 0 to", id="seed below 0"),
        pytest.param("seed", "seed: 18446744073709551616", "seed: expected a number from 0 to", id="seed of 65 bits"),
        pytest.param("max_edge", "max_edge: 31", "max_edge: expected a number from 32 to 65500", id="optional"),
        pytest.param("gradient", "gradient: {coarse_patch_sizes: [28, 0]}", "at least 1, got 0", id="size of a patch"),
        pytest.param(
            "min_learning_rate",
            "min_learning_rate: 2.0e-3",
            "train.min_learning_rate: expected at most train.learning_rate, 0.001, got 0.002",
            id="a learning rate that rises",
        ),
        pytest.param(
            "warmup_epochs",
            "warmup_epochs: 20",
            "train.warmup_epochs: expected fewer than train.epochs, 20, got 20; auto takes",
            id="nothing but warm-up",
        ),
        pytest.param("loss", "loss: emd", "train.loss: emd does not fit labels that are scores, which", id="loss"),
        pytest.param("normalize", "normalize: true", "charm_demo is not pre-trained: there is no mean", id="normalize"),
        pytest.param("random", "random: 3", "expected a section with keys of its own, got 3", id="no section"),
        pytest.param("seed", "seed: !!python/object/apply:os.getcwd []", "seed: expected int", id="YAML tag"),
        pytest.param("backend", "backend: sam_hg", "did you mean 'sam_hq'?", id="backend"),
        pytest.param("prompt", "prompt: ' '", "importance.saliency.sam_hq.prompt: expected words", id="no prompt"),
        pytest.param("prompt", "prompt: a" + 200 * "b", "prompt: expected words, at most 200", id="too long a prompt"),
        pytest.param("prompt", 'prompt: "a\\nb"', "prompt: expected words", id="prompt of two lines"),
        pytest.param("prompt", 'prompt: "a\\n"', "prompt: expected words", id="prompt with a line end"),
        pytest.param("top_k", "top_k: 0", "importance.saliency.sam_hq.top_k: expected a number of at least 1", id="k"),
        pytest.param("sam", "sam: vit_bb", "did you mean 'vit_b'?", id="model"),
        pytest.param("sam_sha256", "sam_sha256: 0f32", "sam_sha256: expected 64 digits of 0-9a-f", id="short sha256"),
        pytest.param("backbone", "backbone: ..", "expected a name of a timm model, got '..'", id="the folder above"),
        pytest.param("backbone", "backbone: a;rm -rf", "expected a name of a timm model, got 'a;rm -rf'", id="shell"),
        pytest.param("backbone", "backbone: $(id)", "expected a name of a timm model, got '$(id)'", id="substitution"),
        pytest.param("backbone", "backbone: a/../b", "expected a name of a timm model, got 'a/../b'", id="path"),
        pytest.param("backbone", 'backbone: "a\\nb"', "expected a name of a timm model", id="two lines"),
        pytest.param("backbone", 'backbone: "a\\n"', "expected a name of a timm model", id="line end"),
        pytest.param("backbone", "backbone: ''", "expected a name of a timm model, got ''", id="empty name"),
        pytest.param("backbone", "backbone: hf-hub:x/y", "expected a name of a timm model", id="somebody's repository"),
    ],
)
def test_mistake_is_named_with_its_line(key: str, line: str, message: str, tmp_path: Path) -> None:
    file, number = edit(tmp_path, key, line)
    with pytest.raises(UserError) as error:
        load_params(file)
    assert str(error.value).startswith(f"{file}:{number}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("edits", "at", "message"),
    [
        pytest.param(
            {"dataset": "ava", "loss": "l1"},
            "loss",
            "train.loss: l1 does not fit labels that are distributions of 10 bins, which need emd; use auto",
            id="a loss for scores on a published data set",
        ),
        pytest.param(
            {"dataset": "csv", "score_columns": "[a, b, c]", "loss": "mse"},
            "loss",
            "train.loss: mse does not fit labels that are distributions of 3 bins, which need emd; use auto",
            id="a loss for scores on columns of bins",
        ),
        pytest.param(
            {"max_seq_len": "20000"},
            "draws: 4",
            "evaluate.draws: expected at most 3 with max_seq_len: 20000, got 4",
            id="more tokens in all draws than a model's folder may ask for",
        ),
        pytest.param(
            {"dataset": "para", "group_column": "sessionId"},
            "group_column",
            "manifest.group_column: it is read with dataset: csv | hf; leave it empty with dataset: para",
            id="groups in a published data set",
        ),
        pytest.param(
            {"dataset": "ava", "split_column": "set"},
            "split_column",
            "manifest.split_column: it is read with dataset: csv | hf | koniq10k; leave it empty with dataset: ava",
            id="a column of splits where they are published",
        ),
        pytest.param(
            {"long_tail": "{pairs: 1, tau_1: 0.2, tau_2: 4.0, similarity: 0.0}", "micro_batch": "4"},
            "long_tail",
            "train.long_tail: it relates all images of a step: expected one process, and hardware.micro_batch: auto",
            id="a term over the step in micro-batches",
        ),
        pytest.param(
            {"tokenizer": "padding", "max_seq_len": "80"},
            "max_seq_len",
            "padding with PaddingSettings(edge=126) needs max_seq_len >= 81 for patches of 14 pixels, got 80",
            id="fewer tokens than an input has by its size",
        ),
        pytest.param(
            {"max_seq_len": ""},
            "max_seq_len",
            "max_seq_len: charm needs a number of tokens, or auto",
            id="no number of tokens",
        ),
        pytest.param(
            {"num_scales": "3", "coarse_ratio": "3"},
            "coarse_ratio",
            "tokens.coarse_ratio: expected 2 with num_scales: 3 (coarse patches of 2p, 3p and 4p), got 3",
            id="three scales with a ratio of 3",
        ),
        pytest.param(
            {"selection": "gradient", "coarse_ratio": "3"},
            "gradient",
            "importance.gradient.coarse_patch_sizes: tokens and backbone need scores for coarse patches of 42 pixels: "
            "add 42",
            id="maps without the coarse patches of the tokens",
        ),
        pytest.param(
            {
                "selection": "entropy",
                "num_scales": "3",
                "backbone": "vit_base_patch8_224",
                "entropy": "\n    coarse_patch_sizes: [28]",
            },
            "coarse_patch_sizes: [28]",
            "importance.entropy.coarse_patch_sizes: tokens and backbone need scores for coarse patches of 32 pixels: "
            "add 32",
            id="maps without those of three scales",
        ),
    ],
)
def test_settings_that_do_not_go_together(edits: dict[str, str], at: str, message: str, tmp_path: Path) -> None:
    file = set_all(tmp_path, edits)
    lines = file.read_text().splitlines()
    number = next(number for number, line in enumerate(lines, 1) if line.lstrip().startswith(at))
    with pytest.raises(UserError) as error:
        load_params(file)
    assert str(error.value) == f"{file}:{number}: {message}"


@pytest.mark.parametrize(
    "edits",
    [
        pytest.param({"dataset": "csv", "score_columns": "[a, b, c]", "loss": "emd"}, id="emd on bins"),
        pytest.param({"selection": "gradient", "coarse_ratio": "4"}, id="a ratio that has its maps"),
        pytest.param(
            {"selection": "gradient", "coarse_ratio": "3", "tokenizer": "square"}, id="maps that are not read"
        ),
        pytest.param(
            {"selection": "gradient", "coarse_ratio": "3", "backbone": "flexivit_small"}, id="unknown patches"
        ),
        pytest.param({"normalize": "true", "backbone": "vit_tiny_patch16_224"}, id="normalized, and pre-trained"),
        pytest.param(
            {"tokenizer": "standard", "max_seq_len": "196", "backbone": "swin_tiny_patch4_window7_224"},
            id="patches of its own that are not the input's",
        ),
    ],
)
def test_settings_that_go_together(edits: dict[str, str], tmp_path: Path) -> None:
    load_params(set_all(tmp_path, edits))


@pytest.mark.parametrize(
    ("key", "section", "message"),
    [
        pytest.param("seed", None, "missing key seed", id="top"),
        pytest.param("coarse_ratio", "tokens", "missing key tokens.coarse_ratio", id="first of a section"),
        pytest.param("redraw", "tokens", "missing key tokens.redraw", id="last of a section"),
        pytest.param("root", "manifest", "missing key manifest.root", id="optional ones are written, too"),
        pytest.param("entropy", "importance", "missing key importance.entropy", id="a whole section"),
    ],
)
def test_missing_key_is_reported_at_its_section(key: str, section: str | None, message: str, tmp_path: Path) -> None:
    file, _ = edit(tmp_path, key, "")
    with pytest.raises(UserError) as error:
        load_params(file)
    assert str(error.value) == f"{file}:{line_of(section) if section else 1}: {message}"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"seed: [1\nx: 2\n", ":2: not valid YAML", id="bracket left open"),
        pytest.param(b"a: 1\n\tb: 2\n", ":2: not valid YAML", id="tab"),
        pytest.param(b"seed: 1\nseed: 2\n", ":2: not valid YAML: found duplicate key", id="key twice"),
        pytest.param(b"seed: *nobody\n", ":1: not valid YAML", id="alias of nothing"),
        pytest.param(b"a: 1\n---\nb: 1\n", "not valid YAML", id="two documents"),
        pytest.param(b"seed: \x00\n", "not valid YAML", id="NUL"),
        pytest.param(b"seed: \xe9\xe9\n", "not valid YAML", id="not UTF-8"),
        pytest.param(b"\xff\xfes\x00e", "not valid YAML", id="UTF-16 cut short"),
        pytest.param(b"seed: " + b"[" * 500, "nested too deeply", id="brackets without end"),
        pytest.param(b"".join(b" " * i + b"a:\n" for i in range(3000)), "nested too deeply", id="keys without end"),
        pytest.param(b"", "expected keys and values", id="empty"),
        pytest.param(b"- seed\n", "expected keys and values", id="a list"),
    ],
)
def test_bad_yaml(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(message)) as error:
        load_params(file)
    assert str(error.value).startswith(str(file))
    assert "\n" not in str(error.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"params\.yaml: No such file"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("written", ["3e-05", "3.0e-5", "0.00003", "3E-05"])
def test_scientific_notation_as_dvc_writes_it(written: str, tmp_path: Path) -> None:
    file, _ = edit(tmp_path, "learning_rate", f"learning_rate: {written}")
    assert load_params(file).train.learning_rate == 3e-5


@pytest.mark.parametrize("name", ["vit_small_patch14_dinov2.lvd142m", "vit_base_patch16_224", "charm_demo"])
def test_names_of_timm_are_let_through(name: str, tmp_path: Path) -> None:
    file, _ = edit(tmp_path, "backbone", f"backbone: {name}")
    assert load_params(file).backbone == name


def choices(section: type, field: str) -> set[Any]:
    return set(get_args(get_type_hints(section)[field]))


@pytest.mark.parametrize(
    ("section", "field", "known"),
    [
        pytest.param(params.Params, "dataset", READERS, id="READERS"),
        pytest.param(params.Params, "selection", selection.SELECTIONS, id="SELECTIONS"),
        pytest.param(params.Params, "selection", [*maps.SCORES, "saliency", "random"], id="SCORES and two more"),
        pytest.param(params.SaliencyParams, "backend", maps.MASKS, id="MASKS"),
        pytest.param(params.SamHqParams, "sam", weights.SAM_HQ, id="SAM_HQ"),
        pytest.param(params.TrainParams, "loss", [*losses.LOSSES, "auto"], id="LOSSES"),
        pytest.param(params.TrainParams, "head", {head for kind in MODELS for head in kind.heads}, id="heads"),
        pytest.param(params.HardwareParams, "precision", devices.PRECISIONS, id="PRECISIONS"),
        pytest.param(params.PosEmbedParams, "mode", {*pos_embed.MODES} - {"nearest", "bicubic_offset"}, id="MODES"),
    ],
)
def test_choices_are_those_of_the_registry(section: type, field: str, known: Any) -> None:
    assert choices(section, field) == set(known)


def test_maps_have_a_section_and_a_fingerprint_each() -> None:
    assert set(get_type_hints(params.ImportanceParams)) == {*maps.SCORES, "saliency", "random"}
    assert set(maps.MAP_CODE) == set(maps.MAPS)


def test_no_more_pixels_than_the_later_stages_decode(tmp_path: Path) -> None:
    file, _ = edit(tmp_path, "max_pixels", f"max_pixels: {LIMITS.max_pixels}")
    assert load_params(file).manifest.max_pixels == LIMITS.max_pixels
    file, _ = edit(tmp_path, "max_pixels", f"max_pixels: {LIMITS.max_pixels + 1}")
    with pytest.raises(UserError, match="max_pixels: expected a number from 1 to"):
        load_params(file)


def test_params_can_be_sent_to_another_process(shipped_params: params.Params) -> None:
    assert pickle.loads(pickle.dumps(shipped_params)) == shipped_params
