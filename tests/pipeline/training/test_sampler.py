"""Every sample once per epoch, and the same steps, for any number of processes and any micro-batch."""

import pytest

from pipeline.training.sampler import EpochSampler, SampleRef

SHARES = [
    pytest.param(None, 1, id="alone"),
    pytest.param(3, 1, id="micro-batches"),
    pytest.param(None, 2, id="two ranks"),
    pytest.param(2, 3, id="three ranks, micro-batches"),
    pytest.param(1, 5, id="more ranks than the last step has samples"),
    pytest.param(4, 11, id="more ranks than any step has samples"),
]


def samplers(size: int, batch_size: int, micro_batch: int | None, world_size: int) -> list[EpochSampler]:
    found = [EpochSampler(size, batch_size, 3, True, micro_batch, rank, world_size) for rank in range(world_size)]
    for sampler in found:
        sampler.epoch = 2
    return found


def steps(sampler: EpochSampler) -> list[list[list[SampleRef]]]:
    """The micro-batches of each step that is left."""
    rest = iter(sampler)
    found = [
        [next(rest) for _ in range(sampler.micro_batches(step))] for step in range(sampler.first_step, sampler.steps)
    ]
    assert next(rest, None) is None
    assert len(sampler) == sum(map(len, found))
    return found


@pytest.mark.parametrize(("micro_batch", "world_size"), SHARES)
@pytest.mark.parametrize(("size", "batch_size"), [(1, 1), (7, 8), (8, 8), (9, 8), (26, 8), (5, 1)])
def test_each_sample_once_and_each_step_the_same(
    size: int, batch_size: int, micro_batch: int | None, world_size: int
) -> None:
    ranks = samplers(size, batch_size, micro_batch, world_size)
    alone = samplers(size, batch_size, None, 1)[0]
    of_ranks = [steps(sampler) for sampler in ranks]
    assert {len(found) for found in of_ranks} == {-(-size // batch_size)}
    rows = []
    for step, whole in enumerate(steps(alone)):
        parts = [[place for places in found[step] for place in places] for found in of_ranks]
        assert all(parts)  # nobody waits for a rank without a sample
        assert {place.step for part in parts for place in part} == {step}
        real = [place for part in parts for place in part if place.weight]
        assert sorted(real) == sorted(whole[0])
        assert sum(place.weight for place in real) == pytest.approx(1)
        assert sorted(place.row for place in real) == sorted(ranks[-1].step_rows(step))
        if micro_batch:
            assert max(len(places) for found in of_ranks for places in found[step]) <= micro_batch
        rows += [place.row for place in real]
    assert sorted(rows) == list(range(size))


@pytest.mark.parametrize(("micro_batch", "world_size"), SHARES)
@pytest.mark.parametrize("first_step", [0, 1, 3, 4])
def test_an_epoch_goes_on_after_any_step(first_step: int, micro_batch: int | None, world_size: int) -> None:
    for sampler in samplers(26, 8, micro_batch, world_size):
        whole = steps(sampler)
        sampler.first_step = first_step
        assert steps(sampler) == whole[first_step:]


def order(seed: int, epoch: int, shuffle: bool = True) -> list[int]:
    sampler = EpochSampler(50, 8, seed, shuffle)
    sampler.epoch = epoch
    places = [place for places in sampler for place in places]
    assert {place.epoch for place in places} == {epoch}
    return [place.row for place in places]


def test_order_is_a_function_of_seed_and_epoch() -> None:
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9
    assert order(0, 7, shuffle=False) == list(range(50))
