"""ONNX files of every family and of a toy model: what onnxruntime computes from them, and what is in them."""

import logging
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exported import planned, view_of
from table import ROWS
from torch import Tensor, nn

from ecoflap.core.bits import pack_mask
from ecoflap.core.budget.counts import Pattern
from ecoflap.core.contracts.protocols import Adapter, Exporter, PrunedModel
from ecoflap.core.contracts.records import View
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.forward.placement import Placement, tensors_of
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.exporters.onnx import check as onnx_check
from ecoflap.exporters.onnx import view as onnx_view
from ecoflap.exporters.onnx.exporter import Onnx, ecoflap_register_exporters
from ecoflap.exporters.onnx.graph import _check_axes
from ecoflap.exporters.onnx.pack_graph import pattern_of

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from ecoflap.onnx import densify  # noqa: E402

SOME = {"llama": "decoder_with_past", "clip": "vision", "timm_eva": "vision"}
EVERY = [
    *(pytest.param(row, view, id=f"{row}-{view}") for row, view in SOME.items() if row in ROWS),
    *(pytest.param(row, None, id=f"{row}-all views", marks=pytest.mark.slow) for row in ROWS),
]


class Toy(nn.Module):
    """Words to logits, by a head that may be tied to the embedding."""

    def __init__(self, tied=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(48, 64)
        self.up = nn.Linear(64, 96)
        self.down = nn.Linear(96, 64, bias=False)
        self.head = nn.Linear(64, 48, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        hidden = self.embed(ids)
        hidden = hidden + self.down(torch.tanh(self.up(hidden)))
        return self.head(hidden), hidden


class Text(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return self.inner(ids)


class Ups(Text):
    """Reads some of the model only, and floats."""

    def forward(self, hidden: Tensor) -> tuple[Tensor]:
        return (self.inner.up(hidden),)


class OneLength(Text):
    """Looks at a size in Python."""

    def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
        return self.inner(ids if ids.shape[1] == 5 else ids[:, :5])


class Family(Adapter):
    processor: Any = None

    def __init__(self, module=Text):
        self.module = module

    def towers(self, model):
        return [Tower("text", (Block("whole", model, "text"),))]

    def layers(self, block):
        return [Layer(f"{name}.weight", block.module.get_submodule(name)) for name in ("up", "down")]

    def export_views(self, model):
        words = [torch.arange(b * t).reshape(b, t) % 48 for b, t in ((2, 5), (3, 7))]
        dtype = model.up.weight.dtype
        vectors = [
            torch.randn(b, t, 64, generator=torch.Generator().manual_seed(0)).to(dtype) for b, t in ((2, 5), (3, 7))
        ]
        axes = {0: "batch", 1: "sequence"}
        text = View(
            "text", self.module(model).eval(), {"ids": words[0]}, {"ids": words[1]}, ("logits", "hidden"), {"ids": axes}
        )
        up = View("up", Ups(model).eval(), {"hidden": vectors[0]}, {"hidden": vectors[1]}, ("up",), {"hidden": axes})
        return [text, up]


def pruned(model, names, sparsity=0.5, pattern=None):
    """By magnitude."""
    masks = {}
    for name in names:
        weight = model.get_parameter(name)
        size = weight.detach().abs().float()
        if pattern:
            groups = size.reshape(len(size), -1, 4)
            mask = (groups.argsort(-1).argsort(-1) >= 2).reshape(size.shape)
        else:
            mask = size > size.flatten().kthvalue(max(1, round(sparsity * size.numel()))).values
        weight.data *= mask
        masks[name] = mask
    return masks


def toy(tied=False, dtype=torch.float32, names=("up.weight", "down.weight"), **how):
    model = Toy(tied).to(dtype).eval()
    return model, pruned(model, names, **how)


def export(exporter, model, masks, folder, adapter=None):
    """By the toy's adapter, where no other is given."""
    return exporter(PrunedModel(model, adapter or Family(), masks), folder)


def bits(model):
    """Every byte of a model."""
    return {name: (tensor.dtype, tensor.untyped_storage().data_ptr(), tensor.reshape(-1).view(torch.uint8).clone())
            for name, tensor in model.state_dict().items()}  # fmt: skip


def same(before, after):
    return all(
        before[name][:2] == after[name][:2] and torch.equal(before[name][2], after[name][2])
        for name in before.keys() | after.keys()
    )


def session(path):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def computed(path, view, inputs):
    feed = {name: (t.float() if t.is_floating_point() else t).numpy() for name, t in inputs.items()}
    return [torch.from_numpy(array) for array in session(path).run(list(view.outputs), feed)]


def reference(view, inputs):
    """In float32, as the files compute."""
    with Placement(torch.float32).held(list(tensors_of(view.module))), torch.no_grad():
        return view.module(*(t.float() if t.is_floating_point() else t for t in inputs.values()))


def assert_same_as_dense(packed, dense, view, far=1e-5):
    for inputs in (view.inputs, view.other):
        ours, plain = computed(packed, view, inputs), computed(dense, view, inputs)
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
        for got, expected in zip(ours, reference(view, inputs), strict=True):
            assert got.shape == expected.shape
            assert (got - expected).abs().max() <= far * expected.abs().max()


def assert_tells_nothing_of_this_machine(files):
    local = [b"site-packages", bytes(Path.cwd()), bytes(Path.home()), b".py", b"pkg.torch", b"stack_trace"]
    for file in files:
        data = file.read_bytes()
        assert not [word for word in local if word in data]


@contextmanager
def quiet():
    """open_clip and timm say with each model that it is not pretrained."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(("row", "only"), EVERY)
def test_every_family(row, only, tmp_path):
    with quiet():
        family = ROWS[row]
        adapter, model = family.adapter(), family.build()
    if not hasattr(adapter, "export_views"):
        pytest.skip(f"{row}: its adapter says no views")
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    masks = pruned(model, [layer.name for _, layer in anatomy.layers()])
    before = bits(model)
    views = (only,) if only else None
    packed = Onnx(weights="bitmask", views=views)(PrunedModel(model, adapter, masks), tmp_path)
    assert same(before, bits(model))
    dense = {file.name: densify(file, tmp_path / f"dense-{file.name}") for file in packed.files}
    chosen = [view for view in adapter.export_views(model) if only in (None, view.name)]
    assert [file.name for file in packed.files] == [f"{view.name}.onnx" for view in chosen]
    for view in chosen:
        name = f"{view.name}.onnx"
        assert_same_as_dense(tmp_path / name, dense[name], view)
        proto = onnx.load(tmp_path / name)
        assert [value.name for value in proto.graph.input] == list(view.inputs)
        assert [value.name for value in proto.graph.output] == list(view.outputs)
        for value in proto.graph.input:
            sizes = value.type.tensor_type.shape.dim
            assert {n for n, size in enumerate(sizes) if size.dim_param} == set(view.dynamic[value.name])
    assert all(0 <= check.difference <= check.tolerance and check.runtime == "onnxruntime" for check in packed.checks)
    assert {tensor.form for tensor in packed.tensors} <= {"bitmask", "dense"}
    assert all(tensor.form == "bitmask" for tensor in packed.tensors if tensor.dense_bytes >= 4096)
    stored = {tensor.name.split(" in ")[0] for tensor in packed.tensors}
    assert stored <= set(masks)
    assert only or stored == set(masks)
    assert sum(file.stat().st_size for file in packed.files) < sum(file.stat().st_size for file in dense.values())
    assert_tells_nothing_of_this_machine([*packed.files, *dense.values()])


def test_it_is_an_exporter():
    assert isinstance(Onnx(), Exporter)
    assert ecoflap_register_exporters() == {"onnx": Onnx}


@pytest.mark.parametrize(("form", "sparsity"), [("function", 0.5), ("function", 0.9), ("inline", 0.5)])
def test_sizes_names_and_versions(tmp_path, form, sparsity):
    model, masks = toy(sparsity=sparsity)
    written = export(Onnx(form=form, views=("text",)), model, masks, tmp_path)
    path = tmp_path / "text.onnx"
    assert written.files == (path,)
    for tensor, (name, mask) in zip(written.tensors, masks.items(), strict=True):
        assert (tensor.name, tensor.form, tensor.shape) == (name, "bitmask", tuple(mask.shape))
        assert tensor.nonzeros == int(mask.sum())
        assert tensor.dense_bytes == 4 * mask.numel()
        kept = tensor.nonzeros / mask.numel()
        assert tensor.stored_bytes <= (kept + 1 / 32) * 1.02 * tensor.dense_bytes
    proto = onnx.load(path)
    assert (proto.ir_version, proto.producer_name) == (10, "ecoflap")
    versions = {one.domain: one.version for one in proto.opset_import}
    assert versions == ({"": 20, "ecoflap": 1} if form == "function" else {"": 20})
    assert [function.name for function in proto.functions] == (["UnpackBitmask"] if form == "function" else [])
    names = {one.name for one in proto.graph.initializer}
    assert {"embed.weight", "up.weight.transposed.mask", "down.weight.transposed.values"} <= names
    assert "up.weight.transposed" not in names
    assert_tells_nothing_of_this_machine(written.files)


def test_a_file_holds_what_its_view_reads(tmp_path):
    model, masks = toy()
    written = export(Onnx(), model, masks, tmp_path)
    assert [file.name for file in written.files] == ["text.onnx", "up.onnx"]
    named = [tensor.name for tensor in written.tensors]
    assert named == ["up.weight in text.onnx", "down.weight", "up.weight in up.onnx"]
    assert {one.name.split(".")[0] for one in onnx.load(tmp_path / "up.onnx").graph.initializer} == {"up"}
    assert [(check.file, check.view) for check in written.checks] == [("text.onnx", "text"), ("up.onnx", "up")]
    assert written.dense_bytes > sum(file.stat().st_size for file in written.files)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("weights", ["bitmask", "dense"])
def test_sixteen_bits_are_computed_in_float32_and_stored_in_16(tmp_path, dtype, weights):
    model, masks = toy(dtype=dtype)
    before, adapter = bits(model), Family()
    written = export(Onnx(weights=weights), model, masks, tmp_path, adapter)
    assert same(before, bits(model))
    kind = onnx.TensorProto.BFLOAT16 if dtype == torch.bfloat16 else onnx.TensorProto.FLOAT16
    types = {one.name: one.data_type for one in onnx.load(tmp_path / "text.onnx").graph.initializer}
    part = ".values" if weights == "bitmask" else ""
    assert {types[name] for name in ("embed.weight", f"up.weight.transposed{part}")} == {kind}
    assert all(tensor.dense_bytes == 2 * 96 * 64 for tensor in written.tensors)
    for view in adapter.export_views(model):
        assert_same_as_dense(tmp_path / f"{view.name}.onnx", tmp_path / f"{view.name}.onnx", view)
    if weights == "bitmask":
        assert all(t.stored_bytes <= (t.nonzeros / (96 * 64) + 1 / 16) * 1.02 * t.dense_bytes for t in written.tensors)


class Shifted(Toy):
    """Adds a buffer that is a view of another tensor, as transformers leaves some that it has read in 16 bits."""

    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)
        self.register_buffer("shift", torch.full((2, 48), 0.75, dtype=torch.bfloat16)[0])

    def forward(self, ids):
        logits, hidden = super().forward(ids)
        return logits + self.shift, hidden


def test_a_buffer_in_16_bits_may_be_a_view(tmp_path):
    model = Shifted().eval()
    masks, shift, before = pruned(model, ("up.weight", "down.weight")), model.shift, bits(model)
    export(Onnx(views=("text",)), model, masks, tmp_path)
    assert model.shift is shift
    assert same(before, bits(model))
    ids = torch.arange(10).reshape(2, 5)
    logits = ort.InferenceSession(tmp_path / "text.onnx").run(None, {"ids": ids.numpy()})[0]
    with torch.no_grad():
        expected = model.float()(ids)[0]
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-5, atol=1e-5)


def pattern_in(mask):
    return pattern_of(pack_mask(mask), tuple(mask.shape))


def test_two_of_four_is_recognised_by_the_mask(tmp_path):
    model, masks = toy(pattern=Pattern(2, 4))
    (tmp_path / "dense").mkdir()
    written = export(Onnx(views=("text",)), model, masks, tmp_path)
    export(Onnx(views=("text",), weights="dense"), model, masks, tmp_path / "dense")
    assert [tensor.form for tensor in written.tensors] == ["2:4", "2:4"]
    assert_same_as_dense(tmp_path / "text.onnx", tmp_path / "dense" / "text.onnx", Family().export_views(model)[0])
    masks["up.weight"][0, :4] = torch.tensor([True, False, False, False])
    model.up.weight.data[0, 1:4] = 0
    assert pattern_in(masks["up.weight"]) is None
    assert pattern_in(masks["down.weight"]) == Pattern(2, 4)
    assert pattern_in(torch.ones(4, 6, dtype=torch.bool)) is None


@pytest.mark.parametrize("shape", [(3, 4), (2, 8), (5, 12)], ids=str)
def test_two_of_four_is_two_of_every_four(shape):
    """In the last byte of packed bits, which may hold four, as in those before."""
    mask = torch.tensor([False, True, True, False]).repeat(*shape[:-1], shape[-1] // 4)
    assert pattern_in(mask) == Pattern(2, 4)
    for at in range(mask.numel()):
        changed = mask.clone()
        changed.view(-1)[at] ^= True
        assert pattern_in(changed) is None


def test_coo_only_where_it_is_smaller(tmp_path):
    model, _ = toy(sparsity=0.9)
    pruned(model, ["head.weight"], sparsity=0.1)
    pruned(model, ["up.weight", "down.weight", "head.weight"], sparsity=0.0)
    masks = {name: model.get_parameter(name) != 0 for name in ("up.weight", "down.weight", "head.weight")}
    written = export(Onnx(views=("text",), weights="coo"), model, masks, tmp_path)
    assert [tensor.form for tensor in written.tensors] == ["coo", "coo", "dense"]
    assert all(tensor.stored_bytes < tensor.dense_bytes for tensor in written.tensors[:2])
    assert len(onnx.load(tmp_path / "text.onnx").graph.sparse_initializer) == 2
    assert "OpenVINO" in written.notes[0]
    (tmp_path / "dense").mkdir()
    export(Onnx(views=("text",), weights="dense"), model, masks, tmp_path / "dense")
    assert_same_as_dense(tmp_path / "text.onnx", tmp_path / "dense" / "text.onnx", Family().export_views(model)[0])


@pytest.mark.parametrize("head", [False, True])
def test_a_tied_weight_is_stored_once(tmp_path, head):
    model, masks = toy(tied=True, names=("up.weight", "head.weight") if head else ("up.weight",))
    written = export(Onnx(views=("text",)), model, masks, tmp_path)
    names = [one.name for one in onnx.load(tmp_path / "text.onnx").graph.initializer]
    assert [tensor.name for tensor in written.tensors] == (["up.weight", "head.weight"] if head else ["up.weight"])
    assert [name for name in names if "embed" in name] == ([] if head else ["embed.weight"])
    assert sum(name == "head.weight.values" for name in names) == head
    assert not [name for name in names if name.startswith("head.weight.transposed")]


def test_a_weight_that_would_not_shrink_stays_dense(tmp_path):
    model, masks = toy(names=("up.weight", "down.weight"), sparsity=0.02)
    written = export(Onnx(views=("text",)), model, masks, tmp_path)
    assert [tensor.form for tensor in written.tensors] == ["dense", "dense"]
    assert all(tensor.stored_bytes == tensor.dense_bytes == 4 * 96 * 64 for tensor in written.tensors)


def test_a_weight_that_is_folded_away_is_said(tmp_path):
    class Same(Toy):
        """Two small matrices that are equal: an optimiser keeps one."""

        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(64, 8, bias=False), nn.Linear(8, 64, bias=False)
            self.more = nn.Linear(64, 8, bias=False)
            self.more.weight.data.copy_(self.up.weight)

        def forward(self, ids):
            hidden = self.embed(ids)
            hidden = hidden + self.down(torch.tanh(self.up(hidden)) + self.more(hidden))
            return self.head(hidden), hidden

    model = Same().eval()
    masks = pruned(model, ["up.weight", "more.weight"])
    written = export(Onnx(views=("text",)), model, masks, tmp_path)
    assert {tensor.name for tensor in written.tensors} == {"up.weight", "more.weight"}
    assert written.notes == ("text.onnx: stored dense, as parts of other constants of the graph: more.weight",)


@pytest.mark.parametrize("values", [pytest.param("float16", marks=pytest.mark.slow), "bfloat16"])
def test_narrower_values_need_a_larger_tolerance(tmp_path, values):
    model, masks = toy()
    with pytest.raises(ModelError, match="or values: auto"):
        export(Onnx(values=values), model, masks, tmp_path)
    assert list(tmp_path.iterdir()) == []
    written = export(Onnx(values=values, tolerance=0.05), model, masks, tmp_path)
    assert all(tensor.dense_bytes == 2 * 96 * 64 for tensor in written.tensors)
    assert all(1e-5 < check.difference <= check.tolerance for check in written.checks)


@pytest.mark.parametrize("weights", ["bitmask", "dense"])
def test_a_weight_that_a_narrower_type_loses(tmp_path, weights):
    model, masks = toy()
    with torch.no_grad():
        model.up.weight[model.up.weight != 0] *= 1e-9
    with pytest.raises(EcoflapError, match=r"up\.weight: \d+ weights .* become zero or infinite in float16"):
        export(Onnx(values="float16", weights=weights, tolerance=1.0), model, masks, tmp_path)
    assert list(tmp_path.iterdir()) == []
    export(Onnx(values="float16", weights=weights, tolerance=1.0, lossy=True, views=("text",)), model, masks, tmp_path)


def test_out_of_tolerance_is_refused_and_removed(tmp_path):
    model, masks = toy()
    before = bits(model)
    with pytest.raises(
        ModelError,
        match=r"text\.onnx: output '(logits|hidden)' in onnxruntime .* from the model's.* The file was removed",
    ):
        export(Onnx(views=("text",), tolerance=0.0), model, masks, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert same(before, bits(model))


def test_external_data_above_a_size(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_view, "EXTERNAL_ABOVE", 10_000)
    for weights in ("bitmask", "coo"):
        model, masks = toy(sparsity=0.9)
        folder = tmp_path / weights
        folder.mkdir()
        written = export(Onnx(weights=weights, views=("text",)), model, masks, folder)
        assert [file.name for file in written.files] == ["text.onnx", "text.onnx.data"]
        assert_tells_nothing_of_this_machine(written.files)
        with pytest.raises(ModelError):
            export(Onnx(weights=weights, views=("text",), tolerance=0.0), model, masks, folder)
        assert list(folder.iterdir()) == []


@pytest.mark.parametrize("form", ["function", "inline"])
def test_too_large_to_be_unpacked_by_a_plain_runtime(tmp_path, monkeypatch, form):
    monkeypatch.setattr(onnx_check, "UNPACKED_AT_MOST", 300_000)
    model, masks = toy()
    written = export(Onnx(form=form), model, masks, tmp_path)
    assert len(written.notes) == 1
    assert written.notes[0].startswith("text.onnx: a plain onnxruntime takes")
    assert "ecoflap.onnx.load_session" in written.notes[0]
    assert "ecoflap densify text.onnx" in written.notes[0]


def test_an_axis_that_came_out_fixed(tmp_path):
    model, masks = toy()
    with pytest.raises(ModelError, match=r"static shape of 5 for dimension (ids|inputs\[0\])\.shape\[1\]"):
        export(Onnx(views=("text",)), model, masks, tmp_path, Family(OneLength))
    assert list(tmp_path.iterdir()) == []


def test_axes_of_a_graph_are_those_of_the_view():
    view = Family().export_views(Toy())[0]

    def graph(*shapes):
        return SimpleNamespace(graph=SimpleNamespace(inputs=[SimpleNamespace(name=n, shape=s) for n, s in shapes]))

    _check_axes(view, graph(("ids", ["batch", "sequence"])))
    with pytest.raises(ModelError, match=r"ids\[1\] \(sequence\) is always 5"):
        _check_axes(view, graph(("ids", ["batch", 5])))
    with pytest.raises(ModelError, match="does not use it"):
        _check_axes(view, graph(("other", [1])))


def test_what_torch_cannot_export(tmp_path):
    class Stubborn(Text):
        def forward(self, ids: Tensor) -> tuple[Tensor, ...]:
            raise RuntimeError("not today")

    model, masks = toy()
    before = bits(model)
    with pytest.raises(ModelError, match="view 'text': torch cannot export it to ONNX: RuntimeError: not today"):
        export(Onnx(views=("text",)), model, masks, tmp_path, Family(Stubborn))
    written = export(Onnx(), model, masks, tmp_path, Family(Stubborn))  # without a name: what can be written
    assert [file.name for file in written.files] == ["up.onnx"]
    assert any("the view text is left out" in note and "not today" in note for note in written.notes)
    assert same(before, bits(model))


def test_refusals_before_anything_is_written(tmp_path):
    model, masks = toy()
    with pytest.raises(ModelError, match=r"no view named 'txt'\. Did you mean 'text'"):
        export(Onnx(views=("txt",)), model, masks, tmp_path)
    with pytest.raises(ModelError, match="opset 23"):
        export(Onnx(opset=23), model, masks, tmp_path)
    with pytest.raises(EcoflapError, match="nothing in this model has been pruned"):
        export(Onnx(), Toy(), {}, tmp_path)

    class WithoutViews(Adapter):
        processor: Any = None

    with pytest.raises(ModelError, match=r"onnx: WithoutViews has no views of this model .* safetensors"):
        export(Onnx(), model, masks, tmp_path, WithoutViews())
    model.up.weight.data += 1
    with pytest.raises(ModelError, match=r"up\.weight: weights that were pruned are not zero"):
        export(Onnx(), model, masks, tmp_path)
    wide = Toy().double().eval()
    wide.load_state_dict({name: weight * masks.get(name, 1) for name, weight in wide.state_dict().items()})
    with pytest.raises(ModelError, match=r"no weights in float64, as up\.weight, down\.weight"):
        export(Onnx(), wide, masks, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_problems_are_known_before_a_run():
    there = planned(Toy(), Family())
    found = list(Onnx(opset=17, tolerance=float("nan"), views=()).problems(there))
    assert [problem.split(" ")[0] for problem in found] == ["opset", "tolerance", "views"]
    assert list(Onnx().problems(there)) == []


def test_types_that_it_does_not_write_are_known_before_a_run():
    wide = Toy().double()
    (problem,) = Onnx().problems(planned(wide, Family()))
    assert "no weights in float64, as up.weight, down.weight" in problem
    assert list(Onnx().problems(planned(wide, Family(), dtype="float32"))) == []


@pytest.mark.parametrize("opset", [18, 22])
def test_other_opsets(tmp_path, opset):
    model, masks = toy()
    export(Onnx(opset=opset, views=("text",)), model, masks, tmp_path)
    assert {one.domain: one.version for one in onnx.load(tmp_path / "text.onnx").opset_import}[""] == opset


def test_predicted_bytes():
    assert Onnx().predicted_bytes(view_of(1000, 800, 400, 4)) == 200 * 4 + 400 * 4 + 100
    assert Onnx().predicted_bytes(view_of(1000, 800, 400, 2)) == 200 * 2 + 400 * 2 + 100
    assert Onnx(values="float16").predicted_bytes(view_of(1000, 800, 400, 4)) == 200 * 4 + 400 * 2 + 100
    assert Onnx(weights="dense").predicted_bytes(view_of(1000, 800, 400, 4)) == 4000
    assert Onnx(weights="coo").predicted_bytes(view_of(1000, 800, 400, 4)) == 200 * 4 + 400 * 7
    assert Onnx(weights="coo").predicted_bytes(view_of(1000, 800, 100, 4)) == 200 * 4 + 100 * 7
