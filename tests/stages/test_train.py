import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from charm.hub import read_model
from charm.model.config import ViTConfig
from charm.runtime.errors import UserError
from pipeline.settings.params import LongTailParams, Params
from pipeline.training import trainer
from pipeline.training.state import load_checkpoint
from pipeline.work.store import store_folder
from stages import evaluate, pos_embeds, train
from tests.stages.conftest import ROOT, write_params
from tests.warm_python import WarmPython

Workspace = tuple[Path, Params]


def read_csv(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "runs/train" / name).open() as text:
        return list(csv.DictReader(text))


def read_history(folder: Path) -> list[dict[str, str]]:
    return read_csv(folder, "history.csv")


def read_losses(folder: Path) -> list[float]:
    return [float(row["loss"]) for row in read_csv(folder, "losses.csv")]


def with_train(params: Params, **changes: Any) -> Params:
    return replace(params, train=replace(params.train, **changes))


def with_hardware(params: Params, **changes: Any) -> Params:
    return replace(params, hardware=replace(params.hardware, **changes))


@pytest.fixture
def copied(finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """The data of the finished folder, in one where nothing is trained yet."""
    shutil.copytree(finished[0] / "data", tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHARM_STORE", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return tmp_path, finished[1]


def test_the_best_epoch_by_validation_is_published(workspace: Workspace) -> None:
    folder, _ = workspace
    history = read_history(folder)
    quality = [float(row["val_srcc"]) + float(row["val_plcc"]) for row in history]
    config = read_model(folder / "runs/train").config
    assert len(history) == 3
    assert quality[config.training.best_epoch - 1] == max(quality)
    assert config.model == ViTConfig("charm_demo", 2, 1, "cls", False, "frozen")
    assert config.tokenizer.cutter["patch_size"] == 14
    losses = read_losses(folder)
    assert [row["step"] for row in read_csv(folder, "losses.csv")] == [str(step) for step in range(6)]
    assert float(history[1]["train_loss"]) == pytest.approx(sum(losses[2:4]) / 2, rel=1e-5)


def stop_while(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """SIGTERM comes whenever this function of the trainer is called."""
    function = getattr(trainer, name)

    def stopped(*arguments: Any, **keywords: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return function(*arguments, **keywords)

    monkeypatch.setattr(trainer, name, stopped)


def test_a_run_that_is_stopped_after_each_step_is_bit_equal(
    finished: Workspace, copied: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stopped in every step and in every validation, and gone on with each time."""
    folder, params = copied
    work = folder / ".charm/store/train"
    for name, expected in (("take", 2), ("predict", 2)) * 3:
        with monkeypatch.context() as patch:
            stop_while(patch, "accumulate_gradients" if name == "take" else "predict")
            for _ in range(expected if name == "take" else 1):
                with pytest.raises(KeyboardInterrupt):
                    train.main(params)
    steps = [re.search(r"goes on after step (\d+)", line) for line in capsys.readouterr().out.splitlines()]
    assert [int(found[1]) for found in steps if found] == [1, 2, 2, 3, 4, 4, 5, 6]
    assert len(list(work.glob("*/checkpoint-*"))) == 2
    train.main(params)
    assert list(work.iterdir()) == []
    assert_equal_runs(folder, finished[0])


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="frozen"),
        pytest.param({"pos_embed": "trainable"}, id="trainable"),
        pytest.param({"mixout": 0.5, "long_tail": LongTailParams(1, 0.2, 4.0, 1.0)}, id="ELTA and mixout"),
    ],
)
def test_resuming_is_exact_where_the_work_is_split_over_threads(
    settings: dict[str, Any],
    copied: Workspace,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the batch and the length of the built-in run: smaller tensors are added up by one thread, in one order."""
    folder, params = copied
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))
    params = replace(with_train(params, **settings, batch_size=15), max_seq_len=96)
    pos_embeds.main(params)
    whole = tmp_path_factory.mktemp("whole")
    try:
        train.main(params)
        shutil.move(folder / "runs", whole / "runs")
        shutil.rmtree(store_folder("trained"))
        for _ in range(2):
            with monkeypatch.context() as patch:
                stop_while(patch, "accumulate_gradients")
                with pytest.raises(KeyboardInterrupt):
                    train.main(params)
        train.main(params)
    finally:
        torch.set_num_threads(threads)
    assert len(read_losses(folder)) == 3
    assert_equal_runs(folder, whole)


@pytest.mark.parametrize("name", ["flexi", "image model"])
def test_other_inputs_and_backbones_resume_exactly_too(
    name: str, copied: Workspace, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grid of a FlexiViT is that of the step, and so is the dropping of paths; batch norms have no state."""
    folder, params = copied
    if name == "flexi":
        params = replace(with_train(params, batch_size=3), tokenizer="flexi", max_seq_len=None)
    else:
        backbone = {"backbone": "test_resnet", "pretrained": False, "max_seq_len": None}
        params = replace(with_train(params, head="mean", normalize=True), tokenizer="padding", **backbone)
    pos_embeds.main(params)
    whole = tmp_path_factory.mktemp("whole")
    train.main(params)
    shutil.move(folder / "runs", whole / "runs")
    shutil.rmtree(store_folder("trained"))
    for _ in range(3):
        with monkeypatch.context() as patch:
            stop_while(patch, "accumulate_gradients")
            with pytest.raises(KeyboardInterrupt):
                train.main(params)
    train.main(with_hardware(params, loader_workers=1))
    assert_equal_runs(folder, whole)


def assert_equal_runs(folder: Path, other: Path) -> None:
    """Losses of each step, epochs and weights, bit by bit."""
    assert read_losses(folder) == read_losses(other)
    assert read_history(folder) == read_history(other)
    found, expected = (read_model(one / "runs/train").tensors for one in (folder, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("kept", [1, 3, 5])
def test_a_run_that_is_killed_goes_on_from_what_was_saved_last(
    kept: int, finished: Workspace, copied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed a step after the last checkpoint, without a word."""
    folder, params = copied
    saved = []
    change = trainer.optimizer_step

    class Killed(BaseException):
        pass

    def save(progress: Any, work: Path) -> None:
        if progress.step <= kept:
            write(progress, work)
            saved.append(progress.step)

    def die(progress: Any, loss: float) -> None:
        change(progress, loss)
        if progress.step > kept:
            raise Killed

    write = trainer.TrainState.save
    with monkeypatch.context() as patch:
        patch.setattr(trainer.TrainState, "save", save)
        patch.setattr(trainer, "optimizer_step", die)
        with pytest.raises(Killed):
            train.main(with_hardware(params, checkpoint_minutes=0.0))
    assert saved[-1] == kept
    assert set(range(1, kept + 1)) == set(saved)
    (shown,) = (folder / ".charm/store/train").glob("*/history.csv")
    assert list(csv.DictReader(shown.read_text().splitlines())) == read_history(finished[0])[: kept // 2]
    train.main(params)
    assert_equal_runs(folder, finished[0])


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"micro_batch": 3}, id="micro-batches"),
        pytest.param({"micro_batch": 1, "loader_workers": 2}, id="one by one, two workers"),
        pytest.param({"grad_checkpointing": True}, id="checkpointing of activations"),
    ],
)
def test_where_it_runs_changes_only_the_rounding(
    changes: dict[str, Any], finished: Workspace, copied: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = copied
    train.main(with_hardware(params, **changes))
    assert read_losses(folder) == pytest.approx(read_losses(finished[0]), rel=1e-5)
    assert re.search(r"\(.*data \d+ %, model \d+ %\)", capsys.readouterr().out)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_gpu_without_memory_left_gets_half_as_many_images_at_a_time(
    workers: int,
    finished: Workspace,
    copied: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the second step, after one of its micro-batches; 8 images do not fit, 4 do not, either, and 2 do."""
    folder, params = copied
    forward, calls = trainer.forward_batch, []

    def forward_or_fail(model: Any, batch: Any, *arguments: Any) -> Tensor:
        calls.append(len(batch.keys))
        if len(calls) > 1 and len(batch.keys) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(model, batch, *arguments)

    monkeypatch.setattr(trainer, "forward_batch", forward_or_fail)
    with pytest.raises(UserError, match=r"no memory left at 8 images at a time: try hardware.micro_batch: 4"):
        train.main(with_hardware(params, micro_batch=8, loader_workers=workers))
    assert calls == [8, 7]  # of 15 images
    calls.clear()
    train.main(with_hardware(params, loader_workers=workers))
    assert calls[:7] == [8, 7, 4, 2, 2, 2, 1]  # the first step is not taken again
    assert read_losses(folder) == pytest.approx(read_losses(finished[0]), rel=1e-5)
    assert capsys.readouterr().out.count("goes on with") == 2


def test_memory_that_lacks_in_the_optimizers_step_stops_the_run(
    copied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken again, it would change some of the parameters twice."""

    def fail(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer, "optimizer_step", fail)
    with pytest.raises(UserError, match=r"no memory left at 8 images at a time: try hardware.micro_batch: 4"):
        train.main(copied[1])


def test_a_tracked_run_that_is_resumed_and_evaluated_is_one_run(
    finished: Workspace, copied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, params = copied
    params = with_hardware(params, tracker="tensorboard")
    for name in ("accumulate_gradients", "predict"):
        with monkeypatch.context() as patch:
            stop_while(patch, name)
            with pytest.raises(KeyboardInterrupt):
                train.main(params)
    train.main(params)
    evaluate.main(params)
    (run,) = (folder / "runs/tensorboard").iterdir()
    events = EventAccumulator(str(run)).Reload()
    for name in ("train_loss", "val_mae"):
        expected = [float(row[name]) for row in read_history(finished[0])]
        assert [one.step for one in events.Scalars(name)] == [1, 2, 3]
        assert [one.value for one in events.Scalars(name)] == pytest.approx(expected, rel=1e-5)
    metrics = json.loads((folder / "runs/evaluate/metrics.json").read_bytes())
    assert [one.value for one in events.Scalars("test_srcc")] == pytest.approx([metrics["srcc"]])


def test_a_long_epoch_says_how_it_goes(
    copied: Workspace, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, params = copied
    monkeypatch.setattr("charm.runtime.progress._LOG_EVERY", 0.0)
    train.main(with_train(params, batch_size=1, epochs=1, warmup_epochs=0.0))
    shown = capfd.readouterr()
    pace = r"[\d.]+ images/s, data \d+ %, model \d+ %"
    steps = r"train: epoch 1 of 1: 15 of 15 steps done, .* per second, 0 s left"
    assert re.search(rf"{steps}, loss 0\.\d{{4}}, {pace}, \d+ s left of the run", shown.err)
    assert re.search(r"train: about \d+ s an epoch and \d+ s to the end, without validation", shown.out)
    path = re.search(r"history so far, a row per epoch: (\S+)", shown.out)
    assert path is not None
    assert Path(path[1]).parent.parent == Path(".charm/store/train")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near(precision: str, finished: Workspace, copied: Workspace) -> None:
    folder, params = copied
    train.main(with_train(with_hardware(params, precision=precision), epochs=1))
    assert read_losses(folder) == pytest.approx(read_losses(finished[0])[:2], rel=0.01)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile, of its own doing
def test_a_compiled_model_is_the_same(finished: Workspace, copied: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a compiler that is quick; what is compiled, and that it can go on, is the point."""
    folder, params = copied
    compiled = []

    def compile_quickly(block: torch.nn.Module, **settings: Any) -> None:
        compiled.append(settings)
        block._compiled_call_impl = torch.compile(block._call_impl, backend="eager", **settings)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_quickly)
    train.main(with_train(with_hardware(params, compile=True), epochs=1))
    assert compiled == [{"dynamic": True}] * 2
    assert read_losses(folder) == pytest.approx(read_losses(finished[0])[:2], rel=1e-4)


@pytest.mark.parametrize(
    ("changes", "same_until"),
    [
        pytest.param({"ema": 0.9}, 6, id="average"),
        pytest.param({"layer_decay": 0.5}, 1, id="layer decay"),
        pytest.param({"pos_embed": "trainable"}, 1, id="trained positions"),
        pytest.param({"clip_norm": 0.0}, 1, id="no clipping"),
    ],
)
def test_ways_of_training(changes: dict[str, Any], same_until: int, finished: Workspace, copied: Workspace) -> None:
    """Each starts alike, becomes something else, and can be evaluated."""
    folder, params = copied
    changed = with_train(params, **changes)
    train.main(changed)
    pairs = list(zip(read_losses(folder), read_losses(finished[0]), strict=True))
    assert all(found == expected for found, expected in pairs[:same_until])
    assert all(found != expected for found, expected in pairs[same_until:])
    found, expected = (read_model(one / "runs/train").tensors for one in (folder, finished[0]))
    different = {name for name in found if not torch.equal(found[name], expected[name])}
    assert "head.weight" in different
    assert ("vit.pos_embed" in different) == ("pos_embed" in changes)
    evaluate.main(changed)


def test_training_ends_when_validation_is_not_better_for_a_while(
    copied: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = copied
    values = iter([0.1, 0.5, 0.4, 0.3, 0.9])
    monkeypatch.setattr(
        trainer, "score_agreement", lambda *_: dict.fromkeys(("plcc", "srcc", "krcc", "acc", "mae"), next(values))
    )
    train.main(with_train(params, epochs=9, patience=2))
    assert [row["val_srcc"] for row in read_history(folder)] == ["0.1", "0.5", "0.4", "0.3"]
    assert "no better validation score in 2 epochs" in capsys.readouterr().out
    assert read_model(folder / "runs/train").config.training.best_epoch == 2


def test_undefined_correlations_are_said_and_end_training_by_mae(
    copied: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, params = copied
    errors = iter([0.3, 0.2, 0.2, 0.2, 0.1])
    undefined = dict.fromkeys(("plcc", "srcc", "krcc"), float("nan"))
    monkeypatch.setattr(trainer, "score_agreement", lambda *_: undefined | {"acc": 0.5, "mae": next(errors)})
    train.main(with_train(params, epochs=9, patience=2))
    assert len(read_history(folder)) == 4
    printed = capsys.readouterr().out
    assert printed.count("val SRCC undefined  PLCC undefined") == 4
    assert printed.count("chosen by MAE") == 1
    assert printed.count("train: warning: The backbone started from random weights") == 1  # and on data of one's own


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_with_the_images_and_unharmed_weights(
    where: str, finished: Workspace, copied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = copied
    params = with_hardware(params, checkpoint_minutes=0.0)
    calls = []

    def spoilt(output: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) < 4:
            return (output - target).abs().mean(dim=1)
        # The slope of a square root at 0 is infinite.
        return (output * 0).sqrt().mean(dim=1) if where == "gradient" else output.mean(dim=1) * float("nan")

    monkeypatch.setitem(trainer.LOSSES, "l1", spoilt)
    with pytest.raises(UserError, match=r"at step 3, images (0000\d{4}(, )?){7}: look at") as error:
        train.main(params)
    assert "\n" not in str(error.value)
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    loaded = load_checkpoint(next((folder / ".charm/store/train").iterdir()))
    assert loaded is not None
    assert loaded[1]["step"] == 3
    assert all(torch.isfinite(tensor).all() for tensor in loaded[0].values())
    assert loaded[1]["losses"] == read_losses(finished[0])[:3]


def test_a_loss_that_does_not_fit_the_labels_is_refused(workspace: Workspace) -> None:
    _, params = workspace
    with pytest.raises(UserError, match="emd does not fit labels with 1 bins"):
        train.main(with_train(params, loss="emd"))


def test_what_is_resumed_depends_on_a_checkpoint_that_is_named_relative_to_the_repository(
    copied: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, params = copied
    params = replace(params, checkpoint="w.safetensors")
    experiment = folder / ".dvc/tmp/exps/x1"
    experiment.mkdir(parents=True)
    (experiment / "data").symlink_to(folder / "data")
    monkeypatch.setenv("DVC_ROOT", str(experiment))
    monkeypatch.chdir(experiment)
    found = set()
    for content in (b"some weights", b"others"):
        (folder / "w.safetensors").write_bytes(content)
        found.add(train._fingerprint(params, train.Inputs(params)))
    assert len(found) == 2


@pytest.fixture
def command(copied: Workspace, warm: WarmPython) -> Callable[..., "subprocess.Popen[str]"]:
    """Called with params: `python -m stages.train` in the copied folder."""

    def start(params: Params) -> "subprocess.Popen[str]":
        write_params(copied[0] / "params.yaml", params)
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CHARM_", "DVC_"))}
        return warm.popen(
            [sys.executable, "-u", "-m", "stages.train"],
            cwd=copied[0],
            env=environment | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    return start


def test_sigterm_to_all_processes_of_a_job_is_survived(
    finished: Workspace, copied: Workspace, command: Callable[..., "subprocess.Popen[str]"]
) -> None:
    """Workers that read get it, too, as under Slurm: the step under way still needs them."""
    folder, params = copied
    params = with_hardware(with_train(params, epochs=200, warmup_epochs=0.0), loader_workers=1)
    with command(params) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch   2 of" in line:
                os.killpg(process.pid, signal.SIGTERM)
                break
        printed = process.stdout.read()
        assert process.wait(timeout=60) == 130, printed
    assert "stopped; what is made is kept, and the same command goes on from here" in printed
    (work,) = (folder / ".charm/store/train").iterdir()
    loaded = load_checkpoint(work)
    assert loaded is not None
    assert loaded[1]["step"] == len(loaded[1]["losses"]) >= 4


# A process with a mount namespace of its own, in which /dev/shm is small, as in a container.
LITTLE = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=256k tmpfs /dev/shm && exec "$@"', "sh"]
CAN_MOUNT = sys.platform == "linux" and subprocess.run([*LITTLE, "true"], capture_output=True).returncode == 0
TRAINING = """
from charm.runtime.errors import UserError
from pipeline.training import loader
from stages import load_params, run_stage, train
try:
    train.main(load_params())
except UserError as error:
    print("refused:", error)
loader.check_shared_memory = lambda *_: None
run_stage(train.main)
"""


@pytest.mark.skipif(not CAN_MOUNT, reason="needs a mount namespace, as root has")
def test_training_in_a_container_with_little_shared_memory(copied: Workspace) -> None:
    """Refused in one line before the first batch; were it not, a second signal would end the wait that there is."""
    folder, params = copied
    write_params(folder / "params.yaml", with_hardware(params, loader_workers=1))
    with subprocess.Popen(
        [*LITTLE, sys.executable, "-u", "-c", TRAINING],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("refused: /dev/shm has 0 MB free, and hardware.loader_workers: 1 ")
        assert process.stdout.readline().startswith("train: 15 images")
        time.sleep(5)  # for a worker to start, and to fill what there is
        workers = psutil.Process(process.pid).children()
        assert len(workers) == 1
        for _ in range(2):
            assert process.poll() is None
            process.terminate()
            time.sleep(1)
        printed, error = process.communicate(timeout=60)
    assert (process.returncode, error[-16:]) == (130, "stopped at once\n")
    assert "epoch   1" not in printed
    assert psutil.wait_procs(workers, timeout=10)[1] == []


def test_two_processes_train_as_one(
    copied: Workspace, warm: WarmPython, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Seven images in the last step of each epoch are four and three; six for validation are scored once each."""
    folder, params = copied
    # Norms go from 57 to 20: a gradient of another length is clipped in other steps.
    params = with_train(params, clip_norm=30.0)
    train.main(params)
    losses, history = read_losses(folder), read_history(folder)
    shutil.rmtree(store_folder("trained"))
    params = with_hardware(params, processes=2, micro_batch=2, loader_workers=1)
    write_params(folder / "params.yaml", params)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("pipeline.training.distributed.subprocess.Popen", warm.popen)
    capfd.readouterr()
    train.main(params)
    printed = capfd.readouterr().out
    assert printed.count("epoch   3 of 3") == 1
    assert "15 images, 6 for validation, 3 epochs on 2 processes (cpu)" in printed
    assert read_losses(folder) == pytest.approx(losses, rel=1e-6)
    for found, expected in zip(read_history(folder), history, strict=True):
        assert {name: float(value) for name, value in found.items()} == pytest.approx(
            {name: float(value) for name, value in expected.items()}, rel=1e-4
        )
