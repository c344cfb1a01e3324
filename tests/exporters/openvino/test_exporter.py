"""Files for OpenVINO: what it computes from them, against torch and against the rounded product worked out by hand."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exported import half_pruned, planned, view_of
from table import ROWS
from torch import nn

from ecoflap.core.contracts.protocols import Adapter, Exporter, PrunedModel
from ecoflap.core.contracts.records import View
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.machine.arithmetic import lacks_eight_bits
from ecoflap.core.model.anatomy import Block, Layer, Tower
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.exporters.openvino import convert as openvino_convert
from ecoflap.exporters.openvino import exporter as openvino_exporter
from ecoflap.exporters.openvino import view as openvino_view
from ecoflap.exporters.openvino.exporter import OpenVino, ecoflap_register_exporters
from ecoflap.exporters.openvino.openvino_core import openvino_core
from ecoflap.openvino import compile_model

ov = pytest.importorskip("openvino")
pytest.importorskip("onnxscript")

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
NAMES = ("up.weight", "down.weight")
SOME = {"llama": "decoder_with_past", "clip": "vision"}
EVERY = [pytest.param(row, SOME.get(row), marks=() if row in SOME else pytest.mark.slow, id=row) for row in ROWS]


class Toy(nn.Module):
    """Rows of 64 numbers to 48, by way of 128 or so."""

    def __init__(self, tied=False, inner=128):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(64, inner)
        self.down = nn.Linear(inner, 64, bias=False)
        self.head = nn.Linear(64, 48, bias=False)
        if tied:
            self.table = nn.Embedding(48, 64)
            self.table.weight = self.head.weight

    def forward(self, x):
        hidden = x + self.down(torch.tanh(self.up(x)))
        return self.head(hidden), hidden


class Rows(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, x):
        return self.inner(x)


class Looked(Rows):
    """Adds what the head's matrix says of a number."""

    def forward(self, x):
        logits, hidden = self.inner(x)
        return logits, hidden + self.inner.table(torch.zeros(x.shape[:2], dtype=torch.long))


def rows(seed, batch, length, dtype=torch.float32):
    return torch.randn(batch, length, 64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Family(Adapter):
    processor: Any = None

    def __init__(self, module=Rows, names=NAMES):
        self.module, self.names = module, names

    def towers(self, model):
        return [Tower("language", (Block("", model, "language"),))]

    def layers(self, block):
        return [Layer(name, block.module.get_submodule(name.removesuffix(".weight"))) for name in self.names]

    def loss(self, model, batch):
        return model(batch["x"])[0].square().mean()

    def tokens(self, model, batch, tower, call=0):
        return torch.ones(batch["x"].shape[:2], dtype=torch.int8)

    def export_views(self, model):
        dtype, axes = model.up.weight.dtype, {"x": {0: "batch", 1: "length"}}
        inputs, other = ({"x": rows(seed, *size, dtype)} for seed, size in ((1, (2, 5)), (2, (3, 7))))
        return [View("rows", self.module(model).eval(), inputs, other, ("logits", "hidden"), axes)]


def pruned(sparsity=0.5, dtype=torch.float32, tied=False, names=NAMES, data=True, module=Rows, inner=128):
    """By magnitude, with data whose numbers get as large as those of the views' examples."""
    model = Toy(tied, inner).to(dtype).eval()
    masks = {}
    for name in names:
        weight = model.get_parameter(name)
        size = weight.detach().abs().float()
        masks[name] = size > size.flatten().kthvalue(max(1, round(sparsity * size.numel()))).values
        weight.data *= masks[name]
    batches = [{"x": rows(seed, 8, 16, dtype)} for seed in (3, 4)]
    return PrunedModel(model, Family(module, names), masks, calibration=(lambda: batches) if data else None)


def read(folder, name="rows"):
    return openvino_core().read_model(folder / f"{name}.xml")


def constants(model):
    return {node.get_friendly_name(): node.data for node in model.get_ops() if node.get_type_name() == "Constant"}


def run(model, x):
    found = openvino_core().compile_model(model, "CPU", EXACT)({"x": x.float().numpy()})
    return [found[number] for number in range(2)]


def by_hand(model, data, alpha):
    """What is fed to a layer and its matrix, both rounded to eight bits, in doubles."""

    def layer(x, fed, weight, heaviest):
        divisor = np.abs(fed).max(0) ** alpha / heaviest ** (1 - alpha) if alpha is not None else np.ones(len(heaviest))
        divisor /= np.median(divisor)
        step = np.abs(fed / divisor).max() / 127
        scale = np.abs(weight * divisor).max(1, keepdims=True) / 127
        return np.clip(np.round(x / divisor / step), -128, 127) @ np.round(weight * divisor / scale).T * step * scale.T

    up, down, head = (one.detach().double().numpy() for one in (model.up.weight, model.down.weight, model.head.weight))
    bias, flat = model.up.bias.detach().double().numpy(), data.double().reshape(-1, 64).numpy()
    inner = np.tanh(flat @ up.T + bias)

    def whole(x):
        x = x.double().numpy()
        first = layer(x, flat, up, np.abs(up).max(0)) + bias
        hidden = x + layer(np.tanh(first), inner, down, np.abs(down).max(0))
        return hidden @ head.T, hidden

    return whole


@pytest.mark.parametrize("weights", ["int8", "float"])
def test_a_model_whose_weights_lie_beside_its_graph(weights, monkeypatch, tmp_path):
    """OpenVINO reads those of a megabyte or more when it needs them, and no earlier."""
    exporter, files = OpenVino(weights=weights, activations="float"), {}
    for above in (10**9, 0):
        monkeypatch.setattr(openvino_convert, "EXTERNAL_ABOVE", above)
        folder = tmp_path / str(above)
        folder.mkdir()
        exporter(pruned(inner=5000), folder)
        files[above] = {file.name: file.read_bytes() for file in folder.glob("*.bin")}
        assert {file.name for file in folder.iterdir()} == {"rows.bin", "rows.xml"}
    assert files[0] == files[10**9]


@pytest.mark.skipif(lacks_eight_bits(), reason="this CPU has no VNNI, and OpenVINO's sums of eight bits saturate")
@pytest.mark.parametrize("alpha", [0.8, None])
def test_it_computes_the_rounded_product(tmp_path, alpha):
    one = pruned()
    OpenVino(smoothing=alpha)(one, tmp_path)
    data = torch.cat([batch["x"] for batch in one.calibration()])
    expected = by_hand(one.model, data, alpha)
    for view_input in (rows(1, 2, 5), rows(2, 3, 7), rows(9, 1, 1)):
        for found, wanted in zip(run(read(tmp_path), view_input), expected(view_input), strict=True):
            off = np.abs(found.reshape(wanted.shape) - wanted)
            assert np.median(off) <= 1e-6 * np.abs(wanted).max()
            assert off.max() <= 2e-3 * np.abs(wanted).max()  # in float32 a number near the middle may go the other way
    plain = one.model(rows(1, 2, 5))[0].detach().numpy()
    assert np.median(np.abs(expected(rows(1, 2, 5))[0] - plain)) > 1e-4 * np.abs(plain).max()


def test_matrices_are_of_eight_bits_and_what_was_pruned_is_zero(tmp_path):
    one = pruned(0.7)
    written = OpenVino()(one, tmp_path)
    found = {name: data for name, data in constants(read(tmp_path)).items() if data.dtype == np.int8}
    assert len(found) == 2
    for name, tensor in zip(NAMES, written.tensors, strict=True):
        (stored,) = (data for constant, data in found.items() if constant.startswith(name))
        assert stored.shape == tuple(one.masks[name].shape)  # never transposed: OpenVINO would not see the zeros
        assert not stored[~one.masks[name].numpy()].any()
        assert (tensor.name, tensor.form, tensor.shape) == (name, "int8", stored.shape)
        assert tensor.nonzeros == np.count_nonzero(stored) <= int(one.masks[name].sum())
        assert tensor.dense_bytes == 4 * stored.size
        assert tensor.stored_bytes == stored.size + 4 * len(stored)
    least = min(1 - tensor.nonzeros / (128 * 64) for tensor in written.tensors)
    said = float(read(tmp_path).get_rt_info(["ecoflap", "sparsity"]).astype(str))
    assert least - 1e-4 <= said <= least
    assert said >= 0.69


def test_openvino_multiplies_in_eight_bits(tmp_path):
    OpenVino()(pruned(), tmp_path)
    compiled = openvino_core().compile_model(read(tmp_path), "CPU", EXACT)
    compiled({"x": rows(1, 2, 5).numpy()})
    kinds = {node.get_friendly_name(): node.get_rt_info() for node in compiled.get_runtime_model().get_ops()}
    layers = [kind for kind in kinds.values() if kind["layerType"].astype(str) == "FullyConnected"]
    assert sorted(kind["runtimePrecision"].astype(str) for kind in layers) == ["f32", "i8", "i8"]


def test_sizes_names_and_checks(tmp_path):
    folders = {}
    for form in ("int8", "float"):
        (tmp_path / form).mkdir()
        folders[form] = OpenVino(weights=form)(pruned(), tmp_path / form)
    rounded, plain = folders["int8"], folders["float"]
    assert [file.name for file in rounded.files] == ["rows.xml", "rows.bin"]
    assert sorted(path.name for path in (tmp_path / "int8").iterdir()) == ["rows.bin", "rows.xml"]
    sizes = {form: (tmp_path / form / "rows.bin").stat().st_size for form in folders}
    weights = 2 * 128 * 64
    assert abs(sizes["float"] - 4 * (weights + 64 * 48 + 128)) < 100
    assert abs(sizes["int8"] - (weights + 4 * (64 * 48 + 128) + 4 * 2 * (128 + 64))) < 200  # scales, divisors
    assert rounded.dense_bytes == pytest.approx(sizes["float"] + (tmp_path / "int8/rows.xml").stat().st_size, rel=0.02)
    assert [(check.view, check.runtime) for check in rounded.checks] == [
        ("rows", "OpenVINO in float32 before rounding"), ("rows", "OpenVINO in float32 with inputs in floats"),
    ]  # fmt: skip
    before, after = rounded.checks
    assert before.difference <= before.tolerance < after.difference <= after.tolerance
    (note,) = rounded.notes
    share = r"0\.0\d+" if lacks_eight_bits() else r"0\.00\d+"
    assert re.match(rf"rows\.xml: with inputs in eight bits too, output '\w+' is up to {share} of its largest", note)
    assert note.endswith("with it, less may be off." if lacks_eight_bits() else "activations: float costs less.")
    assert plain.notes == ()
    assert {tensor.form for tensor in plain.tensors} == {"dense"}
    assert [check.runtime for check in plain.checks] == ["OpenVINO in float32"]
    for path in (*rounded.files, *plain.files):
        data = path.read_bytes()
        assert not [
            word for word in (b"site-packages", bytes(Path.cwd()), b".py", str(tmp_path).encode()) if word in data
        ]


def test_asked_for_float32_the_loader_computes_what_the_check_has_compared(tmp_path):
    (check,) = OpenVino(weights="float")(pruned(), tmp_path).checks
    compiled = compile_model(tmp_path / check.file, config={"INFERENCE_PRECISION_HINT": "f32"})
    x = rows(5, 3, 7)
    for found, expected in zip(compiled({"x": x.numpy()}).values(), pruned().model(x), strict=True):
        assert np.abs(found - expected.detach().numpy()).max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weights", ["int8", "float"])
def test_sixteen_bits_are_stored_as_they_are(tmp_path, dtype, weights):
    one = pruned(dtype=dtype)
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    written = OpenVino(weights=weights)(one, tmp_path)
    after = one.model.state_dict()
    assert all(after[name].dtype == dtype and torch.equal(after[name], before[name]) for name in before)
    assert all(tensor.dense_bytes == 2 * 128 * 64 for tensor in written.tensors)
    size = 2 * 64 * 48 + (2 * 128 * 64) * (1 if weights == "int8" else 2)
    assert abs((tmp_path / "rows.bin").stat().st_size - size) < 4 * (128 + 2 * (128 + 64)) + 200
    if weights == "float":
        wide = one.model.float()
        for found, wanted in zip(run(read(tmp_path), rows(1, 2, 5)), wide(rows(1, 2, 5)), strict=True):
            assert np.abs(found - wanted.detach().numpy()).max() < 1e-5


def test_inputs_may_stay_floats(tmp_path):
    """Then it is the matrix alone that is rounded, and no data are needed."""
    one = pruned(data=False)
    OpenVino(activations="float")(one, tmp_path)
    assert not [node for node in read(tmp_path).get_ops() if node.get_type_name() == "FakeQuantize"]
    for name in NAMES:
        weight = one.model.get_parameter(name)
        scale = weight.detach().abs().amax(1, keepdim=True) / 127
        weight.data = (weight.detach() / scale).round() * scale
    for found, wanted in zip(run(read(tmp_path), rows(9, 1, 4)), one.model(rows(9, 1, 4)), strict=True):
        assert np.abs(found - wanted.detach().numpy()).max() < 1e-5


def test_a_matrix_that_something_else_reads_stays_as_it_is(tmp_path):
    one = pruned(tied=True, names=("up.weight", "head.weight"), module=Looked)
    written = OpenVino()(one, tmp_path)
    assert {tensor.name: tensor.form for tensor in written.tensors} == {"up.weight": "int8", "head.weight": "dense"}
    assert written.notes[:1] == (
        "rows.xml: in floats, because they are not the matrix of linear layers alone: head.weight",
    )
    assert written.tensors[1].stored_bytes == written.tensors[1].dense_bytes == 4 * 64 * 48


@pytest.mark.parametrize(("row", "only"), EVERY)
def test_every_family(row, only, tmp_path):
    """Before it is rounded every view is torch's, and with matrices in eight bits it is near."""
    one = half_pruned(row)
    if not hasattr(one.adapter, "export_views"):
        pytest.skip(f"{row}: its adapter says no views")
    batch = one.adapter.collate(one.model, list(ROWS[row].samples(4)))
    one = PrunedModel(one.model, one.adapter, one.masks, calibration=lambda: [batch])
    written = OpenVino(views=(only,) if only else None, tolerance=0.5)(one, tmp_path)
    before = [check for check in written.checks if "before" in check.runtime]
    assert [check.view for check in before] == [
        view.name for view in one.adapter.export_views(one.model) if only in (None, view.name)
    ]
    stored = {re.sub(r" in .*", "", tensor.name): tensor.form for tensor in written.tensors}
    assert list(stored.values()).count("int8") >= 0.7 * len(stored)
    assert sum(file.stat().st_size for file in written.files if file.suffix == ".bin") < written.dense_bytes


def test_it_is_an_exporter():
    assert isinstance(OpenVino(), Exporter)
    assert ecoflap_register_exporters() == {"openvino": OpenVino}


def test_the_plan_knows_its_size():
    assert OpenVino().predicted_bytes(view_of(1000, 600, 300, 2)) == 400 * 2 + 600
    assert OpenVino(weights="float").predicted_bytes(view_of(1000, 600, 300, 2)) == 2000


def context(calibration):
    model = Toy()
    known = planned(model, Family())
    known.recipe.calibration = calibration
    return known


def test_a_plan_tells_what_is_wrong(monkeypatch):
    assert list(OpenVino().problems(context("some"))) == []
    (problem,) = OpenVino().problems(context(None))
    assert "there is no calibration data" in problem
    assert "activations: float" in problem
    for quiet in (OpenVino(activations="float"), OpenVino(weights="float")):
        assert list(quiet.problems(context(None))) == []
    (problem,) = OpenVino(views=("row",)).problems(context("some"))
    assert "Did you mean 'rows'?" in problem
    assert OpenVino().views_written(context("some")) == ["rows"]
    wrong = list(OpenVino(smoothing=2.0, tolerance=-1.0).problems(context("some")))
    assert [problem.partition(" ")[0] for problem in wrong] == ["smoothing", "tolerance"]
    for floats in ({"weights": "float"}, {"activations": "float"}):
        (problem,) = OpenVino(smoothing=0.5, **floats).problems(context("some"))
        assert problem.endswith(f"; by {next(iter(floats))}: float none is. Take it out.")
        assert list(OpenVino(smoothing=None, **floats).problems(context("some"))) == []
    monkeypatch.setattr(openvino_exporter, "find_spec", lambda name: None if name == "openvino" else SimpleNamespace())
    assert list(OpenVino().problems(context("some"))) == [
        "the exporter openvino needs openvino: pip install 'ecoflap[openvino]'."
    ]


@pytest.mark.parametrize(
    ("exporter", "how", "told"),
    [
        (OpenVino(), {"data": False}, "there is no calibration data"),
        (OpenVino(), {"dtype": torch.float64}, r"no weights in float64, as up.weight, down.weight"),
        (
            OpenVino(tolerance=1e-5),
            {},
            r"output '\w+' in OpenVINO in float32 with inputs in floats is .* tolerance is 1e-05. The file was removed",
        ),
        (OpenVino(views=("row",)), {}, "Did you mean 'rows'"),
    ],
)
def test_what_it_refuses_leaves_nothing(exporter, how, told, tmp_path):
    with pytest.raises(ModelError, match=told):
        exporter(pruned(**how), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_masks_or_with_weights_where_it_was_pruned_is_refused(tmp_path):
    one = pruned()
    with pytest.raises(EcoflapError, match="nothing in this model has been pruned"):
        OpenVino()(PrunedModel(one.model, one.adapter, {}), tmp_path)
    one.model.up.weight.data += 1
    with pytest.raises(ModelError, match="not zero any more"):
        OpenVino()(one, tmp_path)


def test_examples_that_are_larger_than_the_data_are_said_and_not_refused(tmp_path):
    """What calibration showed is a hundredth of what the examples are."""
    one = pruned()
    small = [{"x": batch["x"] / 100} for batch in one.calibration()]
    written = OpenVino()(PrunedModel(one.model, one.adapter, one.masks, calibration=lambda: small), tmp_path)
    (share,) = re.findall(r"is up to ([\d.]+) of its largest", written.notes[0])
    assert float(share) > 0.05
    assert all(check.difference <= check.tolerance for check in written.checks)


def test_a_matrix_that_was_rounded_wrong_is_refused(tmp_path, monkeypatch):
    right = openvino_view.rounded

    def upside_down(weight, inputs):
        made = right(weight, inputs)
        return type(made)(made.weight[::-1].copy(), made.scale)

    monkeypatch.setattr(openvino_view, "rounded", upside_down)
    with pytest.raises(ModelError, match="in OpenVINO in float32 with inputs in floats is up to"):
        OpenVino()(pruned(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_is_wrong_is_found_before_rounding_hides_it(tmp_path, monkeypatch):
    converted = openvino_view.converted

    def other(view, inputs, pruned, folder):
        with torch.no_grad():
            pruned.model.up.weight *= 1.01
            made = converted(view, inputs, pruned, folder)
            pruned.model.up.weight /= 1.01
        return made

    monkeypatch.setattr(openvino_view, "converted", other)
    with pytest.raises(ModelError, match="in OpenVINO in float32 before rounding is up to"):
        OpenVino()(pruned(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_openvino_cannot_read_is_told(tmp_path, monkeypatch):
    def refuse(self, path):
        raise RuntimeError("Exception from core.cpp:84:\nNo conversion rule found for ecoflap.Odd\n\n")

    monkeypatch.setattr(ov.Core, "read_model", refuse)
    with pytest.raises(
        ModelError, match=r"view 'rows': OpenVINO .* cannot read its graph: No conversion rule found for"
    ):
        OpenVino()(pruned(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_parameters_are_written_into_the_recipe(tmp_path):
    """As a recipe has them, ``smoothing: null`` among them."""
    recipe = {
        "version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude",
        "export": {"use": "openvino", "views": ["decoder"], "smoothing": None, "activations": "float"},
    }  # fmt: skip
    plain = parse_recipe(recipe, registry=load_registry()).export[0].plain()
    assert json.loads(json.dumps(plain))["smoothing"] is None
