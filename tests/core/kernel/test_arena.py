"""The memory of a model's packed matrices: side by side, and the process' own."""

import os

import pytest
import torch

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
