"""TorchScript files: packed on disk, dense after ``torch.jit.load``, and the model in memory as it was."""

import io
import json
import re
import struct
import subprocess
import sys
import warnings
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import view_of
from hypothesis import given
from hypothesis import strategies as st
from table import ALIKE, ROWS, SHARING, marked
from torch import Tensor, nn

from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, Exporter, PrunedModel
from ecoflap.core.contracts.records import View
from ecoflap.core.errors import EcoflapError, FormatError, ModelError, RunError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.exporters.torchscript import exporter as torchscript
from ecoflap.exporters.torchscript.exporter import TorchScript
from ecoflap.exporters.torchscript.store import packed, quiet
from ecoflap.exporters.torchscript.trace import unchanged

TYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
CHILD = """
import sys
sys.modules["ecoflap"] = None
import warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
for path in sys.argv[1:]:
    model = torch.jit.load(path)
    inputs, outputs = torch.load(path + ".expected", weights_only=True)
    with torch.no_grad():
        assert all(map(torch.equal, model(*inputs), outputs)), path
assert not [name for name in sys.modules if name.startswith("ecoflap.")]
"""


class Uses(nn.Module):
    """A weight that is an embedding and a head, one that an attention takes apart, one that is used twice over."""

    def __init__(self, side: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(64, side)
        self.attention = nn.MultiheadAttention(side, 4, batch_first=True)
        self.twice = nn.Linear(side, side)
        self.head = nn.Linear(side, 64, bias=False)
        self.head.weight = self.words.weight
        self.unused = nn.Linear(side, side)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.words(input_ids) * mask[..., None]
        hidden = self.twice(hidden) + nn.functional.linear(hidden, self.twice.weight.T) * self.scale
        hidden, _ = self.attention(hidden, hidden, hidden, need_weights=False)
        self.last_seen = hidden  # as some models remember what they made
        return self.head(hidden), hidden


class OneView(Adapter):
    """As much of an adapter as this exporter asks for."""

    processor: Any = None

    def __init__(self, name: str = "text", module: nn.Module | None = None) -> None:
        self.name, self.module = name, module

    def export_views(self, model):
        generator = torch.Generator().manual_seed(0)

        def example(*shape: int) -> dict[str, Tensor]:
            ids = torch.randint(64, shape, generator=generator)
            return {"input_ids": ids, "past.0.mask": torch.ones(shape)}

        axes = {0: "batch", 1: "sequence"}
        inputs, other = example(2, 5), example(3, 7)
        module = self.module or model
        yield View(self.name, module.eval(), inputs, other, ("logits", "hidden"), {"input_ids": axes})


@dataclass
class Taken(Adapter):
    """An adapter with other views."""

    views: list[View]
    processor: Any = None

    def export_views(self, model):
        return self.views


def pruned(model: nn.Module, adapter: Adapter, names=None, sparsity=0.5, seed=0) -> PrunedModel:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name, weight in model.named_parameters():
        if weight.ndim == 2 if names is None else name in names:
            masks[name] = torch.rand(weight.shape, generator=generator) >= sparsity
            weight.data *= masks[name]
    return PrunedModel(model, adapter, masks)


def uses() -> PrunedModel:
    torch.manual_seed(0)
    return pruned(Uses().eval(), OneView())


def load(path: Path) -> Any:
    with quiet():
        return torch.jit.load(path)


def photographed(model: nn.Module) -> Any:
    """All that may change of a model: which objects it holds under which names, flags, and bytes."""
    return [
        (name, {key: id(value) for key, value in vars(module).items()}, registered(module))
        for name, module in model.named_modules()
    ]


def registered(module: nn.Module) -> Any:
    tensors = {**module._parameters, **module._buffers}
    return [list(module._modules), module.training, *((name, *described(one)) for name, one in tensors.items())]


def described(tensor: Tensor | None) -> tuple[Any, ...]:
    if tensor is None:
        return ()
    return id(tensor), tensor.requires_grad, tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def pruned_row(name: str, dtype=None) -> PrunedModel:
    row = ROWS[name]
    model, adapter = row.build(), row.adapter()
    if dtype is not None:
        model = model.to(dtype)
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, row.outside)
    return pruned(model, adapter, {layer.name for _, layer in anatomy.layers()})


def saved_and_loaded(module: Any) -> Any:
    buffer = io.BytesIO(module.save_to_buffer())
    with quiet():
        return torch.jit.load(buffer)


shapes = st.lists(st.integers(0, 9), max_size=4)


@given(shapes, st.sampled_from(TYPES), st.floats(0, 1), st.integers(0, 2**31))
def test_any_weight_comes_back_bit_by_bit(shape, dtype, sparsity, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    weight *= torch.rand(shape, generator=generator) >= sparsity
    odd = torch.rand(shape, generator=generator)
    weight[odd < 0.1], weight[odd < 0.05] = float("inf"), float("nan")
    found = saved_and_loaded(packed(weight))()
    assert found.shape == weight.shape
    assert found.dtype == dtype
    bits = [one.masked_fill(one == 0, 0).reshape(-1).view(torch.uint8) for one in (found, weight)]
    assert torch.equal(*bits)


def test_it_is_an_exporter():
    assert isinstance(TorchScript(), Exporter)
    assert torchscript.ecoflap_register_exporters() == {"torchscript": TorchScript}


@pytest.mark.parametrize("name", marked(sorted(ROWS), ALIKE | SHARING))
def test_every_family(name, tmp_path):
    given = pruned_row(name)
    model, adapter = given.model, given.adapter
    before = photographed(model)
    written = TorchScript()(given, tmp_path)
    assert photographed(model) == before
    views = {view.name: view for view in adapter.export_views(model)}
    assert {path.name for path in tmp_path.iterdir()} == {f"{view}.pt" for view in views}
    assert [check.difference for check in written.checks] == [0.0] * len(views)
    assert all(tensor.form == "bitmask" for tensor in written.tensors if tensor.nonzeros < 0.9 * prod_of(tensor.shape))
    for path in written.files:
        loaded, view = load(path), views[path.stem]
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
        for inputs in (view.inputs, view.other):
            with torch.no_grad():
                for found, expected in zip(loaded(*inputs.values()), view.module(*inputs.values()), strict=True):
                    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def prod_of(shape: tuple[int, ...]) -> int:
    return int(torch.tensor(shape).prod())


@pytest.mark.parametrize("dtype", [pytest.param(torch.float16, marks=pytest.mark.slow), torch.bfloat16])
@pytest.mark.parametrize("name", sorted({"llama-tied", "t5", "open_clip", "timm_eva02", "lavis EVA-ViT"} & set(ROWS)))
def test_sixteen_bits_stay_sixteen_bits(name, dtype, tmp_path):
    written = TorchScript()(pruned_row(name, dtype), tmp_path)
    assert [check.difference for check in written.checks] == [0.0] * len(written.files)
    assert all(tensor.dense_bytes == 2 * prod_of(tensor.shape) for tensor in written.tensors)


def test_a_process_without_this_package_loads_it(tmp_path):
    names = sorted({"llama-tied", "open_clip", "lavis EVA-ViT"} & set(ROWS))
    paths = []
    for name in names:
        given = pruned_row(name)
        model, adapter = given.model.requires_grad_(False), given.adapter
        written = TorchScript()(given, tmp_path / name.replace(" ", "_"))
        for view in adapter.export_views(model):
            path = next(file for file in written.files if file.stem == view.name)
            inputs = list(view.other.values())
            with torch.no_grad():
                torch.save((inputs, list(view.module(*inputs))), f"{path}.expected")
            paths.append(str(path))
    done = subprocess.run([sys.executable, "-c", CHILD, *paths], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_use_of_a_weight(tmp_path):
    given = uses()
    model = given.model
    written = TorchScript()(given, tmp_path)
    view = next(OneView().export_views(model))
    loaded = load(tmp_path / "text.pt")
    assert {tensor.name for tensor in written.tensors} == {
        "words.weight", "attention.in_proj_weight", "attention.out_proj.weight", "twice.weight",
    }  # fmt: skip
    weights = dict(model.named_parameters())
    there = [module.weight for module in loaded.weights.children() if module.weight.numel()]
    assert all(torch.equal(weights[tensor.name], one) for tensor, one in zip(written.tensors, there, strict=True))
    model.requires_grad_(False)
    assert all(map(torch.equal, loaded(*view.other.values()), model(*view.other.values())))


def test_its_arguments_go_by_the_names_of_the_view(tmp_path):
    TorchScript()(uses(), tmp_path)
    extra = {"ecoflap.json": ""}
    with quiet():
        loaded = torch.jit.load(tmp_path / "text.pt", _extra_files=extra)
    ids = torch.arange(6).reshape(2, 3)
    found = loaded(input_ids=ids, past_0_mask=torch.ones(2, 3))
    assert [tuple(one.shape) for one in found] == [(2, 3, 64), (2, 3, 32)]
    assert json.loads(extra["ecoflap.json"]) == {
        "view": "text", "inputs": ["input_ids", "past.0.mask"], "outputs": ["logits", "hidden"],
        "dynamic": {"input_ids": {"0": "batch", "1": "sequence"}},
    }  # fmt: skip


def test_a_loaded_model_changes_its_type_and_is_saved_again(tmp_path):
    TorchScript()(uses(), tmp_path)
    loaded = load(tmp_path / "text.pt")
    sizes = (tmp_path / "text.pt").stat().st_size, len(loaded.save_to_buffer())
    assert sizes[1] < 2 * sizes[0]  # with torch's own padding and debug files
    ids, mask = torch.arange(6).reshape(2, 3), torch.ones(2, 3)
    expected = loaded(ids, mask)
    assert all(map(torch.equal, saved_and_loaded(loaded)(ids, mask), expected))
    doubled = loaded.double()(ids, mask.double())
    for one, other in zip(doubled, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=1e-4, atol=1e-6)


def test_what_a_view_does_not_use_takes_no_room(tmp_path):
    given = uses()
    model = given.model
    written = TorchScript()(given, tmp_path)
    assert not [tensor for tensor in written.tensors if "unused" in tensor.name]
    state = load(tmp_path / "text.pt").state_dict()
    assert sum(tensor.numel() for tensor in state.values()) < sum(p.numel() for p in model.parameters()) - 32 * 32


@pytest.mark.parametrize("dtype", TYPES[1:])
@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_sizes(dtype, sparsity, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512)).to(dtype)
    inputs, other = {"input": torch.randn(2, 512).to(dtype)}, {"input": torch.randn(3, 4, 512).to(dtype)}
    view = View("stack", Tupled(model).eval(), inputs, other, ("output",), {})
    given = pruned(model, Taken([view]), {"0.weight", "1.weight"}, sparsity)
    written = TorchScript()(given, tmp_path)
    dense = 512 * 512 * dtype.itemsize
    for tensor in written.tensors:
        assert tensor.dense_bytes == dense
        assert tensor.stored_bytes <= (1 - sparsity + 1 / 8 / dtype.itemsize) * 1.02 * dense
    size = written.files[0].stat().st_size
    assert size < 1.02 * sum(tensor.stored_bytes for tensor in written.tensors) + 2 * 512 * dtype.itemsize + 16_000
    whole = TorchScript(weights="dense")(given, tmp_path / "dense")
    assert whole.dense_bytes == whole.files[0].stat().st_size
    assert {tensor.form for tensor in whole.tensors} == {"dense"}
    assert abs(written.dense_bytes - whole.dense_bytes) < 16_000
    kept = sum(tensor.nonzeros for tensor in written.tensors)
    predicted = TorchScript().predicted_bytes(view_of(2 * 512 * 513, 2 * 512 * 512, kept, dtype.itemsize))
    assert 0 < size - predicted < 16_000
    assert TorchScript(weights="dense").predicted_bytes(view_of(10, 8, 4, 2)) == 20


class Tupled(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> tuple[Tensor]:
        return (self.model(input),)


def test_a_weight_that_would_not_be_smaller_stays_dense(tmp_path):
    torch.manual_seed(0)
    given = pruned(Uses(), OneView(), {"words.weight", "twice.weight"}, sparsity=0.01)
    forms = {tensor.name: tensor for tensor in TorchScript()(given, tmp_path).tensors}
    assert {tensor.form for tensor in forms.values()} == {"dense"}
    assert all(tensor.dense_bytes == tensor.stored_bytes for tensor in forms.values())


def test_no_debug_files_and_no_paths(tmp_path):
    written = TorchScript()(uses(), tmp_path)
    (path,) = written.files
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in file.infolist())
        assert file.testzip() is None
    assert not [name for name in names if name.endswith("debug_pkl") or "traced_inputs" in name]
    content = path.read_bytes()
    places = {str(Path(torch.__file__).parents[1]), str(Path(__file__).parents[3]), str(Path.home()), str(tmp_path)}
    for place in {*places, "site-packages", ".partial"}:
        assert place.encode() not in content


@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_as_it_was(training, tmp_path):
    given = uses()
    model = given.model.train(training)
    model.head.weight.requires_grad_(False)
    model.attention.eval()
    before = photographed(model)
    TorchScript()(given, tmp_path)
    assert photographed(model) == before
    assert not hasattr(model, "last_seen")
    assert model.head.weight is model.words.weight


class Untraceable(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        outputs: tuple[Tensor, Tensor] = self.inner(input_ids, mask)
        if torch.jit.is_tracing():
            raise ValueError("this model knows that it is traced")
        return outputs


def test_a_model_that_cannot_be_traced_is_as_it_was(tmp_path):
    given = uses()
    model = given.model
    before = photographed(model)
    with pytest.raises(ModelError, match=r"view 'text' cannot be traced.*knows that it is traced.*views: "):
        TorchScript()(replace(given, adapter=OneView(module=Untraceable(model))), tmp_path)
    assert photographed(model) == before
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """Does something else at other sizes, of which a trace knows nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits, hidden = self.inner(input_ids, mask)
        return logits, hidden * 1.001 if len(input_ids) == 3 else hidden


class Fixed(Branching):
    def forward(self, input_ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits, hidden = self.inner(input_ids, mask)
        return logits, hidden + torch.zeros(tuple(int(side) for side in hidden.shape))


def test_a_file_that_is_not_the_model_is_removed(tmp_path):
    given = uses()
    branching = replace(given, adapter=OneView(module=Branching(given.model)))
    with pytest.raises(ModelError, match=r"text.pt: output 'hidden' .* 0.000999 of its largest .* tolerance is 1e-05"):
        TorchScript()(branching, tmp_path)
    with pytest.raises(ModelError, match=r"what was traced does not run on input_ids \[3, 7\]"):
        TorchScript()(replace(given, adapter=OneView(module=Fixed(given.model))), tmp_path)
    assert list(tmp_path.iterdir()) == []
    (check,) = TorchScript(tolerance=0.01)(branching, tmp_path).checks
    assert 0 < check.difference <= 0.0011 / 0.01 * check.tolerance
    assert check.file == "text.pt"
    assert check.runtime == f"torch.jit {torch.__version__}"


def test_weights_that_read_back_differently_are_refused(tmp_path, monkeypatch):
    written = torchscript.write_view

    def other(path, view, pruned):
        made = written(path, view, pruned)
        view.module.twice.weight.data += 1
        return made

    monkeypatch.setattr(torchscript, "write_view", other)
    with pytest.raises(FormatError, match=r"text.pt: twice.weight reads back other than it was written"):
        TorchScript()(uses(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def damaged(how: Any) -> str:
    """What is said of a state that does not hold together, without the way through the file's code."""
    weight = torch.arange(-20.0, 20).reshape(8, 5)
    module = packed(weight)
    values, bits, checksum, shape, training = module.__getstate__()
    with pytest.raises(torch.jit.Error) as error:
        module.__setstate__((*how(values, bits, checksum, shape), training))
    return str(error.value).strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (lambda v, b, c, s: (v[:-1], b, c, s), r"the mask of a weight of \[8, 5\] keeps 39, and there are 38 values"),
        (lambda v, b, c, s: (torch.cat([v, v]), b, c, s), "keeps 39, and there are 78 values"),
        (lambda v, b, c, s: (v, b & 254, c, s), "keeps 34, and there are 39 values"),
        (lambda v, b, c, s: (v, b[:-1], c, s), r"4 bytes of mask for a weight of \[8, 5\]"),
        (lambda v, b, c, s: (v, b, c, [8, 6]), r"5 bytes of mask for a weight of \[8, 6\]"),
        (lambda v, b, c, s: (v, b, c, [39]), r"keeps 39, and there are 39 values"),
        (lambda v, b, c, s: (v, b, c, [5, 8]), r"the checksum of a weight of \[5, 8\] is another"),
        (lambda v, b, c, s: (v.flip(0) + 1, b, c, s), r"the checksum of a weight of \[8, 5\] is another"),
        (lambda v, b, c, s: (v, b, c + 1, s), "the checksum of a weight"),
        (lambda v, b, c, s: (v, b, c, [2**32, 2**32]), "5 bytes of mask for a weight"),
        (lambda v, b, c, s: (v, b, c, [2**61, 5, 8]), "5 bytes of mask for a weight"),
        (lambda v, b, c, s: (v, b, c, [0, 2**62, 2**62]), "5 bytes of mask for a weight"),
        (lambda v, b, c, s: (v, b, c, [-8, -5]), "5 bytes of mask for a weight"),
        (lambda v, b, c, s: (v.int(), b, c, s), "not a row of values and a row of bytes"),
        (lambda v, b, c, s: (v[None], b, c, s), "not a row of values and a row of bytes"),
        (lambda v, b, c, s: (v, b.int(), c, s), "not a row of values and a row of bytes"),
    ],
)
def test_a_damaged_weight_is_refused(how, said):
    assert re.match(f"builtins.ValueError: ecoflap: this file is damaged: .*{said}", damaged(how))


def rewritten(path: Path, wanted: bytes, instead: bytes) -> None:
    """Change the members that hold these bytes, under a new checksum of the archive."""
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    changed = [name for name, content in members.items() if wanted in content]
    assert changed
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content.replace(wanted, instead))


def test_a_tampered_file_is_refused(tmp_path):
    given = uses()
    model = given.model
    TorchScript()(given, tmp_path)
    path = tmp_path / "text.pt"
    good = path.read_bytes()
    kept = model.twice.weight[model.twice.weight != 0].tolist()
    first = struct.pack("<2f", *kept[:2])
    rewritten(path, first, struct.pack("<2f", kept[0], -kept[1]))
    with pytest.raises(torch.jit.Error, match=r"ecoflap: this file is damaged: the checksum of a weight of \[32, 32\]"):
        load(path)
    bits = packed(model.twice.weight).__getstate__()[1].numpy().tobytes()
    path.write_bytes(good)
    rewritten(path, bits, bytes([bits[0] ^ 1]) + bits[1:])
    with pytest.raises(torch.jit.Error, match=r"the mask of a weight of \[32, 32\] keeps"):
        load(path)
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(RuntimeError, match="zip archive"):
        load(path)


def test_a_byte_that_flipped_on_the_disk_is_noticed(tmp_path):
    given = uses()
    model = given.model
    TorchScript()(given, tmp_path)
    path = tmp_path / "text.pt"
    content = bytearray(path.read_bytes())
    kept = model.twice.weight[model.twice.weight != 0].detach()
    content[content.index(kept.numpy().tobytes()) + 100] ^= 4
    path.write_bytes(content)
    with pytest.raises(torch.jit.Error, match="ecoflap: this file is damaged"):
        load(path)


def test_the_deprecation_is_told_once_and_nothing_is_filtered_afterwards(tmp_path):
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        written = TorchScript()(uses(), tmp_path)
    assert heard == []
    assert warnings.filters == before
    assert len(written.notes) == 1
    assert written.notes[0].startswith("torch.jit is deprecated by PyTorch and still works in 2.")


def test_problems(monkeypatch, tmp_path):
    there = PlanContext(None, Anatomy((), {}), OneView(), Uses(), lambda: ("text",))
    assert list(TorchScript().problems(there)) == []
    strange = TorchScript(views=(), tolerance=float("nan"))
    assert [text.split()[0] for text in strange.problems(there)] == ["tolerance", "views"]
    monkeypatch.setattr(sys, "version_info", (3, 14, 0))
    monkeypatch.delattr(torch.jit, "trace")
    newer, without = TorchScript().problems(there)
    assert newer.startswith("the exporter torchscript needs Python 3.13 or older")
    assert without.startswith("the exporter torchscript needs torch.jit.trace")
    with pytest.raises(ModelError, match=r"Python 3.13 or older"):
        TorchScript()(uses(), tmp_path)


def test_views_that_are_not_there(tmp_path):
    given = uses()
    with pytest.raises(ModelError, match=r"no view named 'test'\. Did you mean 'text'\? Known: text"):
        TorchScript(views=("test",))(given, tmp_path)
    with pytest.raises(ModelError, match=r"Taken has no views of this model.*safetensors"):
        TorchScript()(replace(given, adapter=Taken([])), tmp_path)

    class Old(Adapter):
        processor: Any = None

    with pytest.raises(ModelError, match=r"Old has no views of this model.*safetensors"):
        TorchScript()(replace(given, adapter=Old()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_views_are_chosen_and_shared_weights_told_apart(tmp_path):
    given = uses()
    one, other = (next(OneView(name).export_views(given.model)) for name in ("one", "other"))
    given = replace(given, adapter=Taken([one, other]))
    written = TorchScript(views=("other",))(given, tmp_path)
    assert [path.name for path in written.files] == ["other.pt"]
    assert "twice.weight" in {tensor.name for tensor in written.tensors}
    written = TorchScript()(given, tmp_path / "both")
    names = {tensor.name for tensor in written.tensors}
    assert {"twice.weight in one.pt", "twice.weight in other.pt"} < names


def test_nothing_pruned_and_weights_that_moved(tmp_path):
    with pytest.raises(EcoflapError, match="nothing in this model has been pruned"):
        TorchScript()(PrunedModel(Uses().eval(), OneView(), {}), tmp_path)
    given = uses()
    given.model.twice.weight.data += 1
    with pytest.raises(ModelError, match=r"twice.weight: weights that were pruned are not zero any more"):
        TorchScript()(given, tmp_path)
    odd = replace(given, masks={name: mask[:-1] for name, mask in given.masks.items()})
    with pytest.raises(ModelError, match=r"twice.weight.*: the mask has another shape than the weight"):
        TorchScript()(odd, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full(tmp_path):
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    given = uses()
    model = given.model
    before = photographed(model)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"text.pt could not be written: the file would be larger"):
            TorchScript()(given, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []
    assert photographed(model) == before


def test_unchanged_puts_everything_back():
    model = uses().model
    before = photographed(model)

    def change() -> None:
        del model.twice.weight
        model.new = nn.Linear(2, 2)
        model.train().seen = torch.ones(2)
        raise KeyError

    with pytest.raises(KeyError), unchanged(model):
        change()
    assert photographed(model) == before


def test_a_file_has_the_same_bytes_whatever_was_traced_before(tmp_path):
    """In one process, as a sweep's runs are; classes were numbered on from one file to the next."""
    files = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        files += [path.read_bytes() for path in TorchScript()(uses(), tmp_path / name).files]
        with quiet():
            torch.jit.trace(Uses().eval().twice, torch.ones(1, Uses().twice.in_features))
    assert files[0] == files[1]
    assert b"torch_mangle" in files[0]  # there were classes of one name to be numbered


def test_the_loader_takes_no_byte_for_another(tmp_path):
    from ecoflap import torchscript
    from ecoflap.core.sealing.sums import write_sums

    (path,) = TorchScript()(uses(), tmp_path).files
    with pytest.raises(FormatError, match=r"no SHA256SUMS lies beside it.* Move it back or export it again"):
        torchscript.load(path)
    write_sums(tmp_path)
    found, wanted = torchscript.load(path).state_dict(), load(path).state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=rf"{path.name} is not what was written: its SHA-256 is"):
        torchscript.load(path)
    with pytest.raises(FormatError, match="there is no such file"):
        torchscript.load(tmp_path / "nowhere.pt")
