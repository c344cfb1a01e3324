"""Where what is recorded and what is seen of a call are, when blocks run on another device than the CPU.

A meta device stands for a GPU: what lies in a file is none on it, and a layer there refuses what is not.
"""

import pytest
import torch
from torch import nn

import ecoflap
from ecoflap import Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import ModelError
from ecoflap.core.forward import placement, records
from ecoflap.core.forward.nested import map_tensors, tensors_in
from ecoflap.core.model.anatomy import Block, Layer, Tower
from ecoflap.core.pruning.masks import read_masks


class Stack(nn.Module):
    """Three blocks, of which each hands on what it makes and puts a number of its own into what all share."""

    def __init__(self, *, writes):
        super().__init__()
        self.blocks = nn.ModuleList(One() for _ in range(3))
        self.writes = writes

    def forward(self, x):
        shared = {}
        for block in self.blocks:
            x = block(x, shared)[0]
            if self.writes:
                x.add_(0)
        return x


class One(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, shared):
        shared[len(shared)] = x.mean()
        return self.linear(x) + sum(shared.values()), None


class StackAdapter(LlamaAdapter):
    """Knows a stack."""

    def towers(self, model):
        return [Tower("text", tuple(Block(f"blocks.{i}", one, "text") for i, one in enumerate(model.blocks)))]

    def layers(self, block):
        return [Layer(f"{block.name}.linear.weight", block.module.linear)]

    def loss(self, model, batch):
        return model(batch["x"]).sum()


@pytest.fixture
def stack(tmp_path):
    def make(device, keep=True, writes=False, runs_on=None):
        batches = [{"x": torch.ones(2, 3, 4, device=device)}]
        folder = tmp_path / "kept" if keep else None
        model = Stack(writes=writes).to(device)
        return Replay(model, StackAdapter(), batches, keep_in=folder, device=runs_on)

    return make


@pytest.fixture
def written(monkeypatch):
    """The shapes of what was put on the disk from the meta device, from which torch copies nothing."""
    shapes = []

    def on_disk(tensor, folder):
        shapes.append(tuple(tensor.shape))
        return torch.zeros(tensor.shape, dtype=tensor.dtype)

    monkeypatch.setattr(records, "on_disk", on_disk)
    return shapes


def tensors_of(call):
    return list(records.tensors_in([call.args, dict(call.kwargs), call.output]))


def test_what_lies_on_a_disk_is_given_back_on_the_device_that_it_was_on(stack, written):
    replay = stack("meta")
    replay.advance(0)
    replay.advance(1)
    assert written == [(), (2, 3, 4)] * 2
    assert {one.device.type for one in replay.recorded(0)[0] if one is not None} == {"cpu"}
    (call,) = replay.calls_of(2, 0)
    assert {one.device.type for one in tensors_of(call)} == {"meta"}
    assert sorted(call.args[1]) == [0, 1, 2]


def test_it_is_brought_once_in_a_forward(stack, written, monkeypatch):
    replay, brought = stack("meta"), []
    replay.advance(0)
    replay.advance(1)
    to = records.OnDisk.brought
    monkeypatch.setattr(records.OnDisk, "brought", lambda one: brought.append(one.tensor.dim()) or to(one))
    replay.calls_of(2, 0)
    assert sorted(brought) == [0, 0, 3]


def test_what_another_process_recorded_goes_to_this_ones_own_device_of_that_kind():
    block = Block("block", nn.Identity(), "text")
    sent = records.Record()
    sent.finish(block, [records.OnDisk(torch.ones(2), torch.device("cuda", 3))])
    assert sent.settled()._outputs["text"][0].device == torch.device("cuda")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_writing_into_what_lies_on_a_disk_is_refused(stack, written, device):
    replay = stack(device, writes=True)
    replay.advance(0)
    with pytest.raises(ModelError, match="writes in place into what the blocks of its text tower"):
        replay.advance(1)


def test_what_is_seen_of_a_call_is_where_the_model_is_and_not_where_blocks_run(stack, monkeypatch):
    there = []

    def on(values, device):
        """Copy, as to another device, and note what is there."""
        copies = map_tensors(values, torch.clone)
        there.extend(tensors_in(copies) if device.index == 7 else ())
        return copies

    monkeypatch.setattr(placement, "_on", on)
    replay = stack("cpu", keep=False, runs_on="cpu:7")
    monkeypatch.setattr(placement.Placement, "_is_elsewhere", lambda self, tensor: False)
    replay.advance(0)
    (call,) = replay.calls_of(1, 0)
    given = tensors_of(call)
    assert there
    assert not {one.data_ptr() for one in there} & {one.data_ptr() for one in given}
    assert call.args[0] is replay.recorded(0)[0][0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("offload", [None, "cpu"])
def test_a_run_on_a_gpu_that_keeps_on_a_disk_gives_what_one_in_memory_does(plain, pico, tmp_path, offload):
    text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16, "samples": 4, "batch_size": 2}
    found = []
    for keep in ("disk", "memory"):
        recipe = plain(
            model={"source": str(pico / "model"), "device": "cuda", "offload": offload},
            calibration={**text, "keep": keep},
            refine={"use": "reconstruct", "steps": 2},
            evaluate=None,
            export=None,
        )
        found.append(read_masks(ecoflap.run(recipe, folder=tmp_path / keep).folder / "masks.safetensors"))
    assert all(torch.equal(mask, found[1][name]) for name, mask in found[0].items())
