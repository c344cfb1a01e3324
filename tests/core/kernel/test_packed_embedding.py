"""Rows of a matrix that stays packed are the dense one's, and a module that gives them does what an embedding does."""

import copy
import subprocess
import sys
from inspect import unwrap

import pytest
import torch
from torch import nn

from ecoflap.core.errors import KernelError
from ecoflap.core.kernel.library import TYPES, VALUES
from ecoflap.core.kernel.matrix import pack_dense, unpack
from ecoflap.core.kernel.packed_parameters import PackedEmbedding, hold_packed
from ecoflap.core.kernel.packed_rows import packed_rows
from kernels import pruned

every_kind = pytest.mark.parametrize("values", list(VALUES))


class Scaled(nn.Embedding):
    """An embedding that does more, as Gemma's: it scales what it gives, by a number that is a buffer."""

    def __init__(self, rows, columns, scale):
        super().__init__(rows, columns, padding_idx=0)
        self.scalar = scale
        self.register_buffer("scale", torch.tensor(scale), persistent=False)

    def forward(self, input):
        return super().forward(input) * self.scale.to(self.weight.dtype)


def dense(kind=nn.Embedding, *more):
    embedding = kind(37, 30, *more)
    with torch.no_grad():
        embedding.weight.copy_(pruned(37, 30, 0.4, torch.float32))
    return embedding


def packed(embedding, values="exact"):
    packed = pack_dense(embedding.weight, values=values)
    module = copy.deepcopy(embedding)
    hold_packed(module, "weight", packed, [len(packed)])
    return module


@every_kind
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("by", ["library", "numpy"])
def test_rows_are_those_of_the_dense_matrix(values, dtype, by, take_path):
    matrix = pack_dense(pruned(37, 30, 0.4, dtype), values=values)
    if by == "numpy":
        take_path("torch")
    ids = torch.tensor([[36, 0, 16], [15, 36, 5]])
    rows = torch.ops.ecoflap.packed_rows(matrix, ids, 30, dtype)
    assert torch.equal(rows, unpack(matrix)[ids])
    assert packed_rows(matrix, ids[:0], 30, dtype).shape == (0, 3, 30)


def test_a_row_that_is_not_there_is_refused():
    matrix = pack_dense(pruned(37, 30, 0.4, torch.float32))
    for wrong in (37, -1):
        with pytest.raises(IndexError, match=f"row {wrong} is asked for, of 37"):
            packed_rows(matrix, torch.tensor([3, wrong]), 30, torch.float32)
    with pytest.raises(KernelError, match=r"rows of 30 torch\.float32, and not 30 torch\.float16"):
        packed_rows(matrix, torch.tensor([3]), 30, torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8], ids=str)
def test_what_no_dense_embedding_takes_for_rows_is_refused(dtype):
    ids, embedding = torch.ones(2).to(dtype), dense()
    with pytest.raises((RuntimeError, NotImplementedError)):
        embedding(ids)
    with pytest.raises(KernelError, match=f"int64 or int32, and not {dtype}"):
        unwrap(packed_rows)(pack_dense(embedding.weight), ids, 30, torch.float32)  # where no test checks types
    assert torch.equal(packed(embedding)(torch.ones(2, dtype=torch.int32)), embedding(torch.ones(2).long()))


def test_torch_can_look_through_the_operator():
    matrix = pack_dense(pruned(37, 30, 0.4, torch.float32))
    torch.library.opcheck(torch.ops.ecoflap.packed_rows.default, (matrix, torch.tensor([[3, 4]]), 30, torch.float32))


@every_kind
@pytest.mark.parametrize("kind", [(nn.Embedding,), (Scaled, 3.5)], ids=["plain", "scaled"])
def test_it_gives_what_the_dense_one_gives(values, kind):
    embedding, ids = dense(*kind), torch.tensor([[1, 36], [0, 1]])
    module = packed(embedding, values)
    assert isinstance(module, PackedEmbedding)
    assert isinstance(module, kind[0])
    embedding.weight.data = unpack(module.memory("weight"))
    assert torch.equal(module(ids), embedding(ids))
    assert torch.equal(nn.functional.embedding(ids, module.weight), embedding.weight[ids])
    assert torch.equal(nn.functional.embedding(ids, module.weight, max_norm=1e9), embedding.weight[ids])
    assert torch.equal(copy.deepcopy(module)(ids), embedding(ids))
    assert module.to(torch.bfloat16)(ids).dtype == torch.bfloat16


def test_it_keeps_what_the_dense_one_was():
    embedding = dense(Scaled, 2.0).eval()
    module = packed(embedding)
    assert (module.num_embeddings, module.embedding_dim, module.padding_idx, module.scalar) == (37, 30, 0, 2.0)
    assert not module.training
    assert "weight: [37, 30], sparsity=0.4" in repr(module)
    assert torch.equal(module.state_dict()["weight"], embedding.weight)
    assert list(module.state_dict()) == ["weight"]
    module.load_state_dict({"weight": torch.ones(37, 30)})
    assert torch.equal(module(torch.tensor(3)), torch.full((30,), 2.0))
    with pytest.raises(KernelError, match="weight of this Scaled is packed"):
        module.weight = nn.Parameter(torch.zeros(37, 30))


COMPILED = """
import torch
from torch import nn
from ecoflap.core.kernel.matrix import pack_dense
from ecoflap.core.kernel.packed_parameters import hold_packed

class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * torch.tensor(2.0).to(self.weight.dtype)

for kind in (nn.Embedding, Scaled):
    dense = kind(37, 32).requires_grad_(False)
    packed = pack_dense(dense.weight, values="int8")
    hold_packed(dense, "weight", packed, [len(packed)])
    model = nn.Sequential(dense, nn.ReLU())
    ids = torch.tensor([[1, 36, 5]])
    with torch.inference_mode():
        assert torch.equal(torch.compile(model, fullgraph=kind is nn.Embedding, backend="aot_eager")(ids), model(ids))
        tokens = torch.export.Dim("tokens", min=2, max=9)
        program = torch.export.export(model, (ids,), dynamic_shapes=({1: tokens},), strict=False)
        assert torch.equal(program.module()(ids[:, :2]), model(ids[:, :2]))
"""


def test_it_is_exported_and_compiled():
    """Apart from these tests, whose checks of types torch cannot compile."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
