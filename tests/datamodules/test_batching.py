"""The plan of batches. Letters: W world size."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import time
import tracemalloc

import numpy as np
import pytest
import torch.distributed
import torch.multiprocessing
from voxzoo.components.errors import UserError
from voxzoo.datamodules import BatchSampler

RANDOM = np.random.RandomState(0)
SECONDS = np.clip(RANDOM.lognormal(1.2, 0.7, 997), 0.3, 34).tolist()
TOKENS = (3 + 4 * np.asarray(SECONDS) + RANDOM.randint(0, 9, 997)).astype(int).tolist()
BUDGETS = [
    {"batch_seconds": 60.0},
    {"batch_tokens": 300},
    {"batch_size": 13},
    {"batch_seconds": 100.0, "batch_tokens": 400, "batch_size": 20},
]


def plan(epoch=0, world_size=1, **options):
    options = {"batch_seconds": 60.0, **options}
    return BatchSampler(seconds=SECONDS, tokens=TOKENS, seed=5, world_size=world_size, rank=0, **options).plan(epoch)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("budget", BUDGETS)
def test_budgets_hold_and_nothing_is_lost(budget, shuffle):
    batches = plan(**{"batch_seconds": None, **budget}, shuffle=shuffle)
    assert sorted(index for batch in batches for index in batch) == list(range(997))
    for batch in batches:
        seconds, tokens = max(SECONDS[i] for i in batch), max(TOKENS[i] for i in batch)
        assert seconds * len(batch) <= budget.get("batch_seconds", np.inf) + 1e-6
        assert tokens * len(batch) <= budget.get("batch_tokens", np.inf)
        assert len(batch) <= budget.get("batch_size", np.inf)


def test_budget_is_used():
    batches = plan()
    padded = sum(max(SECONDS[i] for i in batch) * len(batch) for batch in batches)
    assert sum(SECONDS) / padded > 0.95
    assert len(batches) < 1.15 * sum(SECONDS) / 60


def test_too_long_for_the_budget_goes_alone_and_is_named():
    sampler = BatchSampler(seconds=[1.0] * 9 + [70.0], batch_seconds=10)
    assert sampler.oversized == [9]
    assert [9] in sampler.plan(0)


@pytest.mark.parametrize("budget", BUDGETS)
def test_every_epoch_has_as_many_batches_in_another_order(budget):
    epochs = [plan(epoch, **{"batch_seconds": None, **budget}) for epoch in range(4)]
    assert len({len(batches) for batches in epochs}) == 1
    assert epochs[0] != epochs[1]
    assert {tuple(sorted(batch)) for batch in epochs[0]} != {tuple(sorted(batch)) for batch in epochs[1]}


def test_plan_is_a_function_of_seed_and_epoch():
    assert plan(3) == plan(3)
    other = BatchSampler(seconds=SECONDS, tokens=TOKENS, seed=6, batch_seconds=60, world_size=1, rank=0)
    assert other.plan(3) != plan(3)
    torch.manual_seed(1)
    np.random.seed(1)
    assert plan(3) == plan(3)


def test_plan_is_frozen():
    """A change here breaks the resume of runs made by earlier versions."""
    sampler = BatchSampler(seconds=[1, 2, 3, 4, 5, 6, 7, 8], batch_size=2, seed=1)
    assert sampler.plan(0) == [[2, 3], [6, 7], [4, 5], [0, 1]]


def test_many_plans_are_frozen():
    """As planned before batches were runs of arrays: cuts, order, deals to ranks and takeovers."""
    assert fingerprint_of_many(BatchSampler) == "501afe343ce90d74"


def fingerprint_of_many(Sampler):
    pick, found = random.Random(0), hashlib.sha256()
    for _ in range(80):
        count, world_size = pick.choice([1, 3, 9, 60, 150]), pick.choice([1, 2, 3, 8])
        options = {
            "seconds": [pick.choice([0.0, pick.uniform(0.05, 30)]) for _ in range(count)],
            "tokens": [pick.randint(0, 90) for _ in range(count)],
            "groups": [pick.choice(["s2tt", "asr", "t2tt"]) for _ in range(count)] if pick.random() < 0.5 else None,
            "batch_seconds": pick.choice([None, 5.0, 40.0]),
            "batch_tokens": pick.choice([None, 50, 300]),
            "batch_size": pick.choice([1, 2, 5, 50]),
            "shuffle": pick.random() < 0.7,
            "seed": pick.randint(0, 5),
        }
        sampler = Sampler(**options, rank=0, world_size=world_size)
        known = [sampler.fingerprint, sampler.oversized]
        try:
            known += [len(sampler), sampler.plan(0), sampler.plan(1), list(sampler)]
            sampler._world_size = pick.choice([1, 2, 5])
            known.append(sampler.take_over(0, world_size, pick.randint(0, 4), pick.randint(0, 3)))
            known += [list(sampler), len(sampler), sampler.state_dict(0)]
            sampler.seek(1, 0, world_size)
            known += [list(sampler), sampler.state_dict(1)]
        except UserError as error:
            known.append(str(error))
        found.update(json.dumps(known).encode())
    return found.hexdigest()[:16]


def test_a_sampler_of_many_items_keeps_few_bytes_of_each():
    sampler = BatchSampler(seconds=np.full(50_000, 1.5), batch_size=20, world_size=1, rank=0)
    kept = [value for value in vars(sampler).values() if isinstance(value, np.ndarray)]
    assert sum(value.nbytes for value in kept) < 10 * 50_000
    batches = iter(sampler)
    tracemalloc.start()
    assert len(next(batches)) == 20
    assert tracemalloc.get_traced_memory()[0] < 100_000  # the batches behind it are not made yet
    tracemalloc.stop()


def test_evaluation_keeps_one_order_longest_first():
    assert plan(0, shuffle=False) == plan(7, shuffle=False)
    longest = [max(SECONDS[i] for i in batch) for batch in plan(shuffle=False)]
    assert longest == sorted(longest, reverse=True)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("world_size", [2, 3, 4, 7, 64])
def test_ranks_get_equal_counts_are_disjoint_and_cover_the_set(world_size, shuffle):
    seen, lengths = [], set()
    for rank in range(world_size):
        sampler = BatchSampler(
            seconds=SECONDS, batch_seconds=60, seed=5, rank=rank, world_size=world_size, shuffle=shuffle
        )
        batches = list(sampler)
        assert len(batches) == len(sampler)
        lengths.add(len(batches))
        seen += [index for batch in batches for _, index in batch]
    assert len(lengths) == 1
    assert sorted(seen) == list(range(997))


def test_more_processes_take_the_same_batches_in_the_same_order():
    """1 process x 4 micro-batches is 4 processes x 1, but for batches split at the end of the epoch."""
    one, four = plan(world_size=1), plan(world_size=4)
    assert one[: len(one) - 4] == four[: len(one) - 4]


@pytest.mark.parametrize(("items", "size", "world_size"), [(5, 1, 4), (4, 4, 4), (9, 3, 4), (7, 7, 2), (11, 1, 8)])
def test_few_utterances_are_split_or_joined(items, size, world_size):
    batches = BatchSampler(seconds=[1.0] * items, batch_size=size, world_size=world_size, rank=0).plan(0)
    assert len(batches) % world_size == 0
    assert all(batches)
    assert sorted(index for batch in batches for index in batch) == list(range(items))


def test_fewer_utterances_than_processes_is_an_error():
    with pytest.raises(UserError, match="3 utterances cannot be dealt to 4 processes"):
        list(BatchSampler(seconds=[1.0] * 3, batch_size=1, world_size=4, rank=0))


def test_groups_never_mix():
    groups = ["asr" if i % 3 else "s2tt" for i in range(997)]
    for batch in plan(groups=groups, world_size=3):
        assert len({groups[i] for i in batch}) == 1


def test_seek_is_the_rest_of_the_epoch():
    sampler = BatchSampler(seconds=SECONDS, batch_seconds=60, rank=1, world_size=3)
    sampler.set_epoch(2)
    whole = list(sampler)
    sampler.seek(2, 17)
    assert list(sampler) == whole[17:]
    assert {epoch for batch in whole for epoch, _ in batch} == {2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "budget"),
        ({"batch_size": 0}, "more than 0"),
        ({"batch_tokens": 5}, "tokenizer"),
        ({"seconds": [], "batch_size": 1}, "no utterances"),
    ],
)
def test_mistakes(options, said):
    with pytest.raises(UserError, match=said):
        BatchSampler(**{"seconds": [1.0], **options})


def test_a_million_utterances_are_planned_in_seconds():
    seconds = np.random.RandomState(0).uniform(1, 30, 1_000_000)
    begin = time.process_time()
    sampler = BatchSampler(seconds=seconds, batch_seconds=300, world_size=8, rank=3)
    sampler.seek(1, len(sampler) - 1)
    assert len(list(sampler)) == 1
    assert time.process_time() - begin < 20


def _rank(rank, port, queue):
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    sampler = BatchSampler(seconds=SECONDS, batch_seconds=60)
    queue.put((rank, list(sampler)))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_rank_comes_from_torch_distributed():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [context.Process(target=_rank, args=(rank, port, queue)) for rank in range(2)]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in processes)
    for process in processes:
        process.join()
    for rank in range(2):
        expected = BatchSampler(seconds=SECONDS, batch_seconds=60, rank=rank, world_size=2)
        assert found[rank] == list(expected)
