"""Files of whole models with weights in int8: by torch with the same weights, alone and with kernels, words too."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from exported import half_pruned, planned
from exported import view_of as size_of
from pico_decoder import build
from torch import nn

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import View, Vocabulary
from ecoflap.core.errors import ModelError
from ecoflap.core.kernel import library_file
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.core.needs.exports import vocabulary_of
from ecoflap.exporters.onnx import check as onnx_check
from ecoflap.exporters.onnx import encoding as onnx_encoding
from ecoflap.exporters.onnx import products as onnx_products
from ecoflap.exporters.onnx import view as onnx_view
from ecoflap.exporters.onnx.exporter import Onnx

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from ecoflap.onnx import densify, load_session  # noqa: E402

ALONE, KERNELS = "onnxruntime", "onnxruntime with ecoflap's kernels"
DECODED = "onnxruntime with decoded weights"
ALSO = ", weights rounded in torch too"
INT8 = {"weights": "packed_op", "values": "int8"}
WORDS = {**INT8, "embeddings": "int8"}
needs_library = pytest.mark.skipif(bool(library_file.why_library_absent()), reason=library_file.why_library_absent())
MODELS = [
    ("llama", "decoder"),
    pytest.param("llama-tied", "decoder", marks=pytest.mark.slow),
    pytest.param("llama", "decoder_with_past", marks=pytest.mark.slow),
    pytest.param("opt", "decoder_with_past", marks=pytest.mark.slow),
    pytest.param("gpt2", "decoder", marks=pytest.mark.slow),
    pytest.param("t5", "encoder", marks=pytest.mark.slow),
    pytest.param("t5", "decoder", marks=pytest.mark.slow),
    pytest.param("llava", "all", marks=pytest.mark.slow),
]


@pytest.fixture(autouse=True)
def _small_weights_too(monkeypatch):
    monkeypatch.setattr(onnx_encoding, "OVERHEAD", 0)


def session(path):
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def view_of(model, name):
    return next(view for view in model.adapter.export_views(model.model) if view.name == name)


def outputs(one, view):
    """On the example that the file was not traced with."""
    return one.run(None, {name: tensor.numpy() for name, tensor in view.other.items()})


def assert_near(found, expected, most):
    for mine, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=most * np.abs(other).max())


def farthest(found, model, view):
    """How far outputs on one of the examples are from the model's, in shares of the largest magnitude of each."""
    with torch.no_grad():
        expected = [made.numpy() for made in view.module(*view.other.values())]
    pairs = zip(found, expected, strict=True)
    return max(float(np.abs(mine - other).max() / np.abs(other).max()) for mine, other in pairs)


def rounding_told(written):
    (told,) = (note for note in written.notes if "with weights in int8 an output is up to" in note)
    return float(told.partition("up to ")[2].partition(" of")[0])


def round_by_rows(weight):
    scales = weight.abs().amax(1, keepdim=True) / 127
    weight.copy_((weight.double() / scales.double().clamp(min=1e-300)).round().float() * scales)


def in_torch(model, view, names, transposed=()):
    """What a view computes when these parameters are rounded, in plain torch; the model stays so."""
    with torch.no_grad():
        for name in names:
            weight = model.model.get_parameter(name).data
            round_by_rows(weight.T if name in transposed else weight)
        return [made.numpy() for made in view.module(*view.other.values())]


@needs_library
@pytest.mark.parametrize(
    "how", [pytest.param(INT8, id="layers", marks=pytest.mark.slow), pytest.param(WORDS, id="words too")]
)
@pytest.mark.parametrize(("row", "name"), MODELS)
def test_a_model_is_as_in_torch_with_the_same_weights(row, name, how, tmp_path):
    model = half_pruned(row)
    written = Onnx(views=(name,), **how)(model, tmp_path)
    forms = Counter(tensor.form for tensor in written.tensors)
    assert forms["packed_op int8"] > 8
    assert set(forms) <= {"packed_op int8", "bitmask", "int8"}
    ways = [(f"{ALONE}{ALSO}", True), (f"{KERNELS}{ALSO}", True)]
    assert [(check.runtime, check.is_rounded) for check in written.checks] == ways
    assert all(check.difference <= check.tolerance for check in written.checks)

    (file,), view = written.files, view_of(model, name)
    alone, ours = outputs(session(file), view), outputs(load_session(file), view)
    assert rounding_told(written) >= 0.94 * max(farthest(alone, model, view), farthest(ours, model, view))
    rounded = [tensor.name for tensor in written.tensors if "int8" in tensor.form]
    turned = [name for name in rounded if type(model.model.get_submodule(name.rpartition(".")[0])).__name__ == "Conv1D"]
    expected = in_torch(model, view, rounded, turned)
    assert_near(alone, expected, 1e-4)
    assert_near(ours, expected, 5e-3)
    ordinary = outputs(session(densify(file, tmp_path / "dense.onnx")), view)
    assert_near(ordinary, alone, 1e-6)


class Turned(nn.Module):
    """Holds its matrices as [in, out]."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in (("first", (48, 64)), ("second", (64, 48))):
            mask = torch.rand(shape, generator=generator) < 0.5
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator) * mask))
        self.words = nn.Embedding.from_pretrained(torch.randn(48, 32, generator=generator))

    def forward(self, x):
        """What words are like, of those that are likely: they are read as a matrix [words, width] alone."""
        return (torch.softmax(torch.tanh(x @ self.first / 8) @ self.second, -1) @ self.words.weight,)


class TurnedFamily(Adapter):
    processor = None

    def towers(self, model):
        return [Tower("text", (Block("whole", model, "text"),))]

    def layers(self, block):
        return [Layer(name, block.module, name, transposed=True) for name in ("first", "second")]

    def export_views(self, model):
        x, other = (torch.randn(b, t, 48, generator=torch.Generator().manual_seed(b)) for b, t in ((2, 5), (3, 7)))
        axes = {"x": {0: "batch", 1: "sequence"}}
        return [View("text", model.eval(), {"x": x}, {"x": other}, ("y",), axes)]


@needs_library
@pytest.mark.parametrize(("how", "more"), [(INT8, []), (WORDS, ["words.weight"])], ids=["layers", "words too"])
def test_matrices_that_a_model_holds_turned_have_a_scale_for_each_output(tmp_path, how, more):
    module = Turned()
    masks = {name: module.get_parameter(name).detach() != 0 for name in ("first", "second")}
    model = PrunedModel(module, TurnedFamily(), masks)
    written = Onnx(**how)(model, tmp_path)
    rounded = [*masks, *more]
    assert {tensor.name: tensor.form for tensor in written.tensors} == dict.fromkeys(rounded, "packed_op int8")
    (file,), view = written.files, view_of(model, "text")
    alone, ours = outputs(session(file), view), outputs(load_session(file), view)
    expected = in_torch(model, view, rounded, transposed=rounded)
    assert_near(alone, expected, 1e-5)
    assert_near(ours, expected, 1e-3)


def llama(tied, dtype):
    """A LLaMA whose layers are half pruned, and whose words are not."""
    return half_of(build(tied, num_hidden_layers=1).to(dtype).eval(), LlamaAdapter())


def half_of(model, adapter):
    masks = {}
    for _, layer in Anatomy.of(adapter.towers(model), adapter.layers).layers():
        masks[layer.name] = torch.rand(layer.shape, generator=torch.Generator().manual_seed(len(masks))) < 0.5
        layer.weight.data *= masks[layer.name]
    return PrunedModel(model, adapter, masks)


class Speaking(nn.Module):
    """Takes words to words by two matrices; torch exports a LLaMA in six times as long."""

    def __init__(self, tied):
        super().__init__()
        torch.manual_seed(0)
        words, up, down = nn.Embedding(64, 32), nn.Linear(32, 48), nn.Linear(48, 32, bias=False)
        self.model = nn.ModuleDict({"embed_tokens": words, "up": up, "down": down})
        self.lm_head = nn.Linear(32, 64, bias=False)
        if tied:
            self.lm_head.weight = words.weight

    def get_output_embeddings(self):
        return self.lm_head

    def forward(self, ids):
        hidden = self.model["embed_tokens"](ids)
        return (self.lm_head(hidden + self.model["down"](torch.tanh(self.model["up"](hidden)))),)


class SpeakingFamily(TurnedFamily):
    def layers(self, block):
        return [Layer(f"model.{name}.weight", block.module.model[name]) for name in ("up", "down")]

    def export_views(self, model):
        ids, other = (torch.arange(b * t).reshape(b, t) * 7 % 64 for b, t in ((2, 5), (3, 7)))
        axes = {"ids": {0: "batch", 1: "sequence"}}
        return [View("decoder", model.eval(), {"ids": ids}, {"ids": other}, ("logits",), axes)]


def speaking(tied, dtype=torch.float32):
    return half_of(Speaking(tied).to(dtype).eval(), SpeakingFamily())


@needs_library
@pytest.mark.parametrize(("tied", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_words_that_were_not_pruned_are_rounded(tied, dtype, tmp_path):
    model = llama(tied, dtype)
    written = Onnx(views=("decoder",), **WORDS)(model, tmp_path)
    (file,) = written.files
    graph = onnx.load(file).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    words = "model.embed_tokens.weight"
    head = f"{words}.transposed" if tied else "lm_head.weight.transposed"
    expected = {words} if tied else {words, "lm_head.weight"}
    assert {tensor.name for tensor in written.tensors} - set(model.masks) == expected
    if not tied:  # and one that is both is looked up in what is multiplied
        assert arrays[f"{words}.rows"].dtype == np.int8
        assert arrays[f"{words}.row_scales"].shape == (64, 1)
    assert (f"{words}.rows" in arrays) == (not tied)
    assert arrays[f"{head}.values"].dtype == np.int8
    assert not {words, head, f"{words}.float32"} & set(arrays)
    assert not [node for node in graph.node if node.op_type == "Transpose" and words in node.input]
    stored = next(tensor for tensor in written.tensors if tensor.name == words)
    assert stored.stored_bytes == sum(array.nbytes for name, array in arrays.items() if name.startswith(words))
    assert stored.dense_bytes == 64 * 32 * dtype.itemsize
    assert written.dense_bytes > file.stat().st_size
    known = vocabulary_of(view_of(model, "decoder").module, model.model)
    view = size_of(sum(one.parameter.numel() for one in known), 0, 0, dtype.itemsize)
    taken = sum(tensor.stored_bytes for tensor in written.tensors if tensor.name in expected)
    assert Onnx(**WORDS).predicted_bytes(replace(view, vocabulary=known)) == taken


def test_words_stay_as_they_are_where_it_is_not_asked_for(tmp_path):
    written = Onnx(views=("decoder",), **INT8)(speaking(tied=True), tmp_path)
    names = {one.name for one in onnx.load(written.files[0]).graph.initializer}
    assert "model.embed_tokens.weight" in names
    assert {tensor.form for tensor in written.tensors} == {"packed_op int8"}


def unpruned(model):
    """The same with masks that keep all, and no weight that is zero."""
    for name, mask in model.masks.items():
        mask.fill_(value=True)
        model.model.get_parameter(name).data.clamp_(min=1e-3)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_need_be_zero(tmp_path, dtype):
    model = unpruned(speaking(tied=True, dtype=dtype))
    written = Onnx(views=("decoder",), **INT8)(model, tmp_path)
    assert {tensor.name: tensor.form for tensor in written.tensors} == dict.fromkeys(model.masks, "packed_op int8")
    sizes = [mask.shape for mask in model.masks.values()]
    size, outputs = sum(rows * columns for rows, columns in sizes), sum(rows for rows, _ in sizes)
    predicted = Onnx(**INT8).predicted_bytes(size_of(size, size, size, dtype.itemsize))
    taken = sum(tensor.stored_bytes for tensor in written.tensors)
    assert predicted == size + size // 8 <= taken - 4 * outputs < 1.2 * predicted  # masks of few rows are filled up


def test_it_is_said_where_no_product_is_made(tmp_path):
    written = Onnx(views=("decoder",), weights="packed_op")(unpruned(speaking(tied=True)), tmp_path)
    assert [note for note in written.notes if "nothing of it is multiplied as it is packed" in note]
    again = Onnx(views=("decoder",), weights="packed_op")(speaking(tied=True), tmp_path)
    assert not [note for note in again.notes if "nothing of it is multiplied" in note]


def test_words_alone_are_rounded(tmp_path):
    written = Onnx(views=("decoder",), weights="packed_op", embeddings="int8")(speaking(tied=True), tmp_path)
    assert {tensor.form for tensor in written.tensors} == {"packed_op", "packed_op int8"}
    assert {function.name for function in onnx.load(written.files[0]).functions} == {
        "PackedLinear",
        "PackedLinearInt8",
        "PackedRowsInt8",
    }


def test_words_that_are_too_large_to_be_unpacked_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_products, "LARGEST", 64 * 32 - 1)
    written = Onnx(views=("decoder",), **WORDS)(speaking(tied=True), tmp_path)
    assert "model.embed_tokens.weight" in {one.name for one in onnx.load(written.files[0]).graph.initializer}
    assert "model.embed_tokens.weight" not in {tensor.name for tensor in written.tensors}
    assert any("not rounded by embeddings: int8" in note and "embed_tokens" in note for note in written.notes)


@pytest.mark.parametrize("how", [INT8, WORDS], ids=["layers", "words too"])
def test_a_model_in_its_files_is_exported_to_the_same_bytes(how, tmp_path):
    files = []
    for offloaded in (False, True):
        folder, model = tmp_path / str(offloaded), speaking(tied=True, dtype=torch.bfloat16)
        folder.mkdir()
        weights = {name: tensor.data_ptr() for name, tensor in model.model.state_dict().items()}
        moved = PrunedModel(model.model, model.adapter, model.masks, offloaded=offloaded)
        written = Onnx(views=("decoder",), **how)(moved, folder)
        assert {name: tensor.data_ptr() for name, tensor in model.model.state_dict().items()} == weights
        files.append(written.files[0].read_bytes())
    assert files[0] == files[1]


def test_what_a_plan_says_of_it():
    assert Onnx(**INT8).predicted_bytes(size_of(1000, 800, 400, 4)) == 200 * 4 + 400 + 100
    assert Onnx(**INT8).predicted_bytes(size_of(1000, 800, 720, 4)) == 200 * 4 + 800 + 100  # a zero is kept too
    assert Onnx(**WORDS).predicted_bytes(size_of(1000, 800, 400, 4)) == 200 * 4 + 400 + 100  # no words are known
    floats, rounded = (Onnx(**how).meanwhile(size_of(10**9, 9 * 10**8, 10**8, 2)) for how in ({}, INT8))
    assert rounded.memory > 8 * 10**9  # widened, and rounded besides
    assert (floats.disk, rounded.disk) == (0, 4 * 10**9)  # where onnxruntime maps decoded ones


def test_a_head_that_is_not_pruned_is_unpacked_too():
    """And neither one that is a layer, nor an embedding, nor a head that is too large for it."""

    def disk(rows, is_multiplied=True, is_layer=False):
        module = nn.Linear(10**4, rows, bias=False, device="meta")
        words = Vocabulary(module.weight, not is_multiplied, is_multiplied)
        layers = (Layer("whole", module),) if is_layer else ()
        view = replace(size_of(10**9, 5 * 10**7, 25 * 10**6, 4), layers=layers, vocabulary=(words,))
        return Onnx(**WORDS).meanwhile(view).disk

    assert disk(10**4) == 4 * 10**9  # as more than 4 GB are decoded
    assert disk(10**4, is_multiplied=False) == disk(10**4, is_layer=True) == disk(10**5) == disk(10**3) == 0


def test_a_head_that_is_pruned_is_counted_once():
    """A quarter of all that is pruned stays: of a head that is the embedding too, and packed beside it."""
    module = nn.Linear(64, 96, bias=False, device="meta")
    words = Vocabulary(module.weight, is_looked_up=True, is_multiplied=True)
    view = replace(size_of(30000, 20000, 5000, 4), layers=(Layer("head", module),), vocabulary=(words,))
    size, others = 96 * 64, 20000 - 96 * 64
    of_words = size // 4 + 64 + size // 8 + 96 * 4
    expected = 10000 * 4 + of_words + (others // 4 + others // 8)
    assert Onnx(**WORDS).predicted_bytes(view) == expected


# What is refused


@pytest.mark.parametrize("key", ["values", "embeddings"])
@pytest.mark.parametrize("weights", ["bitmask", "coo", "dense"])
def test_int8_takes_products(key, weights):
    model = half_pruned("vit")
    (problem,) = Onnx(weights=weights, **{key: "int8"}).problems(planned(model.model, model.adapter))
    assert f"{key}: int8 is for matrices that kernels multiply as they are, and weights is {weights}" in problem
    assert "Set weights: packed_op beside it" in problem


def in_another_order(weight, product):
    values, *others = ENCODE(weight, product)
    return (np.concatenate([values[-65::-1], values[-64:]]), *others)


ENCODE = onnx_products.encode


@needs_library
@pytest.mark.parametrize("offloaded", [False, True])
def test_a_file_that_is_not_unpacked_alone_is_decoded_for_the_comparison(tmp_path, monkeypatch, offloaded):
    """As one of a large model, or of one in its files: kernels round x too, and are held to less."""
    monkeypatch.setattr(onnx_check, "UNPACKED_AT_MOST", 0)
    model = speaking(tied=True)
    written = Onnx(views=("decoder",), **WORDS)(
        PrunedModel(model.model, model.adapter, model.masks, offloaded=offloaded), tmp_path
    )
    ways = [f"{DECODED}{ALSO}", f"{KERNELS}{ALSO}"]
    assert [check.runtime for check in written.checks] == ways
    assert [path.name for path in tmp_path.iterdir()] == ["decoder.onnx"]


@pytest.mark.parametrize("unpacked", [True, False])
def test_an_order_that_is_wrong_does_not_hide_behind_rounding(tmp_path, monkeypatch, unpacked):
    monkeypatch.setattr(onnx_products, "encode", in_another_order)
    if not unpacked:
        monkeypatch.setattr(onnx_check, "UNPACKED_AT_MOST", 0)
    said = r"weights rounded in torch too is up to .* where tolerance is 0\.001\..*values: auto, embeddings: dense\."
    with pytest.raises(ModelError, match=said):
        Onnx(views=("vision",), **INT8)(half_pruned("vit"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_tolerance_that_a_user_sets_is_that_of_rounded_weights_too(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_products, "encode", in_another_order)
    close, *_ = Onnx(views=("vision",), **INT8, tolerance=100.0)(half_pruned("vit"), tmp_path).checks
    assert close.runtime == f"{ALONE}{ALSO}"
    assert 1e-3 < 100 * close.difference / close.tolerance < 100


def test_the_way_out_of_rounded_words_is_named(tmp_path):
    with pytest.raises(ModelError, match="or values: auto, embeddings: dense"):
        Onnx(views=("decoder",), weights="packed_op", embeddings="int8", tolerance=1e-6)(speaking(tied=True), tmp_path)


def test_a_file_in_which_nothing_is_rounded_is_held_to_what_is_usual(tmp_path, monkeypatch):
    """As where all matrices are too large."""
    monkeypatch.setattr(onnx_products, "LARGEST", 0)
    model = unpruned(speaking(tied=True))
    written = Onnx(views=("decoder",), **INT8)(model, tmp_path)
    assert {tensor.form for tensor in written.tensors} == {"dense"}
    (check,) = written.checks
    logits = model.model(**view_of(model, "decoder").other)[0].abs().max()
    assert check.tolerance < 1e-2 * float(logits.detach())
    assert not any("int8" in note for note in written.notes)


def test_rounding_is_held_to_the_tolerance(tmp_path):
    with pytest.raises(ModelError, match=r"vision\.onnx: output .* in onnxruntime is up to .*values: auto"):
        Onnx(views=("vision",), **INT8, tolerance=1e-6)(half_pruned("vit"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_rounding_loses_is_told_and_refused_where_it_is_asked_for(tmp_path):
    """Weights of an input that is always zero change nothing but the scales, by which all others are lost."""
    model = llama(True, torch.float32)
    kept = {id(model.model.get_parameter(name)): mask for name, mask in model.masks.items()}
    for block in model.model.model.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.data[0] = 0
        for linear in (block.self_attn.q_proj, block.self_attn.v_proj, block.mlp.gate_proj, block.mlp.up_proj):
            linear.weight.data[:, 0] = 1e4 * kept[id(linear.weight)][:, 0]
    assert rounding_told(Onnx(views=("decoder",), **INT8)(model, tmp_path)) > 0.25
    with pytest.raises(ModelError, match=r"of its largest magnitude, where tolerance is 0\.25\."):
        Onnx(views=("decoder",), **INT8, tolerance=0.25)(model, tmp_path)


def test_parameters_are_what_they_were_where_torch_fails(monkeypatch, tmp_path):
    def failing(weight, by_rows):
        raise MemoryError

    monkeypatch.setattr(onnx_view, "_rounded_weight", failing)
    model = speaking(tied=True)
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    with pytest.raises(MemoryError):
        Onnx(views=("decoder",), **WORDS)(model, tmp_path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_a_weight_that_is_not_finite_is_named(tmp_path):
    model = speaking(tied=False)
    model.model.get_parameter("lm_head.weight").data[3, 4] = float("inf")
    with pytest.raises(Exception, match=r"lm_head\.weight: a weight is not finite.*embeddings: dense"):
        Onnx(views=("decoder",), **WORDS)(model, tmp_path)
