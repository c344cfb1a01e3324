"""Views of models that were taken apart by watching give what the whole model does."""

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from exported import planned
from pico_words import BEGIN, PAD, POISON
from table import row_of
from torch import Tensor
from transformers_version import is_before

from ecoflap.adapters.generic.watching.examples import image_inputs
from ecoflap.adapters.views.seeing import indicator_tokens
from ecoflap.core.contracts.records import View
from ecoflap.exporters.torchscript.exporter import TorchScript

ALL = ("vision", "language", "all")
BLIND = {"idefics3", "instructblip", "kosmos2", "llava_next"} if is_before("4.52") else set()
"""Those that cannot be asked there what their text model reads of an image."""
STATES = "cross_attention_states"
FREE = {"attention_mask", "input_ids", "inputs_embeds", "pixel_values"}


def views_of(name: str, model: Any) -> Mapping[str, View]:
    return {view.name: view for view in row_of(name).adapter().export_views(model)}  # type: ignore[attr-defined]


def read(view: View, which: str) -> dict[str, Tensor]:
    """The inputs of an example that has padding where its mask says so alone: positions may be counted without it."""
    inputs = dict(getattr(view, which))
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if ids is None:
        return inputs
    words = torch.where(ids <= BEGIN, POISON, ids)
    return {**inputs, "input_ids": words if mask is None else torch.where(mask == 0, PAD, words)}


def by_the_model(model: Any, inputs: Mapping[str, Tensor], constants: Mapping[str, Any]) -> Tensor:
    """The logits of the model's own forward.

    :param constants: What it is told of an image beside: ``image_grid_thw``.
    """
    given = {**inputs, **{name: torch.tensor(value) for name, value in constants.items()}}
    with torch.no_grad():
        logits: Tensor = model(**given, use_cache=False).logits
    return logits


def by_the_parts(model: Any, views: Mapping[str, View], inputs: Mapping[str, Tensor], token: int) -> Tensor:
    """The logits of ``language``, which reads what ``vision`` made in the places of ``token`` and of Ovis 2's."""
    vision, language = views["vision"], views["language"]
    with torch.no_grad():
        vectors, *indicators = vision.module(*(inputs[name] for name in vision.inputs))
        given = {**inputs, "cross_attention_states": vectors}
        if "inputs_embeds" in language.inputs:
            embedded = model.get_input_embeddings()(inputs["input_ids"]).clone()
            embedded[inputs["input_ids"] == token] = vectors.reshape(-1, vectors.shape[-1])
            for made in indicators:
                for one, vector in zip(indicator_tokens(model), made, strict=True):
                    embedded[inputs["input_ids"] == one] = vector
            given["inputs_embeds"] = embedded
        (logits,) = language.module(*(given[name] for name in language.inputs))
    return logits  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name",
    ["llava", "llava_next", "mistral3", "qwen2_5_vl", "gemma3", "smolvlm", "mllama", "instructblip", "kosmos2",
     "florence2", "ovis2", "ovis2_5", "llava_onevision1_5"],
)  # fmt: skip
def test_parts_and_whole_give_what_the_model_gives(name: str):
    model = row_of(name).build()
    views = views_of(name, model)
    assert tuple(views) == (ALL[1:] if name in BLIND else ALL)
    form: Any = views["all"].module.form
    for which in ("inputs", "other"):
        inputs = read(views["all"], which)
        expected = by_the_model(model, inputs, form.constants)
        with torch.no_grad():
            (whole,) = views["all"].module(*inputs.values())
        assert torch.equal(whole, expected)
        if "vision" in views:
            parts = by_the_parts(model, views, inputs, form.token)
            torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-5)
        assert float(expected.std()) > 1e-3
        changed = by_the_model(model, {**inputs, "pixel_values": inputs["pixel_values"].flip(-1)}, form.constants)
        assert float((changed - expected).abs().max()) > 1e-4, "what it says depends on the image"


def padded_on_the_left(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same texts with their padding before them."""
    lacks = (inputs["attention_mask"] == 0).sum(1).tolist()

    def moved(one: Tensor) -> Tensor:
        return torch.stack([row.roll(by) for row, by in zip(one, lacks, strict=True)])

    shape = inputs["attention_mask"].shape
    return {name: moved(one) if one.shape == shape else one for name, one in inputs.items()}


def test_of_ovis2_vision_gives_the_vectors_of_its_indicator_tokens_too():
    model = row_of("ovis2").build()
    views = views_of("ovis2", model)
    form, tokens = views["all"].module.form, model.config.visual_indicator_token_ids
    assert views["vision"].outputs == ("image_embeds", "indicator_embeds")
    inputs = read(views["all"], "inputs")
    inputs["input_ids"][:, 0], inputs["input_ids"][:, 1] = tokens[0], tokens[3]
    expected = by_the_model(model, inputs, form.constants)  # type: ignore[union-attr, arg-type]
    parts = by_the_parts(model, views, inputs, form.token)  # type: ignore[union-attr, arg-type]
    torch.testing.assert_close(parts, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", sorted({"llava", "gemma3", "kosmos2"} - BLIND))
def test_padding_before_a_text_is_not_counted(name: str):
    """Kosmos-2 counts the words of a text without it, and of vectors cannot tell which are words."""
    model = row_of(name).build()
    views = views_of(name, model)
    form: Any = views["all"].module.form
    inputs = padded_on_the_left(read(views["all"], "other"))
    is_word = inputs["attention_mask"] == 1
    assert not bool(is_word[:, 0].all()), "there is some"
    expected = by_the_model(model, inputs, form.constants)
    parts = by_the_parts(model, views, inputs, form.token)
    torch.testing.assert_close(parts[is_word], expected[is_word], rtol=1e-5, atol=1e-5)


def test_of_qwen3_vl_there_is_the_whole_alone_with_the_reason():
    row = row_of("qwen3_vl")
    model, adapter = row.build(), row.adapter()
    views = views_of("qwen3_vl", model)
    assert tuple(views) == ("all",)
    refused = adapter.views_refused(model, "onnx")  # type: ignore[attr-defined]
    assert set(refused) == {"vision", "language"}
    assert "in its first blocks too" in refused["language"]
    inputs, form = views["all"].inputs, views["all"].module.form
    with torch.no_grad():
        (whole,) = views["all"].module(*inputs.values())
    assert torch.equal(whole, by_the_model(model, inputs, form.constants))  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("exporter", ["onnx", "torchscript"])
def test_of_gemma4_there_is_no_language_by_vectors_alone(exporter: str):
    """Its smaller ones embed tokens for each layer; the whole is written all the same."""
    row = row_of("gemma4")
    model, adapter = row.build(), row.adapter()
    assert set(views_of("gemma4", model)) == {"vision", "all"}
    refused = adapter.views_refused(model, exporter)  # type: ignore[attr-defined]
    assert set(refused) == {"language"}
    assert "embeds the tokens for each layer anew" in refused["language"]


def test_a_text_model_with_experts_for_images_is_not_told_by_vectors_which_tokens_are_an_images():
    row = row_of("ernie4_5_vl_moe")
    model, adapter = row.build(), row.adapter()
    views, refused = views_of("ernie4_5_vl_moe", model), adapter.views_refused(model, "onnx")  # type: ignore[attr-defined]
    assert "language" not in views
    assert "moe_mm_token_type_ids" in refused["language"]
    assert "moe_mm_token_type_ids" not in views["vision"].inputs, "it is as long as a text"


def test_a_model_that_asks_which_tokens_there_are_is_refused_by_the_line_that_asks():
    """A trace would be made without a word, and be wrong of a text with one of the tokens that are asked for."""
    row = row_of("ovis2")
    model, adapter = row.build(), row.adapter()
    for one in (model, row.build().to("meta")):
        refused = adapter.views_refused(one, "torchscript")  # type: ignore[attr-defined]
        assert set(refused) == {"all"}
        assert "modeling_ovis2.py" in refused["all"]
        assert "mask.any()" in refused["all"]
        assert "looks at numbers of an input in Python" in refused["all"]
    whole = views_of("ovis2", model)["all"]
    inputs, marks = dict(whole.inputs), model.config.visual_indicator_token_ids  # type: ignore[union-attr]
    asked = torch.isin(inputs["input_ids"], torch.tensor(marks))
    inputs["input_ids"] = inputs["input_ids"].masked_fill(asked, 12)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(whole.module, tuple(inputs.values()), check_trace=False)
    inputs["input_ids"] = inputs["input_ids"].index_fill(1, torch.tensor([0]), marks[0])
    with torch.no_grad():
        assert not torch.allclose(traced(*inputs.values())[0], whole.module(*inputs.values())[0])


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "instructblip", "mllama", "idefics3"])
def test_a_view_holds_no_more_than_it_runs_and_that_is_the_models(name: str):
    model = row_of(name).build()
    views, mine = views_of(name, model), {id(parameter) for parameter in model.parameters()}
    for view in views.values():
        assert {id(parameter) for parameter in view.module.parameters()} <= mine
    held = {name: [path for path, _ in view.module.named_parameters()] for name, view in views.items()}
    assert tuple(views) == (ALL[1:] if name in BLIND else ALL)
    seen = _seen(held.get("vision", []))
    assert not any("language" in path or "text_model" in path or "lm_head" in path for path in seen)
    assert not any("vision" in path or "visual" in path for path in held["language"])
    assert {id(one) for view in views.values() for one in view.module.parameters()} == mine


def _seen(paths: list[str]) -> list[str]:
    return [path for path in paths if "language_projection" not in path]


@pytest.mark.parametrize("name", ["llava", "qwen2_vl", "gemma3", "mllama"])
def test_axes_vary_where_torch_can_let_them(name: str):
    weightless = row_of(name).build().to("meta")
    views = views_of(name, weightless)
    assert all(parameter.is_meta for view in views.values() for parameter in view.module.parameters())
    for view in views.values():
        for called, one in view.inputs.items():
            differ = {axis for axis in range(one.ndim) if one.shape[axis] != view.other[called].shape[axis]}
            assert differ == set(view.dynamic[called]), (view.name, called)
    pixels = views["vision"].dynamic["pixel_values"]
    assert pixels == ({} if name == "qwen2_vl" else {0: "batch"}), "a grid is that of one image"
    beside = {"qwen2_vl": {"position_ids"}, "gemma3": {"token_type_ids"}, "mllama": {"cross_attention_mask", STATES}}
    assert set(views["language"].inputs) - FREE == beside.get(name, set())


def test_a_plan_refuses_what_will_not_be_exported():
    row = row_of("ovis2")
    context = planned(row.build().to("meta"), row.adapter())
    assert list(TorchScript().problems(context)) == []
    (note,) = TorchScript().notes(context)
    assert note.startswith("the view all is left out, because modeling_ovis2.py:")
    (problem,) = TorchScript(views=("vision", "all")).problems(context)
    assert problem.startswith("views: all cannot be exported of this model: modeling_ovis2.py:")
    assert problem.endswith("Name others (vision, language). Use the exporter safetensors or hugging_face.")


@pytest.mark.parametrize("name", ["florence2", "llava", "kosmos2"])
def test_images_are_as_large_as_the_processor_makes_them(name: str):
    """Florence-2's configuration does not say how large that is."""
    from PIL import Image

    row = row_of(name)
    adapter: Any = row.adapter()
    made = adapter.processor.image_processor(images=Image.new("RGB", (40, 30)), return_tensors="pt")["pixel_values"]
    views = {view.name: view for view in adapter.export_views(row.build())}
    for view in ("all",) if name == "kosmos2" and is_before("5") else ("vision", "all"):
        assert views[view].inputs["pixel_values"].shape[1:] == made.shape[1:]


class Odd:
    """A processor of images that makes something else of them, or nothing."""

    def __init__(self, made: Any) -> None:
        self.image_processor, self.made = self, made

    def __call__(self, images: Any, return_tensors: str) -> Any:
        if isinstance(self.made, Exception):
            raise self.made
        return self.made


@pytest.mark.parametrize(
    "made",
    [
        KeyError("text"),
        {"flattened_patches": torch.ones(1, 4, 5)},
        {"pixel_values": [[1]]},
        {"pixel_values": torch.ones(256, 1176)},
        {"pixel_values": torch.ones(1, 3, 20, 30)},
    ],
)
def test_a_processor_that_makes_no_square_images_says_nothing(made: Any):
    model = row_of("florence2").build()
    with_it, without = (list(image_inputs(model, processor)) for processor in (Odd(made), None))
    assert [one["pixel_values"].shape for one in with_it] == [one["pixel_values"].shape for one in without]
