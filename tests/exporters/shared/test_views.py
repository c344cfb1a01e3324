"""Which views are exported: those that are named, of those that the adapter has; the rest is known before a run."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from table import ROWS
from torch import nn

import ecoflap
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import Exported, StoredTensor, View
from ecoflap.core.errors import ModelError, RecipeError
from ecoflap.core.model.anatomy import Anatomy
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.exporters.shared.views import export_views, view_problems

NONE = r"WithoutViews has no views of this model .*Use the exporter safetensors or hugging_face\."


class WithoutViews(Adapter):
    processor: Any = None


class Views(WithoutViews):
    """Has a view of each name."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def export_views(self, model: nn.Module) -> list[View]:
        return [View(name, model, {}, {}, (), {}) for name in self.names]


class Refusing(Views):
    """Has views of which onnx cannot write one, and lacks another."""

    def views_refused(self, model: nn.Module, exporter: str) -> dict[str, str]:
        return {"text": "it is long", "all": "it has no whole"} if exporter == "onnx" else {}


def pruned(adapter: Adapter) -> PrunedModel:
    return PrunedModel(nn.Linear(2, 2), adapter, {"weight": torch.ones(2, 2, dtype=torch.bool)})


@pytest.fixture
def write(tmp_path: Path):
    def write(view: View) -> Exported:
        if view.name == "broken":
            raise ModelError("this view is broken")
        file = tmp_path / f"{view.name}.bin"
        file.write_text(view.name)
        tensors = StoredTensor("shared", "bitmask", (2, 2), 2, 16, 9), StoredTensor(view.name, "dense", (2,), 2, 8, 8)
        return Exported((file,), tensors, (), 100, (f"{view.name}: a note", "a note for all"))

    return write


def test_all_views_are_one_export(write, tmp_path: Path):
    written = export_views(pruned(Views("vision", "text")), None, "onnx", write)
    assert written.files == (tmp_path / "vision.bin", tmp_path / "text.bin")
    names = [tensor.name for tensor in written.tensors]
    assert names == ["shared in vision.bin", "vision", "shared in text.bin", "text"]
    assert written.dense_bytes == 200
    assert written.notes == ("vision: a note", "a note for all", "text: a note")


def test_views_are_written_in_the_order_of_the_adapter(write, tmp_path: Path):
    adapter = Views("vision", "broken", "text")
    written = export_views(pruned(adapter), ("text", "vision"), "onnx", write)
    assert [file.name for file in written.files] == ["vision.bin", "text.bin"]


def test_where_one_that_is_named_fails_none_is_left(write, tmp_path: Path):
    names = ("vision", "broken", "text")
    with pytest.raises(ModelError, match="this view is broken"):
        export_views(pruned(Views(*names)), names, "onnx", write)
    assert list(tmp_path.iterdir()) == []


def test_of_all_those_that_can_be_written_are_kept(write, tmp_path: Path):
    """What a view fails for may be known only behind all pruning, and is no reason to go without the others."""
    written = export_views(pruned(Views("vision", "broken", "text")), None, "onnx", write)
    assert [file.name for file in written.files] == ["vision.bin", "text.bin"]
    assert written.notes[-1] == "the view broken is left out, because it could not be written: this view is broken"


def test_where_none_can_be_written_each_reason_is_said(tmp_path: Path):
    def write(view: View) -> Exported:
        raise ModelError(f"{view.name} is broken")

    with pytest.raises(ModelError) as raised:
        export_views(pruned(Views("vision", "text")), None, "onnx", write)
    assert raised.value.problems == ("vision is broken", "text is broken")


def test_what_is_no_problem_of_a_view_ends_the_export(tmp_path: Path):
    """A disk that is full, say: then no file of the others is left."""

    def write(view: View) -> Exported:
        if view.name == "text":
            raise OSError("no space left")
        (tmp_path / "vision.bin").touch()
        return Exported((tmp_path / "vision.bin",), (), (), 0, ())

    with pytest.raises(OSError, match="no space left"):
        export_views(pruned(Views("vision", "text")), None, "onnx", write)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_with_what_can(write):
    both = Views("vision", "text")
    with pytest.raises(
        ModelError, match=r"onnx: views: .*no view named 'txt'\. Did you mean 'text'\? Known: text, vision"
    ):
        export_views(pruned(both), ("txt",), "onnx", write)
    for adapter in (WithoutViews(), type("WithoutViews", (Views,), {})()):
        with pytest.raises(ModelError, match=f"torchscript: {NONE}"):
            export_views(pruned(adapter), None, "torchscript", write)
    with pytest.raises(ModelError, match="onnx: views is empty, so nothing would be exported"):
        export_views(pruned(both), (), "onnx", write)


def test_a_view_that_an_exporter_cannot_write_is_left_out_with_the_reason(write):
    adapter = Refusing("vision", "text")
    written = export_views(pruned(adapter), None, "onnx", write)
    assert [file.name for file in written.files] == ["vision.bin"]
    assert written.notes[-2:] == (
        "the view text is left out, because it is long",
        "the view all is left out, because it has no whole",
    )
    assert [file.name for file in export_views(pruned(adapter), ("vision",), "onnx", write).files] == ["vision.bin"]
    written = export_views(pruned(adapter), None, "torchscript", write)
    assert [file.name for file in written.files] == ["vision.bin", "text.bin"]
    assert "left out" not in str(written.notes)


def test_one_that_is_asked_for_is_refused_with_the_reason(write):
    with pytest.raises(
        ModelError,
        match=r"onnx: views: text cannot be exported of this model: it is long\. Name others \(vision\)\. Use the expo",
    ):
        export_views(pruned(Refusing("vision", "text")), ("text", "vision"), "onnx", write)
    with pytest.raises(ModelError, match=r"no view of this model can be exported: not text, because it is long; all, "):
        export_views(pruned(Refusing("text")), None, "onnx", write)


def refused_by(adapter: Adapter) -> Callable[[str], Mapping[str, str]]:
    return lambda exporter: options_of(AdapterOptions, adapter).views_refused(nn.Identity(), exporter)


def exporters() -> list[Any]:
    from ecoflap.exporters.onnx.exporter import Onnx
    from ecoflap.exporters.torchscript.exporter import TorchScript

    return [Onnx, TorchScript]


@pytest.mark.parametrize("exporter", exporters())
def test_a_plan_says_so_too(exporter: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ecoflap.exporters.onnx.exporter.LIBRARIES", ())

    def problems(adapter: Adapter, *there: str, **parameters: Any) -> list[str]:
        recipe: Any = type("Recipe", (), {"model": type("Model", (), {"dtype": "auto"})})
        context = PlanContext(recipe, Anatomy((), {}), adapter, nn.Identity(), lambda: there, refused_by(adapter))
        return list(exporter(**parameters).problems(context))

    both = Views("vision", "text")
    assert problems(both, "vision", "text") == []
    assert problems(both, "vision", "text", views=("text",)) == []
    assert problems(both, "vision", "text", views=("nope", "visoin")) == [
        "views: this model has no view named 'nope'. Known: text, vision.",
        "views: this model has no view named 'visoin'. Did you mean 'vision'? Known: text, vision.",
    ]
    assert problems(both, "vision", "text", views=()) == list(view_problems((), both, ("vision",), {}))
    assert problems(Refusing("vision", "text"), "vision", "text", views=("vision",)) == []
    refused = problems(Refusing("vision", "text"), "vision", "text", views=("text",))
    assert [said[:52] for said in refused] == ["views: text cannot be exported of this model: it is "] * (
        exporter.__name__ == "Onnx"
    )
    (none,) = problems(WithoutViews(), views=("text",))
    assert none.startswith("WithoutViews has no views of this model")


def test_a_plan_tells_what_will_be_left_out():
    from ecoflap.exporters.onnx.exporter import Onnx
    from ecoflap.exporters.torchscript.exporter import TorchScript

    adapter = Refusing("vision", "text")
    context = PlanContext(None, Anatomy((), {}), adapter, nn.Identity(), tuple, refused_by(adapter))
    told = ["the view text is left out, because it is long", "the view all is left out, because it has no whole"]
    assert list(Onnx().notes(context)) == told
    assert list(Onnx(views=("vision",)).notes(context)) == []
    assert list(TorchScript().notes(context)) == []


@pytest.mark.skipif("llama" not in ROWS, reason="transformers here is too old for the views of a LLaMA")
@pytest.mark.parametrize("use", ["onnx", "torchscript"])
def test_a_run_does_not_begin_for_a_view_that_is_not_there(use: str, pico_llama_folder: Path, tmp_path: Path):
    recipe = {
        "version": 1,
        "model": str(pico_llama_folder),
        "sparsity": 0.5,
        "prune": "magnitude",
        "allocate": "uniform",
    }
    said = (
        r"export\.0: views: this model has no view named 'decodr'\. Did you mean 'decoder'\? Known: decoder, decoder_"
    )
    with pytest.raises(RecipeError, match=said):
        ecoflap.run({**recipe, "export": [{"use": use, "views": ["decodr"]}]}, folder=tmp_path / "run")
    assert not (tmp_path / "run" / "plan.json").exists()


def test_one_view_may_be_written_without_a_list():
    recipe = {"version": 1, "model": "./m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["export"] = {"use": "onnx", "views": "vision"}
    read = parse_recipe(recipe, registry=ecoflap.load_registry())
    recipe["export"] = {"use": "onnx", "views": ["vision"]}
    assert read == parse_recipe(recipe, registry=ecoflap.load_registry())
    assert list(read.export[0].built.views) == ["vision"]


def test_an_exporter_that_goes_by_way_of_another_is_told_by_its_own_name(write: Callable[[View], Exported]):
    """OpenVINO's files are made of ONNX, so what onnx cannot write it cannot either."""
    written = export_views(pruned(Refusing("text", "vision")), None, "openvino", write, by_way_of="onnx")
    assert [file.name for file in written.files] == ["vision.bin"]
    with pytest.raises(ModelError, match=r"openvino: views: .*text.*it is long"):
        export_views(pruned(Refusing("text", "vision")), ["text"], "openvino", write, by_way_of="onnx")
