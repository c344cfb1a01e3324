"""What of a model is kept whole is summed up by reason, and nothing is counted twice or left out."""

import pytest
import torch
from torch import nn

from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.core.model.kept_whole import KeptWhole, kept_whole


class Mixture(nn.Module):
    """A block with a router, experts in one parameter, and a matrix that no layer is."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.odd = (nn.Linear(4, 4, bias=False) for _ in range(3))
        self.gate = nn.Linear(4, 3, bias=False)
        self.experts = nn.Parameter(torch.zeros(3, 4, 4))
        self.norm = nn.LayerNorm(4)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 4)
        self.patches = nn.Conv2d(3, 4, 2, bias=False)
        self.first, self.second = Mixture(), Mixture()
        self.connector, self.score, self.offered = (nn.Linear(4, 4, bias=False) for _ in range(3))


def taken_apart():
    model = Model()
    towers = [
        Tower("text", (Block("first", model.first, "text"),)),
        Tower("qformer", (Block("second", model.second, "qformer"),), prunable=False),
        Tower.of_matrix(model, "offered"),
    ]

    def layers(block):
        if block.tower == "offered":
            return [Layer("offered.weight", block.module)]
        return [Layer(f"{block.name}.used.weight", block.module.used)]

    return model, Anatomy.of(towers, layers), towers


def test_every_parameter_is_counted_once_with_its_reason():
    found = kept_whole(*taken_apart(), pruned=["first.used.weight"], left_out={"first.odd.weight": "of no use"})
    assert {one.reason: (one.parameters, one.example) for one in found} == {
        "experts that the adapter does not list": (2 * 48, "first.experts"),
        "not used by the loss, or not offered by the adapter": (3 * 16, "first.unused.weight"),
        "patch embedding": (48, "patches.weight"),
        "embedding": (32, "embedding.weight"),
        "router of experts": (2 * 12, "first.gate.weight"),
        "norms, biases and scales": (2 * 8, "first.norm.weight"),
        "the tower qformer, which is kept": (16, "second.used.weight"),
        "outside the blocks; include: takes it in": (16, "offered.weight"),
        "of no use": (16, "first.odd.weight"),
        "connector": (16, "connector.weight"),
        "head": (16, "score.weight"),
    }
    model = taken_apart()[0]
    assert sum(one.parameters for one in found) == sum(p.numel() for p in model.parameters()) - 16


def test_what_a_block_is_left_out_for_is_said_of_its_matrices_and_the_nearest_name_tells():
    left_out = {"second": "it is idle", "second.odd.weight": "of no use", "embedding": "never asked for"}
    found = kept_whole(*taken_apart(), pruned=["first.used.weight"], left_out=left_out)
    told = {one.reason: one.parameters for one in found}
    assert told["it is idle"] == 16 + 12 + 48  # its unused matrix, its router, its experts; its layer is the tower's
    assert told["of no use"] == 16
    assert told["norms, biases and scales"] == 2 * 8
    assert told["embedding"] == 32


def test_the_largest_comes_first():
    sizes = [one.parameters for one in kept_whole(*taken_apart(), pruned=[], left_out={})]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("pruned", [[], ["first.used.weight"], ["first.used.weight", "second.used.weight"]])
def test_what_is_pruned_is_not_kept(pruned):
    found = kept_whole(*taken_apart(), pruned=pruned, left_out={})
    kept = {one.reason for one in found if one.reason.startswith("the tower ")}
    assert len(kept) == 2 - len(pruned)
    assert all(isinstance(one, KeptWhole) for one in found)
