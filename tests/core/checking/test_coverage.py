"""What ran and no layer is: whatever operation it runs in, and wherever it stands."""

import pytest
import torch
from torch import nn

from ecoflap.core.checking.coverage import Coverage
from ecoflap.core.checking.uses import Uses, watching_uses
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower


class Every(nn.Module):
    """A parameter for each way to use one."""

    def __init__(self):
        super().__init__()
        for name in ("linear", "right", "summed", "batched", "picked", "cast", "einsum"):
            shape = (3, 4, 4) if name in ("batched", "picked") else (4, 4)
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))
        self.scale, self.shift = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.looked_up, self.queries = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4, 4))
        self.idle = nn.Parameter(torch.randn(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        x = nn.functional.linear(x, self.linear) @ self.right.T
        x = torch.addmm(self.shift, x, self.summed)
        x = torch.bmm(x.expand(3, 4, 4), self.batched).sum(0)
        x = torch.bmm(x.expand(2, 4, 4), self.picked[torch.tensor([0, 2])]).sum(0)
        x = (x.double() @ self.cast.double()).float() * self.scale
        x = torch.einsum("nd,dh->nh", x, self.einsum)
        x = x + self.looked_up[torch.tensor([0, 3, 1, 1])] + nn.functional.linear(self.queries, self.linear)
        return self.attention(x[None], x[None], x[None])[0]


MATRICES = {"linear", "right", "summed", "batched", "picked", "cast", "einsum"}
PACKED = {"attention.in_proj_weight", "attention.out_proj.weight"}
OTHER = {"scale", "shift", "looked_up", "queries"}


@pytest.mark.parametrize("grad", [False, True])
def test_a_matrix_is_what_is_multiplied_by(grad):
    torch.manual_seed(0)
    model, uses = Every(), Uses()
    x = torch.randn(4, 4)
    with torch.set_grad_enabled(grad), watching_uses(model, uses):
        seen = model(x)
    with torch.set_grad_enabled(grad):
        assert torch.equal(seen, model(x))
    named = dict(model.named_parameters())
    assert {name for name, one in named.items() if uses.as_matrix(one)} == MATRICES | PACKED
    touched = {name for name, one in named.items() if uses.at_all(one) and one.ndim > 1}
    assert touched == MATRICES | PACKED | OTHER


class Layered(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.drop = nn.Identity()

    def forward(self, x):
        return self.first(x) + self.gate(x).sum(-1, keepdim=True)


class Model(nn.Module):
    """Two stacks, one of them in stages, with connectors, a head and something of no known name between them."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.ModuleList([Layered(), Layered()]) for _ in range(2))
        self.projectors = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2))
        self.mystery, self.score = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
        self.layers = nn.Sequential(Layered(), Layered(), Layered())

    def forward(self, x):
        for stage in self.stages:
            for layer in stage:
                x = layer(x)
        for projector in self.projectors:
            x = projector(x)
        return self.score(self.layers(self.mystery(x)))


def forgotten(names, left_out=(), matrices=("first",)):
    """Sentences about a model of which these are the adapter's blocks, by kind."""
    model, uses = Model(), Uses()
    with torch.no_grad(), watching_uses(model, uses):
        model(torch.randn(3, 4))
    blocks = tuple(Block(name, model.get_submodule(name), "text") for name in names)

    def layers(block):
        return [Layer(f"{block.name}.{one}.weight", block.module.get_submodule(one)) for one in matrices]

    anatomy = Anatomy.of([Tower("text", blocks)], layers)
    coverage = Coverage(model, anatomy, dict.fromkeys(left_out, "kept"), uses)
    return coverage, [(one.kind, one.size, one.sentence) for one in coverage.forgotten()]


STAGED = ["stages.0.0", "stages.0.1", "stages.1.0", "stages.1.1"]
PLAIN = ["layers.0", "layers.1", "layers.2"]


def test_all_that_runs_is_covered_but_what_is_kept_on_purpose():
    """The gates are routers, and connectors and head are outside the blocks; only ``mystery`` is of no known kind."""
    coverage, found = forgotten([*STAGED, *PLAIN])
    assert [(kind, size) for kind, size, _ in found] == [("outside", 16)]
    assert found[0][2].startswith("mystery.weight is a matrix that runs outside the blocks and in no tower; Tower.of_m")
    assert coverage.shares() == (7 * 16, 7 * (16 + 8))
    assert forgotten([*STAGED, *PLAIN], ["mystery.weight"])[1] == []


def test_what_is_left_out_and_is_not_there_is_told():
    coverage, _ = forgotten(
        [*STAGED, *PLAIN], ["layers.1", "stages.0.1.gate", "mystery.weight", "layers.1.frist.weight"]
    )
    said = "left_out() names 'layers.1.frist.weight', which is no module and no parameter of the model."
    assert list(coverage.nowhere()) == [f"{said} Did you mean 'layers.1.first.weight'?"]


def test_a_stack_in_stages_is_one():
    _, found = forgotten(PLAIN, ["mystery.weight"])
    assert [(kind, size) for kind, size, _ in found] == [("stack", 4 * 16)]
    assert found[0][2].startswith(
        "stages runs and is in no tower: 2 blocks of ModuleList with 4 matrices of 64 weights"
    )


def test_blocks_of_a_stack_that_is_partly_there():
    _, found = forgotten([*STAGED[:3], *PLAIN[:1]], ["mystery.weight"])
    assert [(kind, size) for kind, size, _ in found] == [("blocks", 16), ("blocks", 32)]
    assert found[0][2].startswith("stages.1: 1 of its 2 blocks run and are in no tower (1), with 1 matrices of 16 weig")
    assert found[1][2].startswith("layers: 2 of its 3 blocks run and are in no tower (1, 2), with 2 matrices of 32 wei")


def test_one_stage_of_several():
    _, found = forgotten([*STAGED[2:], *PLAIN], ["mystery.weight"])
    assert [(kind, size) for kind, size, _ in found] == [("stack", 32)]
    assert found[0][2].startswith("stages.0 runs and is in no tower: 2 blocks of Layered")
