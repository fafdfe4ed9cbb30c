import csv
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from charm import CharmTokenizer
from pipeline.checkpoints import load_model_tensors
from pipeline.errors import UserError
from pipeline.params import Params
from pipeline.tokenizers import build_tokenizer
from stages import train

Workspace = tuple[Path, Params]


def read_history(folder: Path) -> list[dict[str, str]]:
    with (folder / "runs/train/history.csv").open() as text:
        return list(csv.DictReader(text))


def test_the_best_epoch_by_validation_is_published(workspace: Workspace) -> None:
    folder, params = workspace
    history = read_history(folder)
    quality = [float(row["val_srcc"]) + float(row["val_plcc"]) for row in history]
    _, config = load_model_tensors(folder / "runs/train")
    assert len(history) == 3
    assert quality[config["best_epoch"] - 1] == max(quality)
    assert CharmTokenizer.from_pretrained(str(folder / "runs/train")) == build_tokenizer(params, 14)
    assert {"backbone": "charm_demo", "num_scales": 2, "num_outputs": 1, "patch_size": 14}.items() <= config.items()


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = workspace
    uninterrupted, _ = load_model_tensors(folder / "runs/train")
    history = read_history(folder)
    shutil.rmtree(folder / "runs/train")

    def stop_after_saving(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    save = train.save_checkpoint
    for _ in range(2):  # stopped, and stopped again after going on
        monkeypatch.setattr(train, "save_checkpoint", stop_after_saving)
        with pytest.raises(KeyboardInterrupt):
            train.main(params)
    monkeypatch.setattr(train, "save_checkpoint", save)
    capsys.readouterr()
    train.main(params)
    assert "goes on after epoch 2" in capsys.readouterr().out
    resumed, _ = load_model_tensors(folder / "runs/train")
    assert read_history(folder) == history
    assert resumed.keys() == uninterrupted.keys()
    assert all(torch.equal(resumed[name], uninterrupted[name]) for name in resumed)


def test_a_loss_that_does_not_fit_the_labels_is_refused(workspace: Workspace) -> None:
    _, params = workspace
    with pytest.raises(UserError, match="emd does not fit labels with 1 bins"):
        train.main(replace(params, train=replace(params.train, loss="emd")))


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        pytest.param(0, 0.1 / 21, id="first step of the warm-up"),
        pytest.param(19, 0.1 * 20 / 21, id="last step of the warm-up"),
        pytest.param(20, 0.1, id="full rate after it"),
        pytest.param(99, 0.001, id="least rate at the end"),
    ],
)
def test_learning_rate(workspace: Workspace, step: int, rate: float) -> None:
    settings = replace(workspace[1].train, epochs=10, warmup_epochs=2.0, learning_rate=0.1, min_learning_rate=0.001)
    assert train.scheduled_rate(settings, step, steps_per_epoch=10) == pytest.approx(rate)
