"""Files with weights in int8 of models of which something is not pruned: it is rounded as in packed int8 in torch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from exported import view_of as size_of
from table import ALL_ROWS, row_of
from torch import nn

from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import View
from ecoflap.core.kernel import library_file
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.core.needs.exports import unpruned_of
from ecoflap.core.packed.pack_model import pack_model
from ecoflap.core.packed.packing import vocabulary_weights
from ecoflap.exporters.onnx import products as onnx_products
from ecoflap.exporters.onnx.exporter import Onnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from ecoflap.onnx import densify, load_session  # noqa: E402

INT8 = {"weights": "packed_op", "values": "int8"}
needs_library = pytest.mark.skipif(bool(library_file.why_library_absent()), reason=library_file.why_library_absent())
KEPT = {"look.weight", "attend.in_proj_weight", "attend.out_proj.weight", "project.weight"}
"""What is not pruned, and torch holds in int8."""


class Seeing(nn.Module):
    """Looks by a tower that is kept, through a projection, and says by one that is pruned."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.look, self.attend = nn.Linear(48, 64), nn.MultiheadAttention(64, 4, batch_first=True)
        self.project, self.say = nn.Linear(64, 48, bias=False), nn.Linear(48, 64)
        self.own = nn.Parameter(torch.randn(64, 64) / 8)
        self.small, self.lm_head = nn.Linear(64, 2), nn.Linear(64, 96, bias=False)

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, x):
        seen = torch.tanh(self.look(x))
        seen = self.attend(seen, seen, seen, need_weights=False)[0]
        said = torch.tanh(self.say(self.project(seen)))
        return self.lm_head(said @ self.own), self.small(said)


class SeeingFamily(Adapter):
    processor = None

    def towers(self, model):
        return [Tower("text", (Block("whole", model, "text"),))]

    def layers(self, block):
        return [Layer("say.weight", block.module.say)]

    def export_views(self, model):
        x, other = (torch.randn(b, t, 48, generator=torch.Generator().manual_seed(b)) for b, t in ((2, 5), (3, 7)))
        return [
            View("all", model.eval(), {"x": x}, {"x": other}, ("said", "small"), {"x": {0: "batch", 1: "sequence"}})
        ]


def seeing(dtype=torch.float32):
    model = Seeing().to(dtype).eval()
    mask = torch.rand(model.say.weight.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    model.say.weight.data *= mask
    return PrunedModel(model, SeeingFamily(), {"say.weight": mask})


def view_of(pruned, name="all"):
    return next(view for view in pruned.adapter.export_views(pruned.model) if view.name == name)


def outputs(session, view):
    """On the example that the file was not traced with."""
    return session.run(None, {name: tensor.numpy() for name, tensor in view.other.items()})


def stock(file):
    return ort.InferenceSession(file, providers=["CPUExecutionProvider"])


def off(found, expected):
    """How far outputs are off, in shares of what is expected."""
    pairs = zip(found, expected, strict=True)
    return max(np.abs(mine - other).max() / np.abs(other).max() for mine, other in pairs)


def in_torch(pruned, view_name="all", values=None, heads=()):
    """What a copy of a model computes packed, but for heads that are not to be."""
    model = copy.deepcopy(pruned.model)
    for head in heads:
        model.get_submodule(head).register_forward_hook(lambda *_: None)  # a module with hooks stays dense
    if values is not None:
        pack_model(model, values=values)
    view = view_of(replace(pruned, model=model), view_name)
    with torch.no_grad():
        return [made.numpy() for made in view.module(*view.other.values())]


def forms(written):
    return {tensor.name: tensor.form for tensor in written.tensors}


@needs_library
def test_numbers_are_those_of_packed_int8_in_torch(tmp_path):
    model = seeing()
    written = Onnx(**INT8)(model, tmp_path)
    assert forms(written) == dict.fromkeys({"say.weight", *KEPT}, "packed_op int8")
    packing = pack_model(copy.deepcopy(model.model), values="int8")
    assert set(packing.packed) == {"say.weight", "lm_head.weight", *KEPT}
    (file,), view = written.files, view_of(model)
    ours, alone = outputs(load_session(file), view), outputs(stock(file), view)
    torchs, floats = in_torch(model, values="int8", heads=["lm_head"]), in_torch(model)
    assert off(ours, torchs) < 1e-5 < 1e-3 < off(floats, torchs)
    assert off(alone, torchs) < 1e-3
    assert off(outputs(stock(densify(file, tmp_path / "dense.onnx")), view), alone) < 1e-6
    assert all(check.difference <= check.tolerance for check in written.checks)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_it_takes_is_what_was_planned(tmp_path, dtype):
    pruned = seeing(dtype)
    written, model = Onnx(**INT8)(pruned, tmp_path), pruned.model
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(written.files[0]).graph.initializer}
    stored = {tensor.name: tensor for tensor in written.tensors if tensor.name in KEPT}
    assert stored.keys() == KEPT
    for name, tensor in stored.items():
        weight = model.get_parameter(name)
        parts = [array for title, array in arrays.items() if title.startswith(name)]
        assert tensor.stored_bytes == sum(part.nbytes for part in parts)
        assert {part.dtype.name for part in parts} == {"int8", "uint8", "float32"}
        assert (tensor.shape, tensor.nonzeros) == (tuple(weight.shape), weight.numel())
        assert tensor.dense_bytes == weight.numel() * dtype.itemsize
    layers = (Layer("say.weight", model.say),)
    known = unpruned_of(model, model, layers)
    assert {one.name for one in known} == {*KEPT, "small.weight"}
    size = sum(one.size for one in known)
    view = replace(size_of(size + 1000, 0, 0, dtype.itemsize), unpruned=known)
    small = model.small.weight.numel() * dtype.itemsize
    expected = sum(tensor.stored_bytes for tensor in stored.values()) + small + 1000 * dtype.itemsize
    assert Onnx(**INT8).predicted_bytes(view) == expected
    assert Onnx(weights="packed_op").predicted_bytes(view) == (size + 1000) * dtype.itemsize


def test_a_plan_counts_what_is_unpacked():
    """And nothing that is too large for it."""

    def planned(rows, how):
        layer = Layer("whole", nn.Linear(10**4, rows, bias=False, device="meta"))
        return Onnx(**how).meanwhile(replace(size_of(10**9, 10**7, 5 * 10**6, 4), unpruned=(layer,)))

    kept, floats = (planned(10**3, how) for how in (INT8, {"weights": "packed_op"}))
    assert (kept.disk, planned(10**4, INT8).disk, planned(10**5, INT8).disk) == (0, 4 * 10**9, 0)
    assert kept.memory - floats.memory == (45 - 8) * 10**7


@pytest.mark.parametrize("how", [{}, {"weights": "packed_op"}, {"weights": "packed_op", "embeddings": "int8"}])
def test_nothing_is_rounded_where_it_is_not_asked_for(tmp_path, how):
    model = seeing()
    written = Onnx(**how)(model, tmp_path)
    assert forms(written).keys() - {"lm_head.weight"} == {"say.weight"}
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(written.files[0]).graph.initializer}
    kept = arrays["look.weight.transposed"]
    assert kept.tobytes() == model.model.look.weight.detach().numpy().T.tobytes()


def test_a_matrix_that_is_not_finite_stays_with_a_note(tmp_path):
    model = seeing()
    weight = model.model.look.weight
    weight.data[3, 4] = float("inf")  # tanh makes a one of it
    written = Onnx(**INT8)(model, tmp_path)
    assert forms(written).keys() == {"say.weight", *KEPT} - {"look.weight"}
    (note,) = (note for note in written.notes if "finite" in note)
    assert note == "all.onnx: not rounded by values: int8, as a weight of each is not finite: look.weight"
    packing = pack_model(copy.deepcopy(model.model), values="int8")
    assert packing.dense["look.weight"] == "a weight of it is not finite"
    assert off(outputs(stock(written.files[0]), view_of(model)), in_torch(model)) < 0.05


def test_one_that_is_too_large_to_be_unpacked_stays(tmp_path, monkeypatch):
    model = seeing()
    monkeypatch.setattr(onnx_products, "LARGEST", model.model.attend.in_proj_weight.numel() - 1)
    written = Onnx(**INT8)(model, tmp_path)
    assert forms(written).keys() == {"say.weight", *KEPT} - {"attend.in_proj_weight"}


def test_a_model_in_its_files_is_exported_to_the_same_bytes(tmp_path):
    files = []
    for offloaded in (False, True):
        folder = tmp_path / str(offloaded)
        folder.mkdir()
        written = Onnx(**INT8)(replace(seeing(torch.bfloat16), offloaded=offloaded), folder)
        assert forms(written).keys() == {"say.weight", *KEPT}
        files.append(written.files[0].read_bytes())
    assert files[0] == files[1]


# Families


def half_of(row, tower, ending):
    """A model of which some layers of one tower are half pruned; the others, and what is between towers, are kept."""
    torch.manual_seed(0)
    model, adapter, masks = row.build(), row.adapter(), {}
    for block, layer in Anatomy.of(adapter.towers(model), adapter.layers).layers():
        if block.tower == tower and layer.name.endswith(ending):
            mask = torch.rand(layer.shape, generator=torch.Generator().manual_seed(len(masks))) < 0.5
            layer.weight.data *= mask
            masks[layer.name] = layer.as_stored(mask)
    return PrunedModel(model.eval(), adapter, masks)


FAMILIES = [
    ("clip", "text", "", "pair"), ("open_clip", "text", "", "pair"), ("t5", "decoder", "k.weight", "decoder"),
    ("vit", "vision", "fc1.weight", "vision"), ("llava", "language", "", "all"), ("blip2_t5", "decoder", "", "all"),
    ("timm_eva", "vision", "fc1.weight", "vision"), ("mixtral", "language", "o_proj.weight", "decoder"),
]  # fmt: skip


@needs_library
@pytest.mark.slow
@pytest.mark.parametrize(("row", "tower", "ending", "name"), FAMILIES)
def test_families_are_rounded_as_in_torch(row, tower, ending, name, tmp_path):
    """But for heads, which wait to be asked for, and experts in one parameter."""
    if row not in ALL_ROWS:
        pytest.skip(f"{row} is not there")
    pruned = half_of(row_of(row), tower, ending)
    written = Onnx(views=(name,), **INT8)(pruned, tmp_path)
    rounded = {weight for weight, form in forms(written).items() if "int8" in form}
    packed = set(pack_model(copy.deepcopy(pruned.model), values="int8").packed)
    assert rounded - pruned.parameter_masks.keys()
    assert rounded <= packed
    read = {title for node in onnx.load(written.files[0]).graph.node for title in node.input}
    dense = {weight for weight in packed - rounded if {weight, f"{weight}.transposed"} & read}
    experts = {weight for weight in dense if pruned.model.get_parameter(weight).ndim == 3}
    assert dense - experts <= vocabulary_weights(pruned.model)
    if not experts:
        heads = [weight.removesuffix(".weight") for weight in dense]
        torchs, view = in_torch(pruned, name, "int8", heads), view_of(pruned, name)
        ours = outputs(load_session(written.files[0]), view)
        assert off(ours, torchs) < 2e-3
        assert off(ours, torchs) < off(in_torch(pruned, name), torchs) / 3
