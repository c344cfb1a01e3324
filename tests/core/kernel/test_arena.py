"""The memory of a model's packed matrices: side by side, and the process' own."""

import copy
import os
import pickle
from io import BytesIO

import pytest
import torch
from torch import nn

from ecoflap.core.kernel.arena import Arena
from ecoflap.core.kernel.matrix import pack_dense, shape_for
from ecoflap.core.kernel.packed_module import PackedLinear
from kernels import assert_right, numbers, pruned


def test_it_holds_matrices_side_by_side():
    weights = [pruned(outputs, 30, 0.5, torch.float32) for outputs in (1, 20, 33)]
    shapes = [shape_for(weight) for weight in weights]
    arena = Arena(shape.nbytes for shape in shapes)
    layers = [PackedLinear(pack_dense(w, arena.take(s.nbytes))) for w, s in zip(weights, shapes, strict=True)]
    assert len({layer.packed.untyped_storage().data_ptr() for layer in layers}) == 1
    x = numbers(3, 30, dtype=torch.float32)
    for layer, weight in zip(layers, weights, strict=True):
        assert_right(layer(x), x, weight)
        assert layer.packed.data_ptr() % 64 == 0
    with pytest.raises(ValueError, match="64 bytes are asked for, and 0 are left"):
        arena.take(64)
    assert len(Arena([]).take(0)) == 0


def side_by_side(count):
    """Layers whose matrices are pieces of one memory, and those matrices dense."""
    weights = [pruned(64, 96, 0.5, torch.float32) for _ in range(count)]
    shapes = [shape_for(weight) for weight in weights]
    arena = Arena(shape.nbytes for shape in shapes)
    parts = zip(weights, shapes, strict=True)
    return nn.ModuleList(PackedLinear(pack_dense(w, arena.take(s.nbytes))) for w, s in parts), weights


def test_a_pickle_holds_each_matrix_once():
    """Plain pickle writes all of a tensor's memory, for each tensor anew."""
    layers, weights = side_by_side(8)
    stored, one = pickle.dumps(layers), pickle.dumps(layers[3])
    size = sum(layer.packed.nbytes for layer in layers)
    assert len(stored) < 1.2 * size
    assert len(one) < 1.5 * size / 8
    for again, weight in zip(pickle.loads(stored), weights, strict=True):
        assert torch.equal(again.weight, weight)
    assert torch.equal(pickle.loads(one).weight, weights[3])


@pytest.mark.parametrize("saves", [pickle.dump, torch.save], ids=["pickle", "torch"])
def test_what_two_modules_share_is_stored_once(saves):
    layers, _ = side_by_side(4)
    single, shared = BytesIO(), BytesIO()
    saves(layers, single)
    saves(nn.ModuleList([*layers, *(PackedLinear(layer.packed) for layer in layers)]), shared)
    assert shared.tell() < 1.3 * single.tell()


def told_of(layers, answers):
    answers.put([float(layer(torch.ones(1, 96)).sum()) for layer in layers])


def test_a_process_that_is_spawned_is_given_them():
    """It has the memory itself, which the other one keeps."""
    layers, _ = side_by_side(3)
    context = torch.multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=told_of, args=(layers, answers))
    child.start()
    found = answers.get(timeout=120)
    child.join()
    assert found == [float(layer(torch.ones(1, 96)).sum()) for layer in layers]


def test_what_torch_has_compiled_of_it_stays_with_it():
    """It is the original's, and a copy's weights may become others."""
    layers, _ = side_by_side(2)
    layers[0]._compiled_call_impl = lambda x: "the original's"
    copies = copy.copy(layers[0]), copy.deepcopy(layers)[0], pickle.loads(pickle.dumps(layers))[0]
    assert all(torch.equal(one(torch.ones(1, 96)), layers[0].forward(torch.ones(1, 96))) for one in copies)


def test_a_copy_lies_in_one_memory_too():
    layers, weights = side_by_side(3)
    again = copy.deepcopy(layers)
    assert len({layer.packed.untyped_storage().data_ptr() for layer in again}) == 1
    assert again[0].packed.data_ptr() != layers[0].packed.data_ptr()
    assert all(torch.equal(layer.weight, weight) for layer, weight in zip(again, weights, strict=True))
    assert copy.copy(layers[1]).packed is layers[1].packed


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_child_of_fork_has_a_copy_of_it():
    """What is shared instead lies in no huge pages either, by Linux' defaults."""
    piece = Arena([64]).take(64)
    piece.fill_(1)
    child = os.fork()
    if child == 0:
        piece.fill_(2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert piece.unique().tolist() == [1]
