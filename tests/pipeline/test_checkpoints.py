"""Checkpoints: exact, whole or not at all, and nothing in them can be executed."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.checkpoints import (
    load_checkpoint,
    load_model_tensors,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
    save_model,
)
from pipeline.errors import UserError


def build() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.05, weight_decay=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        inputs = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def save(folder: Path, step: int) -> dict[str, Tensor]:
    tensors = {"model.weight": torch.full((2, 3), float(step))}
    save_checkpoint(folder, step, tensors, {"step": step, "history": [{"loss": 0.1 + step}]})
    return tensors


def loaded_step(folder: Path) -> int | None:
    loaded = load_checkpoint(folder)
    return None if loaded is None else int(loaded[1]["step"])


@pytest.mark.parametrize("stop", [0, 1, 6])
def test_training_that_goes_on_is_bit_equal(stop: int, tmp_path: Path) -> None:
    model, optimizer = build()
    uninterrupted = train(model, optimizer, range(10))

    first, its_optimizer = build()
    losses = train(first, its_optimizer, range(stop))
    tensors = {f"model.{name}": value for name, value in first.state_dict().items()} | optimizer_tensors(its_optimizer)
    save_checkpoint(tmp_path, stop, tensors, {"step": stop})

    second, its_optimizer = build()
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    tensors, state = loaded
    second.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    restore_optimizer(its_optimizer, tensors)
    losses += train(second, its_optimizer, range(state["step"], 10))
    assert losses == uninterrupted
    for name, value in model.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_round_trip_of_values_and_state(tmp_path: Path) -> None:
    tensors = {
        "half": torch.tensor([1.5, -2.0], dtype=torch.float16),
        "count": torch.tensor(7),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "learnt": nn.Parameter(torch.ones(2)),
    }
    state = {"history": [{"val_srcc": float("nan"), "loss": 0.1}], "step": 5}
    save_checkpoint(tmp_path, 5, tensors, copy.deepcopy(state))
    loaded = load_checkpoint(tmp_path)
    assert loaded is not None
    assert loaded[0].keys() == tensors.keys()
    for name, value in tensors.items():
        assert torch.equal(loaded[0][name], value.detach())
        assert loaded[0][name].dtype == value.dtype
    assert json.dumps(loaded[1], sort_keys=True) == json.dumps(state, sort_keys=True)  # nan is not equal to itself


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10, 100):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000010", "step-000000100"]
    assert loaded_step(tmp_path) == 100


def test_nothing_but_safetensors_and_json(tmp_path: Path) -> None:
    model, optimizer = build()
    train(model, optimizer, range(2))
    save_checkpoint(tmp_path / "a", 1, optimizer_tensors(optimizer), {})
    save_model(tmp_path / "b", model, {})
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".safetensors", ".json"}
    assert not any(b"\x80\x02" in path.read_bytes()[:2] for path in files)  # the first bytes of a pickle


def test_none_is_no_error(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "nowhere") is None


def test_a_writer_that_was_killed_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert loaded_step(tmp_path) == 1


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_damaged_newest_gives_way_to_the_older(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path, 1)
    save(tmp_path, 2)
    path = tmp_path / "step-000000002" / name
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        loaded = load_checkpoint(tmp_path)
        assert loaded is not None
        # A flipped bit of the layout of a JSON file may leave its values as they were.
        assert loaded[1] in ({"step": 1, "history": [{"loss": 1.1}]}, {"step": 2, "history": [{"loss": 2.1}]})
        assert torch.equal(loaded[0]["model.weight"], torch.full((2, 3), float(loaded[1]["step"])))
        assert loaded[1]["step"] == 1 or name == "state.json"
    assert f"{path.parent}: damaged, an older checkpoint is used" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "removed", "state of another kind"])
def test_all_damaged(damage: str, tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = tmp_path / "step-000000001"
    if damage == "cut":
        (path / "tensors.safetensors").write_bytes((path / "tensors.safetensors").read_bytes()[:-1])
    elif damage == "removed":
        (path / "state.json").unlink()
    else:
        (path / "state.json").write_text("[1, 2]")
    assert load_checkpoint(tmp_path) is None


def test_model_round_trip(tmp_path: Path) -> None:
    model, _ = build()
    save_model(tmp_path / "new", model, {"backbone": "x", "num_outputs": 1})
    tensors, config = load_model_tensors(tmp_path / "new")
    assert {"backbone": "x", "num_outputs": 1}.items() <= config.items()
    assert tensors.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(tensors[name], value)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]", "3", json.dumps({"sha256": "0"}), None])
@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_damaged_model(name: str, content: str | None, tmp_path: Path) -> None:
    save_model(tmp_path, build()[0], {})
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match="the model is missing or damaged"):
        load_model_tensors(tmp_path)


def test_flipped_bits_of_a_model_are_found(tmp_path: Path) -> None:
    save_model(tmp_path, build()[0], {})
    whole = (tmp_path / "model.safetensors").read_bytes()
    for place in range(0, len(whole), 13):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / "model.safetensors").write_bytes(damaged)
        with pytest.raises(UserError, match=str(tmp_path)):
            load_model_tensors(tmp_path)
