"""What several processes tell each other is what each of them has, in their order and bit by bit."""

import ctypes

import pytest
import torch
from several import Started, several

from ecoflap import Gram
from ecoflap.core.errors import RunError
from ecoflap.core.ranks import watch as watching
from ecoflap.core.ranks.parcels import packed, unpacked
from ecoflap.core.ranks.ranks import ALONE

TENSORS = (
    torch.tensor([1.5, float("nan"), -0.0], dtype=torch.bfloat16),
    torch.tensor([[True, False], [False, True]]),
    torch.tensor(7),
    torch.zeros(0, 3),
    torch.arange(12.0, dtype=torch.float64).reshape(3, 4).T,
)


def same(one, other):
    assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
    assert torch.equal(*(tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)))


def test_a_parcel_holds_everything_and_each_tensor_once():
    parcel, tensors = packed({"a": [TENSORS[0], 1], "b": (TENSORS[0], TENSORS[1])})
    assert len(tensors) == 2
    found = unpacked(parcel, tensors)
    assert found["a"][0] is found["b"][0]
    assert found["a"][1] == 1


def test_one_process_answers_itself():
    assert [ALONE.gather(3), ALONE.first(lambda: 3)] == [[3], 3]
    parts = {"b": 2, "a": 1}
    assert list(ALONE.collect_each(parts, dict.fromkeys(["a", "none has it", "b"], 0))) == [
        ("a", {0: 1}),
        ("b", {0: 2}),
    ]
    assert parts == {}
    assert ALONE.deal(iter("abc"), str.upper) == ["A", "B", "C"]
    done = []
    ALONE.at_first(lambda: done.append(1))
    assert done == [1]


@pytest.mark.parametrize("size", [2, 3])
def test_all_hear_all(size, tmp_path):
    def assert_of(one, rank):
        assert one["rank"] == rank
        assert one["own"].tolist() == [rank, rank]
        for given, there in zip(TENSORS, one["tensors"], strict=True):
            same(there, given)

    def talk(ranks):
        mine = {"rank": ranks.rank, "tensors": TENSORS, "own": torch.full((2,), float(ranks.rank))}
        for rank, one in enumerate(ranks.gather(mine)):
            assert_of(one, rank)
        same(ranks.first(lambda: TENSORS[0] if ranks.rank == 0 else None), TENSORS[0])
        assert ranks.deal(range(7), lambda number: (number, ranks.rank)) == [(n, n % size) for n in range(7)]
        ranks.at_first(lambda: (tmp_path / f"written by {ranks.rank}").touch())

    assert several(size, talk, tmp_path) == [(0, "")] * size
    assert [path.name for path in tmp_path.glob("written*")] == ["written by 0"]


@pytest.mark.parametrize("size", [2, 3])
def test_an_owner_is_given_each_part_that_there_is_in_order(size, tmp_path):
    """Things that all have, that one has, and that nobody has, by whom they are owned; parts are of several tensors."""
    owner_of = {"of all": 1, "of the last": 0, "of nobody": 1, "the owner's alone": 0, "of all, too": size - 1}

    def has(rank, name):
        alone = {"of the last": size - 1, "the owner's alone": 0}
        return rank == alone[name] if name in alone else name != "of nobody"

    def part(rank, name):
        return [torch.full((3, 2), float(rank)), (name, torch.arange(rank + 2.0))]

    def talk(ranks):
        mine = {name: part(ranks.rank, name) for name in reversed(owner_of) if has(ranks.rank, name)}
        found = dict(ranks.collect_each(mine, owner_of))
        assert mine == {}
        there = [name for name in owner_of if any(has(rank, name) for rank in range(size))]
        assert list(found) == [name for name in there if owner_of[name] == ranks.rank]
        for name, parts in found.items():
            assert list(parts) == [rank for rank in range(size) if has(rank, name)]
            for rank, (full, (called, counted)) in parts.items():
                assert called == name
                same(full, part(rank, name)[0])
                same(counted, torch.arange(rank + 2.0))

    assert several(size, talk, tmp_path) == [(0, "")] * size


def test_a_gram_arrives_with_its_bits_and_without_what_was_derived(tmp_path):
    inputs = torch.randn(700, 8, generator=torch.Generator().manual_seed(0))

    def send(ranks):
        gram = Gram(8)
        gram.add(inputs)
        gram.cached("factor", lambda: lambda: None)  # which no pickle holds
        for other in ranks.gather(gram):
            assert torch.equal(other.matrix, gram.matrix)
            assert other.tokens == 700
            assert other is gram or other.cached("factor", lambda: 3) == 3

    assert several(2, send, tmp_path) == [(0, "")] * 2


@pytest.mark.parametrize(("rank", "apart"), [(0, False), (1, False), (2, True)])
def test_a_mistake_of_one_ends_all_and_is_said_by_rank_once_to_each_reader(rank, apart, tmp_path):
    """The first says it again, and of no way to go on, where its user may not see what the other has said."""

    def fail(ranks):
        if ranks.rank == rank:
            raise RunError("no 'txet'. Did you mean 'text'?")
        ranks.gather(1)

    ended = several(3, fail, tmp_path, Started(apart=apart))
    assert [one.code for one in ended] == [2, 2, 2]
    if rank == 0:
        assert ended[0].said == "RunError: no 'txet'. Did you mean 'text'?"
    else:
        assert ended[rank].said == f"RankError: rank {rank} of 3: no 'txet'. Did you mean 'text'?"
    if apart:
        assert ended[0].said == f"RankError: rank {rank} of 3 has ended this run: no 'txet'. Did you mean 'text'?"
    silent = [one for number, one in enumerate(ended) if number != rank and (number > 0 or not apart)]
    assert all(one.said.startswith("SaidElsewhereError") for one in silent)


def test_what_all_find_is_said_once(tmp_path):
    def fail(ranks):
        raise RunError("this cannot be done")

    said = [one.said.split(":")[0] for one in several(3, fail, tmp_path)]
    assert said == ["RunError", "SaidElsewhereError", "SaidElsewhereError"]


def test_what_two_find_that_only_reads_alike_is_said_of_both(tmp_path):
    def fail(ranks):
        raise RunError(*(["this; that"] if ranks.rank == 0 else ["this", "that"]))

    first, second = several(2, fail, tmp_path)
    assert first.said == "RunError: this; that"
    assert second.said == "RankError: 2 problems\n  rank 1 of 2: this\n  rank 1 of 2: that"


def test_a_broken_process_ends_the_others(tmp_path):
    def fail(ranks):
        if ranks.rank == 1:
            raise ZeroDivisionError("1 / 0")
        ranks.gather(1)

    ended = several(2, fail, tmp_path)
    assert [one.code for one in ended] == [2, 1]
    assert ended[0].said.startswith("RankError: rank 1 of 2 has ended this run: 1 / 0.")


def test_a_process_whose_threads_have_to_wait_is_not_taken_for_gone(monkeypatch, tmp_path):
    monkeypatch.setattr(watching, "EVERY", 0.02)
    monkeypatch.setattr(watching, "SILENT", 0.5)
    monkeypatch.setattr(watching, "_GRACE", 0.2)

    def hold(ranks):
        def export():
            ctypes.PyDLL(None).sleep(3)  # which holds Python's lock, as torch.jit.save does
            return "exported"

        assert ranks.first(export) == "exported"

    assert several(2, hold, tmp_path) == [(0, "")] * 2
