"""What is held out stays so, orders follow from seed and epoch, and trainings go on where they stopped."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from flowopt.errors import UserError
from flowopt.recovery.data.batch import Batch
from flowopt.recovery.data.data import Data
from flowopt.recovery.data.open_data import open_data
from tests.recovery.data import interfaces
from tests.recovery.data.test_open_data import folder, numbered

Opened = Callable[..., Data]


def batches_of_four() -> list[dict[str, torch.Tensor]]:
    return [numbered(4, first) for first in range(0, 96, 4)]


@pytest.fixture(params=["memory", "folder", "stream"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    sources: dict[str, Callable[[], Any]] = {
        "memory": lambda: numbered(96),
        "folder": lambda: folder(tmp_path, 30, 40, 26),
        "stream": lambda: batches_of_four,
    }
    source = sources[request.param]()
    return lambda **options: open_data(source, interfaces.vectors(), **({"batch_size": 4} | options))


def shown(batches: Any) -> list[list[int]]:
    return [batch.extra["label"].tolist() for batch in batches]


def test_orders_follow_from_seed_and_epoch(opened: Opened) -> None:
    first, other = opened(seed=1), opened(seed=2)
    assert shown(first.training(3)) == shown(opened(seed=1).training(3))
    assert shown(first.training(3)) != shown(first.training(4))
    assert shown(first.training(3)) != shown(other.training(3))


def test_what_is_held_out_is_never_trained_on(opened: Opened) -> None:
    data = opened(held_out=0.25)
    held = {label for batch in shown(data.held_out()) for label in batch}
    assert len(held) == 24 and shown(data.held_out()) == shown(data.held_out())
    for epoch in range(3):
        assert not held & {label for batch in shown(data.training(epoch)) for label in batch}


def test_what_is_kept_to_choose_by_is_neither_trained_on_nor_held_out(opened: Opened) -> None:
    data = opened(held_out=0.25, validation=0.2)
    held, kept = ({label for batch in shown(part()) for label in batch} for part in (data.held_out, data.validation))
    assert kept and not kept & held and shown(data.validation()) == shown(data.validation())
    for epoch in range(3):
        assert not (held | kept) & {label for batch in shown(data.training(epoch)) for label in batch}


def test_without_a_part_of_its_own_what_is_held_out_serves_to_choose_by(opened: Opened) -> None:
    data = opened(held_out=0.25)
    assert shown(data.validation()) == shown(data.held_out())


def test_a_model_of_fixed_batch_gets_a_whole_one_to_choose_by() -> None:
    unseen = numbered(64, 1000)
    data = open_data(numbered(200), interfaces.vectors(batch=16), held_out=unseen, validation=0.05)
    (kept,) = shown(data.validation())
    assert len(kept) == 16 and max(kept) < 1000
    assert not set(kept) & {label for batch in shown(data.training(0)) for label in batch}


def test_too_few_samples_to_keep_a_batch_to_choose_by_are_refused() -> None:
    with pytest.raises(UserError, match="2 samples for training fill no batch of 16") as caught:
        open_data(numbered(20), interfaces.vectors(batch=16), held_out=0.1, validation=0.05)
    assert "2 are held out and 16 kept to choose the best state by" in str(caught.value)


def test_where_a_part_to_choose_by_has_no_batch_nothing_else_serves_for_it() -> None:
    ends_early = open_data([numbered(4)], interfaces.vectors(), held_out=numbered(8, 1000), validation=0.05)
    # Its second batch, the one to choose by, is a rest that the model does not take.
    ends_in_a_rest = open_data([numbered(6)], interfaces.vectors(batch=4), held_out=numbered(8, 1000), validation=0.05)
    for data in (ends_early, ends_in_a_rest):
        with pytest.raises(UserError, match="no batch to choose the best state by"):
            data.validation()


@pytest.mark.parametrize("share", [-0.1, 0.5, 1.0])
def test_a_share_to_choose_by_leaves_most_to_train_on(opened: Opened, share: float) -> None:
    with pytest.raises(UserError, match="is a fraction from 0 to below 0.5"):
        opened(validation=share)


def test_a_training_goes_on_at_any_batch(opened: Opened) -> None:
    data = opened()
    assert shown(data.training(2, 5)) == shown(data.training(2))[5:]


def test_calibration_is_the_start_of_the_first_epoch(opened: Opened) -> None:
    data = opened()
    assert shown(data.calibration(3)) == shown(data.training(0))[:3]


def test_processes_share_every_batch(opened: Opened) -> None:
    data = opened()
    parts = [shown(data.training(1, rank=rank, world=2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == shown(data.training(1))


def test_a_batch_that_cannot_be_shared_is_refused(opened: Opened) -> None:
    with pytest.raises(UserError, match="a batch of 4 samples cannot be shared among 3 processes"):
        next(opened().training(0, world=3))


def test_most_is_the_end(opened: Opened) -> None:
    data = opened(most=40, held_out=0.2)
    assert sum(map(len, shown(data.training(0)))) + sum(map(len, shown(data.held_out()))) == 40


def test_a_second_source_is_held_out_whole(opened: Opened) -> None:
    data = opened(held_out=numbered(7, 1000))
    assert sorted(sum(shown(data.held_out()), [])) == list(range(1000, 1007))
    assert len(shown(data.training(0))) == 24


def test_nothing_is_held_out_where_that_is_asked_for(opened: Opened) -> None:
    data = opened(held_out=0.0)
    assert (list(data.held_out()), data.has_held_out, len(shown(data.training(0)))) == ([], False, 24)


def test_the_last_small_batch_is_judged_and_not_trained_on() -> None:
    data = open_data(numbered(100), interfaces.vectors(), batch_size=8, held_out=0.1)
    assert [len(b) for b in shown(data.held_out())] == [8, 2]
    assert [len(b) for b in shown(data.training(0))] == [8] * 11 and data.training_batches == 11


def test_a_stream_is_cut_only_where_that_is_asked_for() -> None:
    made = [numbered(5, first) for first in range(0, 30, 5)]
    as_they_come = open_data(made, interfaces.vectors(), held_out=0.0)
    cut = open_data(made, interfaces.vectors(), batch_size=4, held_out=0.0)
    assert [len(b) for b in shown(as_they_come.training(0))] == [5] * 6
    assert [len(b) for b in shown(cut.training(0))] == [4] * 7


def test_of_a_stream_every_kth_batch_is_held_out() -> None:
    data = open_data(batches_of_four, interfaces.vectors(), held_out=0.25)
    assert [batch[0] for batch in shown(data.held_out())] == [0, 16, 32, 48, 64, 80]


def test_what_is_held_out_is_counted_without_a_walk_where_samples_are(opened: Opened) -> None:
    data = opened(held_out=0.25)
    assert data.held_out_samples in (24, None)
    assert sum(map(len, shown(data.held_out()))) == data.held_out_samples == 24


def test_a_rest_that_the_model_does_not_take_is_not_counted() -> None:
    data = open_data(numbered(100), interfaces.vectors(batch=8), held_out=0.1)
    assert data.held_out_samples == sum(map(len, shown(data.held_out()))) == 8


def test_of_an_endless_stream_nothing_is_counted() -> None:
    def endless() -> Iterator[dict[str, torch.Tensor]]:
        while True:
            yield numbered(4)

    data = open_data(endless, interfaces.vectors(), held_out=0.25, validation=0.05)
    assert data.held_out_samples is None and len(list(data.identifying())) == 3


def test_all_that_is_counted_identifies_the_data(tmp_path: Path) -> None:
    for source in (numbered(96), folder(tmp_path, 30, 40, 26)):
        data = open_data(source, interfaces.vectors(), held_out=numbered(7, 1000), validation=0.1, most=50)
        found = {label for batch in shown(data.identifying()) for label in batch}
        assert found == {*range(96), *range(1000, 1007)}


def test_a_stream_too_short_to_train_on_is_refused() -> None:
    data = open_data([numbered(4)], interfaces.vectors(), held_out=0.5)
    with pytest.raises(UserError, match="ended before a batch for training"):
        data.training(0)


def test_a_held_out_part_without_a_batch_is_refused() -> None:
    data = open_data(numbered(12), interfaces.vectors(batch=10), held_out=0.1)
    with pytest.raises(UserError, match="no batch to hold out"):
        data.held_out()


def test_graphs_cannot_be_shared() -> None:
    made = [{"nodes": torch.zeros(4, 4), "edges": torch.zeros(2, 9).long()}]
    data = open_data(made, interfaces.graphs(), held_out=0.0)
    with pytest.raises(UserError, match="cannot be shared among 2 processes"):
        next(data.training(0, world=2))


def test_a_batch_owns_its_rows() -> None:
    batch = Batch({"x": torch.arange(6.0).reshape(3, 2)}, {"y": torch.arange(3)})
    assert batch.rows(slice(1, None)).extra["y"].tolist() == [1, 2]
