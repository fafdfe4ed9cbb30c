"""Values for `auto` in params.yaml: the settings of the paper for each data set, and those of the built-in run.

Sequence lengths, batch sizes, learning rates and maximum edges are those of sections 4.2 and 4.3 of the paper; weight
decay, epochs and the share of validation those of its published settings. A value in params.yaml takes precedence.
"""

from dataclasses import dataclass
from typing import Any

from charm.inputs.settings import SETTINGS


@dataclass(frozen=True)
class DatasetRecipe:
    """Settings that differ between data sets; the defaults are the paper's for those that it calls the others."""

    num_bins: int = 1  # of the distributions; 1 for scores
    # lowest and highest possible score; of the first and the last bin for distributions
    score_range: tuple[float, float] = (0.0, 1.0)
    accuracy_threshold: float = 0.5  # a score above this counts as good, on the scale of score_range
    max_edge: int | None = None  # pixels; larger images are downscaled when they are packed. None = never.
    val_share: float = 0.05  # of the training images, where the data set names none for validation
    # "refuse" or "allow" equal files in two splits; published splits are kept, and their leaks counted
    leaks: str = "allow"
    max_seq_len: int = 1024  # l, tokens
    batch_size: int = 16  # images
    learning_rate: float = 1e-5
    meaning: str = "its beauty, as people rated it"  # what a high score says of an image


_QUALITY = "its technical quality, as people rated it"
# The user's own, whose labels are described in params.yaml; what they mean only their columns say.
DESCRIBED = ("csv", "hf", "folder")
DATASETS: dict[str, DatasetRecipe] = {
    "demo": DatasetRecipe(
        val_share=0.1, leaks="refuse", meaning="how free of blur and noise a photograph is, which nobody judged"
    ),
    # A camera's photograph has 12 million pixels or more, of which 1024 tokens show 6 %.
    **dict.fromkeys(DESCRIBED, DatasetRecipe(max_edge=1024, val_share=0.1, leaks="refuse")),
    "stars": DatasetRecipe(
        1, (1.0, 5.0), 3.0, max_edge=1024, val_share=0.1, leaks="refuse", meaning="the stars that its owner gave it"
    ),
    "ava": DatasetRecipe(10, (1.0, 10.0), 5.0, max_seq_len=512, batch_size=64),
    "para": DatasetRecipe(9, (1.0, 5.0), 3.0, max_edge=1024),
    "tad66k": DatasetRecipe(1, (0.0, 10.0), 5.0, max_seq_len=768, batch_size=32),
    "aadb": DatasetRecipe(1, (0.0, 1.0), 0.5),
    "baid": DatasetRecipe(1, (0.0, 10.0), 5.0, learning_rate=1e-6),
    "spaq": DatasetRecipe(1, (0.0, 100.0), 50.0, max_edge=1024, meaning=_QUALITY),
    # In the published code MOS / 5 > 0.5 is good, of a MOS on 1..5: 2.5 there is 37.5 on this scale.
    "koniq10k": DatasetRecipe(1, (0.0, 100.0), 37.5, meaning=_QUALITY),
}

# Key of params.yaml -> the value of the paper, and with charm_demo that which trains it on a CPU in a minute.
_VALUES: dict[str, tuple[Any, Any]] = {
    "inputs.standard.edge": (256, 144),
    "inputs.standard.crop": (224, 126),
    "inputs.flexi.edge": (240, 160),
    "inputs.flexi.crop": (240, 140),
    # 92.5 tokens in the mean with charm_demo, on patches of 28 to 10 pixels.
    "inputs.flexi.grids": ([5, 6, 8, 10, 12, 15, 16, 20, 24, 30], [5, 7, 10, 14]),
    "inputs.flexi.grid": (15, 10),
    "inputs.padding.edge": (512, 126),
    "inputs.anyres.tile": (224, 56),
    "inputs.muller.edge": (224, 126),
    "tokens.budget": ("fixed", "share"),  # 96 tokens have no room for the 256 of `fixed`
    "train.epochs": (30, 20),
    "train.warmup_epochs": (0, 3),
    "train.weight_decay": (0.02, 0.05),
}


def choose_recipe(dataset: str, backbone: str, epochs: int | None = None) -> dict[str, Any]:
    """Returns key of params.yaml, with its section -> value for `auto`; `epochs` if not the recipe's.

    Settings of the images depend on the data set alone, so that another backbone makes no shard again.
    """
    recipe, is_demo = DATASETS.get(dataset, DatasetRecipe()), backbone == "charm_demo"
    chosen = {key: values[is_demo] for key, values in _VALUES.items()} | {
        "max_seq_len": 96 if is_demo else recipe.max_seq_len,
        "train.batch_size": 16 if is_demo else recipe.batch_size,
        "train.learning_rate": 1e-3 if is_demo else recipe.learning_rate,
        "features.layers": None,  # by the backbone's depth
        "hardware.micro_batch": None,  # all of a step's images, or as many as a GPU has memory for
        "manifest.max_edge": recipe.max_edge,
        "manifest.val_share": recipe.val_share,
        "manifest.leaks": recipe.leaks,
    }
    if is_demo and epochs is not None:  # a shorter run keeps the warm-up at the same share of its epochs
        full = chosen["train.epochs"]
        chosen["train.warmup_epochs"] = chosen["train.warmup_epochs"] * min(epochs, full) / full
    return chosen


def fill_in_recipe(node: dict[str, Any]) -> None:
    """Replaces `auto` in the content of params.yaml; an unknown data set is reported when the values are checked."""
    train = node.get("train")
    epochs = train.get("epochs") if isinstance(train, dict) else None
    chosen = str(node.get("dataset")), str(node.get("backbone")), epochs if isinstance(epochs, int) else None
    kind = SETTINGS.get(str(node.get("tokenizer")))
    own_length = {"max_seq_len": None} if kind and not kind.has_budget else {}
    for key, value in (choose_recipe(*chosen) | own_length).items():
        *sections, name = key.split(".")
        holder: Any = node
        for section in sections:
            holder = holder.get(section) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and holder.get(name) == "auto":
            holder[name] = value


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns all settings, of sections within sections, too, as `section.key`."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


AUTO_KEYS = frozenset(choose_recipe("demo", "charm_demo"))
