"""What replays keep on a disk stays there: widened, taken over from other processes, and held as a refiner's target."""

import pytest
import torch
from on_a_disk import lies_in_a_file
from several import several

from ecoflap import Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.ranks.ranks import ALONE


@pytest.fixture
def replay(pico_llama, tmp_path):
    def make(dtype=torch.bfloat16, keep=True, ranks=ALONE):
        generator = torch.Generator().manual_seed(0)
        batches = [
            {"input_ids": torch.randint(3, 60, (1, 8), generator=generator), "attention_mask": torch.ones(1, 8).long()}
            for _ in range(5)
        ]
        folder = tmp_path / "kept" if keep else None
        made = Replay(pico_llama(dtype=dtype), LlamaAdapter(), batches, ranks=ranks, keep_in=folder)
        made.advance(0)
        return made

    return make


def tensors_of(replay):
    return [one for number in replay.own for output in replay.recorded(number) for one in _flat(output)]


def _flat(output):
    return [output] if isinstance(output, torch.Tensor) else [one for part in output for one in _flat(part)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_widened_stays_on_the_disk(replay, dtype):
    made, in_memory = replay(dtype), replay(dtype, keep=False)
    before = tensors_of(made)
    made.widen(torch.float32)
    found, expected = tensors_of(made), [one.float() for one in tensors_of(in_memory)]
    assert all(map(lies_in_a_file, found))
    assert not any(map(lies_in_a_file, expected))
    assert [one.dtype for one in found] == [torch.float32] * 5
    assert all(map(torch.equal, found, expected))
    assert all((a is b) == (dtype == torch.float32) for a, b in zip(before, found, strict=True))
    made.model.float()
    assert torch.isfinite(made.loss(1)).all()  # the record knows that nobody has written into it


@pytest.mark.parametrize("size", [2, 3])
def test_what_others_recorded_is_put_on_the_disk(replay, size, tmp_path):
    expected = tensors_of(replay(keep=False))

    def gather(ranks):
        whole = replay(ranks=ranks).with_all_batches()
        found = tensors_of(whole)
        assert all(map(lies_in_a_file, found))
        assert all(map(torch.equal, found, expected))
        assert len(found) == 5
        assert len(whole.loss(1)) == 5
        in_memory = tensors_of(replay(keep=False, ranks=ranks).with_all_batches())
        assert not any(map(lies_in_a_file, in_memory))

    assert several(size, gather, tmp_path) == [(0, "")] * size


def test_things_of_all_come_one_at_a_time_and_only_those_of_others_are_put_away(tmp_path):
    def gather(ranks):
        mine = {number: f"{number} of {ranks.rank}" for number in range(ranks.rank, 5, 2)}
        put_away = []

        def keep(one):
            put_away.append(one)
            return one.upper()

        owners = [0, 1, 0, 1, 0]
        texts = [f"{number} of {owner}" for number, owner in enumerate(owners)]
        found = ranks.gather_each(mine, 5, keep)
        assert put_away == [text for text, owner in zip(texts, owners, strict=True) if owner != ranks.rank]
        assert found == [
            text if owner == ranks.rank else text.upper() for text, owner in zip(texts, owners, strict=True)
        ]

    assert several(2, gather, tmp_path) == [(0, "")] * 2


@pytest.mark.parametrize(("each", "count"), [("block", 4), ("subblock", 3 * 4)])
def test_targets_of_a_refiner_lie_there_too(plain, pico, tmp_path, monkeypatch, each, count):
    import ecoflap
    from ecoflap.core.pruning import prune_blocks
    from ecoflap.core.refining.block_view import BlockView

    where = []

    class Seen(BlockView):
        """Looks where the targets are that it is given."""

        def __init__(self, replay, index, layers, masks, dense, target, ranks=ALONE):
            gave = dense.gave[target]
            parts = [hidden for batch in gave.inside for hidden in batch.values()]
            where.append([lies_in_a_file(one) for hidden in [*gave.outputs, *parts] for one in hidden])
            super().__init__(replay, index, layers, masks, dense, target, ranks)

    monkeypatch.setattr(prune_blocks, "BlockView", Seen)
    text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": 4, "batch_size": 1}
    for keep in ("disk", "memory"):
        recipe = plain(
            calibration={**text, "keep": keep},
            refine={"use": "reconstruct", "steps": 1, "target": "own", "each": each},
            evaluate=None,
            export=None,
        )
        ecoflap.run(recipe, folder=tmp_path / keep)
        assert where
        assert {tuple(one) for one in where} == {(keep == "disk",) * count}
        where.clear()
    assert (tmp_path / "disk" / "masks.safetensors").read_bytes() == (
        tmp_path / "memory" / "masks.safetensors"
    ).read_bytes()
