"""Exports of a model that stays in its files: the bytes of those in memory, and no weight held that need not be."""

import gc
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from table import ROWS
from tiny_onnx import chain, sparse, two_of_four
from torch import nn

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import View, ViewSize
from ecoflap.core.errors import ModelError
from ecoflap.core.forward.placement import tensors_of
from ecoflap.core.machine.memory import MemoryWatch, held
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.exporters.onnx import embedded as onnx_embedded
from ecoflap.exporters.onnx import scratch as onnx_scratch
from ecoflap.exporters.onnx import view as onnx_view
from ecoflap.exporters.onnx.decode import packed_in, unpacked
from ecoflap.exporters.onnx.encoding import pack
from ecoflap.exporters.onnx.exporter import PACKING, Onnx
from ecoflap.exporters.onnx.scratch import PlacedInFiles, Scratch, rows_of
from ecoflap.exporters.onnx.settings import Storage
from ecoflap.exporters.onnx.tensors import Opened

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
ir = pytest.importorskip("onnx_ir")

from ecoflap.exporters.onnx.embedded import save_embedded  # noqa: E402


@pytest.fixture
def in_pieces(monkeypatch):
    """Small weights take the ways of large ones."""
    monkeypatch.setattr(onnx_scratch, "_PIECE", 100)
    monkeypatch.setattr(onnx_embedded, "_STREAMED", 64)


class Stack(nn.Module):
    """Matrices one behind the other, and words before them."""

    def __init__(self, layers=3, width=64, words=48):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(words, width)
        self.matrices = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))

    def forward(self, ids):
        hidden = self.words(ids)
        for matrix in self.matrices:
            hidden = hidden + torch.tanh(matrix(hidden))
        return (hidden,)


class StackFamily(Adapter):
    processor = None

    def towers(self, model):
        return [Tower("text", (Block("whole", model, "text"),))]

    def layers(self, block):
        return [Layer(f"matrices.{n}.weight", one) for n, one in enumerate(block.module.matrices)]

    def export_views(self, model):
        words = [torch.arange(b * t).reshape(b, t) % 48 for b, t in ((2, 5), (3, 7))]
        axes = {"ids": {0: "batch", 1: "sequence"}}
        return [View("text", model.eval(), {"ids": words[0]}, {"ids": words[1]}, ("hidden",), axes)]


def zeroed(model, names):
    masks = {}
    for name in names:
        weight = model.get_parameter(name).data
        masks[name] = weight.abs().float() > weight.abs().float().flatten().kthvalue(round(0.6 * weight.numel())).values
        weight *= masks[name]
    return masks


def stack(dtype=torch.float32, **sizes):
    model = Stack(**sizes).to(dtype).eval()
    return model, zeroed(model, [f"matrices.{n}.weight" for n in range(len(model.matrices))])


def exported(model, adapter, masks, folder, offloaded, **how):
    folder.mkdir()
    Onnx(**how)(PrunedModel(model, adapter, masks, offloaded=offloaded), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


NARROWED = {"values": "float16", "lossy": True, "tolerance": 1.0}
CASES = [
    ({}, torch.float32, True), ({"weights": "packed_op"}, torch.bfloat16, True),
    ({"weights": "coo"}, torch.float32, False), ({"form": "inline"}, torch.bfloat16, False),
    (NARROWED, torch.float32, False),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            ({}, torch.bfloat16, False), ({"weights": "dense"}, torch.bfloat16, False),
            ({"weights": "coo"}, torch.bfloat16, True),
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("how", "dtype", "external"), CASES, ids=str)
def test_a_model_in_its_files_is_exported_to_the_same_bytes(how, dtype, external, in_pieces, monkeypatch, tmp_path):
    if external:
        monkeypatch.setattr(onnx_view, "EXTERNAL_ABOVE", 0)
    model, masks = stack(dtype)
    before = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    files = exported(model, StackFamily(), masks, tmp_path / "memory", False, **how)
    assert files == exported(model, StackFamily(), masks, tmp_path / "disk", True, **how)
    assert len(files) == 1 + external
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == before
    assert all(tensor.dtype == dtype for tensor in model.parameters())


@pytest.mark.parametrize(
    ("row", "view"),
    [
        ("clip", "vision"),
        pytest.param("llama", "decoder_with_past", marks=pytest.mark.slow),
        pytest.param("t5", "decoder", marks=pytest.mark.slow),
    ],
)
def test_families_are_exported_to_the_same_bytes(row, view, tmp_path):
    adapter, model = ROWS[row].adapter(), ROWS[row].build().bfloat16()
    layers = Anatomy.of(adapter.towers(model), adapter.layers).layers()
    masks = zeroed(model, [layer.name for _, layer in layers])
    how = {"views": (view,), "tolerance": 1e-3}
    files = exported(model, adapter, masks, tmp_path / "memory", False, **how)
    assert files == exported(model, adapter, masks, tmp_path / "disk", True, **how)


def test_a_file_that_is_off_is_not_kept_and_nothing_else_is_left(tmp_path):
    model, masks = stack(torch.bfloat16)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match="where tolerance is 0"):
        Onnx(values="float16", lossy=True, tolerance=0.0)(
            PrunedModel(model, StackFamily(), masks, offloaded=True), tmp_path / "out"
        )
    assert list((tmp_path / "out").iterdir()) == []


def test_a_damaged_file_is_found_as_it_is_run(monkeypatch, tmp_path):
    model, masks = stack(torch.bfloat16)
    whole = onnx_view._save

    def damaging(packer, path, data):
        stored = whole(packer, path, data)
        written = bytearray(path.read_bytes())
        at = written.index(
            packer.graph.model.graph.initializers["matrices.1.weight.transposed.values"].const_value.tobytes()
        )
        written[at + 101] ^= 0x40
        path.write_bytes(written)
        return stored

    monkeypatch.setattr(onnx_view, "_save", damaging)
    (tmp_path / "out").mkdir()
    with pytest.raises(ModelError, match=r"is up to .* from the model's"):
        Onnx()(PrunedModel(model, StackFamily(), masks, offloaded=True), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere what is held is not told apart from files")
def test_what_is_held_does_not_grow_with_the_model(monkeypatch, tmp_path):
    monkeypatch.setattr(onnx_view, "EXTERNAL_ABOVE", 0)
    small, small_masks = stack(torch.bfloat16, layers=1)
    exported(small, StackFamily(), small_masks, tmp_path / "first", True)  # libraries are imported
    model, masks = stack(torch.bfloat16, layers=18, width=1536)
    wide = 4 * sum(parameter.numel() for parameter in model.parameters())
    most = {}
    for offloaded in (True, False):
        gc.collect()
        before, watch = held(), MemoryWatch()
        exported(model, StackFamily(), masks, tmp_path / str(offloaded), offloaded, weights="dense")
        watch.stop()
        most[offloaded] = watch.most() - before
    assert most[True] < 0.6 * wide
    assert most[False] > 0.9 * wide


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system does not list what is mapped")
@pytest.mark.parametrize("weights", ["bitmask", "coo", "packed_op"])
def test_nothing_is_mapped_any_more_once_a_view_is_written(weights, tmp_path):
    model, masks = stack(torch.bfloat16)
    exported(model, StackFamily(), masks, tmp_path / "out", True, weights=weights)
    gc.collect()
    maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    assert str(tmp_path / "out") not in maps


def test_sparse_weights_and_others_are_apart_where_one_message_would_be_too_large(monkeypatch, tmp_path):
    model, masks = stack()
    together = exported(model, StackFamily(), masks, tmp_path / "together", False, weights="coo")
    monkeypatch.setattr(onnx_view, "MESSAGE_AT_MOST", 1000)
    apart = exported(model, StackFamily(), masks, tmp_path / "apart", False, weights="coo")
    (data,) = set(apart) - set(together)
    assert len(apart[data]) >= model.words.weight.nbytes  # which is not pruned
    assert len(apart["text.onnx"]) < len(together["text.onnx"]) - model.words.weight.nbytes + 1000


# What is written


@given(
    shapes=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 30)), min_size=1, max_size=4),
    dtype=st.sampled_from([np.float32, np.float16, np.uint8, np.int64]),
    turned=st.booleans(),
)
@settings(max_examples=40)
def test_a_file_has_the_bytes_that_protobuf_writes(shapes, dtype, turned, tmp_path_factory):
    arrays = [np.arange(np.prod(shape)).astype(dtype).reshape(shape) for shape in shapes]
    values = [ir.val(f"w{n}", const_value=ir.tensor(one.T if turned else one)) for n, one in enumerate(arrays)]
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=ir.Shape([1]))
    node = ir.node("Identity", [x])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=values, opset_imports={"": 20}, name="view")
    model = ir.Model(graph, ir_version=10, producer_name="ecoflap")
    path = tmp_path_factory.mktemp("streamed") / "model.onnx"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_embedded, "_STREAMED", 64)
        patch.setattr(onnx_scratch, "_PIECE", 50)
        save_embedded(model, path)
    assert path.read_bytes() == ir.to_proto(model).SerializeToString()
    assert all(np.array_equal(value.const_value.numpy().T if turned else value.const_value.numpy(), one)
               for value, one in zip(values, arrays, strict=True))  # fmt: skip


@pytest.mark.parametrize("shape", [(), (0, 3), (7,), (30, 11), (3, 5, 20)])
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_kept_in_files_is_what_was_given(shape, turned, in_pieces, tmp_path):
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    array = array.T if turned else array
    kept = Scratch(tmp_path).keep(array)
    assert (kept.dtype, kept.shape) == (array.dtype, array.shape)
    assert kept.tobytes() == array.tobytes()
    assert array.ndim == 0 or np.concatenate([*rows_of(array)]).tobytes() == array.tobytes()
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [array.tobytes()]


def test_weights_are_widened_in_files_and_come_back(in_pieces, tmp_path):
    model = Stack().bfloat16()
    before = {name: (one.data_ptr(), one.clone()) for name, one in model.state_dict().items()}
    placed = PlacedInFiles(torch.float32, torch.device("cpu"), scratch=Scratch(tmp_path))
    with placed.held(list(tensors_of(model))):
        for name, wide in model.state_dict().items():
            assert wide.dtype == torch.float32
            assert torch.equal(wide, before[name][1].float())
    written = sum(file.stat().st_size for file in Path(tmp_path).iterdir())
    assert written == 4 * sum(parameter.numel() for parameter in model.parameters())
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])


# What is predicted


def test_what_an_export_takes_is_predicted():
    large = ViewSize(4 * 10**9, 3 * 10**9, 15 * 10**8, 10**8, 2, True)
    offloaded = Onnx().meanwhile(large)
    assert offloaded.memory == 11 * 10**8  # a weight
    assert Onnx(weights="dense").meanwhile(large).memory == 8 * 10**8
    assert offloaded.disk == 16 * 10**9 + Onnx().predicted_bytes(large)
    small = ViewSize(4 * 10**6, 3 * 10**6, 15 * 10**5, 10**5, 2, True)
    file = Onnx().predicted_bytes(small)
    assert Onnx().meanwhile(small).memory == max(11 * 10**5, 2 * file)
    as_coo = Onnx(weights="coo")
    file = as_coo.predicted_bytes(small)
    # an index is 8 bytes in memory and 3 in the file
    assert as_coo.meanwhile(small).memory == 2 * file + 5 * 15 * 10**5
    in_memory = Onnx().meanwhile(ViewSize(4 * 10**9, 3 * 10**9, 15 * 10**8, 10**8, 2, False))
    assert in_memory.memory == 32 * 10**9
    assert in_memory.disk == 0


@pytest.mark.parametrize("axis", [None, 1, 0])
@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16], ids=str)
def test_packing_a_weight_takes_what_is_predicted(values, axis):
    """Of one that keeps nearly all, or has a pattern: nothing as large as an index of each weight is made.

    :param axis: The one along which two of every four are kept.
    """
    weight = sparse((1024, 2048), 0.1) if axis is None else two_of_four((1024, 2048), axis)
    model, patterns = chain({"w": weight}), {} if axis is None else {"w": Pattern(2, 4)}
    tracemalloc.start()  # which sees what NumPy makes
    try:
        (stored,) = pack(model, {"w": "w"}, Storage("bitmask", values=values, lossy=True), patterns)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stored.form == ("bitmask" if axis is None else "2:4")
    assert weight.nbytes + most < PACKING["bitmask"] * weight.size
    found = unpacked(packed_in(Opened(ir.to_proto(model), None)), np.zeros)["w"]
    assert found.tobytes() == torch.from_numpy(weight).to(values).float().numpy().tobytes()
