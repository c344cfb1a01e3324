"""What can be exported of each family: every view gives what its model gives, whole, at two sizes, and traced."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from table import ROWS
from torch import Tensor, nn

from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Batch, View
from ecoflap.core.model.source import open_source

LAVIS = find_spec("lavis") is not None
PAIR = {"vision", "text", "pair"}
VIEWS = {
    "llama": {"decoder", "decoder_with_past"},
    "t5": {"encoder", "decoder", "decoder_with_past"},
    "mt5": {"encoder", "decoder", "decoder_with_past"},
    "blip_caption": {"vision", "decoder", "all"},
    "blip_vqa": {"vision", "encoder", "decoder", "all"},
    "blip_retrieval": {*PAIR, "match"},
    "blip2": {"vision", "language", "all"},
    "blip2_retrieval": PAIR,
    "clip": PAIR,
    "clip_vision": {"vision"},
    "siglip": PAIR,
    "open_clip": PAIR,
    "lavis BLIP-2": {"vision", "language"},
    "lavis BLIP-2 retrieval": PAIR,
    "lavis BLIP-NLVR": {"vision", "text", "all"},
    "": {"vision"},  # all others
}
"""By the longest of these that a row's name begins with."""


@dataclass(frozen=True)
class Case:
    name: str
    model: Any
    adapter: Adapter
    views: Mapping[str, View]


def case_of(name: str) -> Case:
    model, adapter = ROWS[name].build(), ROWS[name].adapter()
    views = adapter.export_views(model)  # type: ignore[attr-defined]
    return Case(name, model, adapter, {view.name: view for view in views})


@pytest.fixture(params=sorted(ROWS))
def case(request: pytest.FixtureRequest) -> Case:
    return case_of(str(request.param))


def run(module: Any, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    with torch.no_grad():
        given: tuple[Tensor, ...] = module(*inputs.values())
    return given


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def watched(module: nn.Module, whole: Callable[[], object]) -> tuple[dict[str, Any], Any]:
    """What a module is given by name, and gives, while the whole model runs."""
    seen: dict[str, Any] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        seen.update(given=kwargs, made=output)

    handle = module.register_forward_hook(look, with_kwargs=True)
    with torch.no_grad():
        whole()
    handle.remove()
    return seen["given"], seen["made"]


def features(model: Any, name: str, **inputs: Tensor) -> Tensor:
    """Of an image or a text; a tensor until transformers 5."""
    made = getattr(model, f"get_{name}_features")(**inputs)
    return made if isinstance(made, Tensor) else made.pooler_output


def compared(made: Any) -> tuple[Tensor, ...]:
    return made.logits_per_image, made.logits_per_text, made.text_embeds, made.image_embeds


def of_text_model(model: Any, view: View, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    if view.name == "encoder":
        return (model.get_encoder()(**inputs).last_hidden_state,)
    if len(inputs) == 2:
        return (model(**inputs).logits,)
    ids, hidden, mask = inputs.values()
    made = model(encoder_outputs=(hidden,), attention_mask=mask, decoder_input_ids=ids, use_cache=True)
    return made.logits, *(tensor for layer in layers_of(cache_of(made)) for tensor in layer)


def of_blip(model: Any, view: View, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """What a tower gives while the whole runs; the decoder alone is a model itself."""
    if view.name == "decoder":
        return (model.text_decoder(**inputs).logits,)
    if view.name == "encoder":
        return (model.text_encoder(**inputs).last_hidden_state,)
    made = watched(model.text_decoder, lambda: model(**{**whole, **inputs}))[1]
    seen = watched(model.vision_model, lambda: model(**{**whole, **inputs}))[1].last_hidden_state
    return (seen,) if view.name == "vision" else (made.logits,)


def of_blip_retrieval(
    model: Any, view: View, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    given = {**whole, **inputs}
    if view.name == "match":
        return (model(**given).itm_score,)
    texts = watched(model.text_proj, lambda: model(**given, use_itm_head=False))[1]
    images = watched(model.vision_proj, lambda: model(**given, use_itm_head=False))[1]
    texts, images = (nn.functional.normalize(one, dim=-1) for one in (texts, images))
    scores = model(**given, use_itm_head=False).itm_score
    return {"vision": (images,), "text": (texts,)}.get(view.name, (scores, scores.T, texts, images))


def of_blip2(model: Any, view: View, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    if view.name == "language":
        return (model.language_model(**inputs).logits,)
    if view.name == "all":
        return (model(**inputs).logits,)
    return (watched(model.language_projection, lambda: model(**{**whole, **inputs}))[1],)


def of_retrieval(
    model: Any, view: View, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    model.config.image_token_index = None  # so no token of a text is taken for an image's place
    made = compared(model(**{**whole, **inputs}, use_image_text_matching_head=False))
    return {"vision": made[3:], "text": made[2:3]}.get(view.name, made)


def of_pair(model: Any, view: View, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    if view.name == "pair":
        return compared(model(**inputs))
    if not hasattr(model, "get_image_features"):
        return (model(**inputs).image_embeds,)
    return (features(model, "image" if view.name == "vision" else "text", **inputs),)


def of_open_clip(model: Any, view: View, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    if view.name == "vision":
        return (model.encode_image(*inputs.values()),)
    if view.name == "text":
        return (model.encode_text(*inputs.values()),)
    images, texts, scale, *bias = model(*inputs.values())
    similarities = scale * images @ texts.T + (bias[0] if bias else 0)
    return similarities, similarities.T, texts, images


def of_vision(model: Any, view: View, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    made = model(*inputs.values())
    return (made,) if isinstance(made, Tensor) else tuple(getattr(made, name) for name in view.outputs)


def of_lavis(
    model: Any, adapter: Adapter, view: View, inputs: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> tuple[Tensor, ...]:
    from types import SimpleNamespace

    if view.name == "language":
        text = model.t5_model if hasattr(model, "t5_model") else model.opt_model
        return (text(**inputs).logits,)
    if hasattr(model, "t5_model") or hasattr(model, "opt_model"):
        projection = model.t5_proj if hasattr(model, "t5_model") else model.opt_proj
        said = ["the dog"] * len(inputs["pixel_values"])
        batch = {"image": inputs["pixel_values"], "text_input": said, "text_output": said}
        return (watched(projection, lambda: model(batch))[1],)
    given = {**whole, **inputs}
    images = nn.functional.normalize(model.vision_proj(model.forward_image(given["pixel_values"])[0]), dim=-1)
    tokens = SimpleNamespace(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
    texts = nn.functional.normalize(model.text_proj(model.forward_text(tokens)), dim=-1)
    similarities = torch.einsum("iqd,td->iqt", images, texts).amax(1) / model.temp
    return {"vision": (images,), "text": (texts,)}.get(view.name, (similarities, similarities.T, texts, images))


def of_nlvr(model: Any, view: View, inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """By LAVIS' own forward, whose tokenizer gives the view's tokens, and of ``text`` its vision tower the view's."""
    from transformers import BatchEncoding

    if view.name == "vision":
        return (model.visual_encoder.forward_features(inputs["pixel_values"]),)
    ids, count = inputs["input_ids"], len(inputs["input_ids"])
    own, read = model.tokenizer, BatchEncoding({name: inputs[name] for name in ("input_ids", "attention_mask")})
    try:
        model.tokenizer = lambda sentences, **how: read
        model.tokenizer.enc_token_id = ids[:, 0]
        if view.name == "text":
            seen = torch.cat([inputs["image0_embeds"], inputs["image1_embeds"]])
            model.visual_encoder.forward_features = lambda images: seen
        images = {name: inputs.get(name, torch.zeros(count)) for name in ("image0", "image1")}
        batch = {**images, "text_input": [""] * count, "label": torch.zeros(count, dtype=torch.long)}
        return (model.predict(batch)["predictions"],)
    finally:
        model.tokenizer = own
        vars(model.visual_encoder).pop("forward_features", None)


def expected(case: Case, view: View, name: str) -> tuple[Tensor, ...]:
    """The same by the model's own forward or the library's own functions.

    :param name: ``inputs`` or ``other``.
    """
    inputs = getattr(view, name)
    largest = getattr(case.views.get("all") or case.views.get("pair") or view, name)
    ways = {
        "LlamaAdapter": of_text_model,
        "T5Adapter": of_text_model,
        "BlipCaptionAdapter": partial(of_blip, whole=largest),
        "BlipVqaAdapter": partial(of_blip, whole=largest),
        "BlipRetrievalAdapter": partial(of_blip_retrieval, whole=largest),
        "Blip2Adapter": partial(of_blip2, whole=largest),
        "Blip2RetrievalAdapter": partial(of_retrieval, whole=largest),
        "ClipAdapter": of_pair,
        "SiglipAdapter": of_pair,
        "OpenClipAdapter": of_open_clip,
        "LavisBlipNlvrAdapter": of_nlvr,
        "LavisBlip2Adapter": lambda model, *rest: of_lavis(model, case.adapter, *rest, whole=largest),
    }
    with torch.no_grad():
        return ways.get(type(case.adapter).__name__, of_vision)(case.model, view, inputs)


def test_views_are_those_of_the_family(case: Case):
    wanted = set(VIEWS[max((name for name in VIEWS if case.name.startswith(name)), key=len)])
    if case.name.startswith("blip2_") and case.name != "blip2_retrieval":
        wanted = VIEWS["blip2"]
    if LAVIS:
        wanted -= {"decoder_with_past"}  # its transformers has no caches
    assert set(case.views) == wanted


def test_they_are_named_without_weights_and_without_a_processor(case: Case, tmp_path: Path):
    """A plan asks for their names before anything is read."""
    adapter, row = case.adapter, ROWS[case.name]
    if row.is_whole_on_disk:
        adapter.save(case.model, tmp_path)
        weightless = adapter.load(open_source(str(tmp_path), tmp_path), None, "meta")
    else:
        weightless = row.build().to("meta")
    adapter.processor = None
    views = adapter.export_views(weightless)  # type: ignore[attr-defined]
    assert {view.name: view.outputs for view in views} == {name: view.outputs for name, view in case.views.items()}
    assert all(parameter.is_meta for view in views for parameter in view.module.parameters())


def test_nothing_is_computed_with_the_model_for_them(case: Case):
    for module in case.model.modules():
        module.register_forward_hook(refuse_numbers)
    case.adapter.export_views(case.model)  # type: ignore[attr-defined]


def refuse_numbers(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    assert all(one.is_meta for one in (*args, output) if isinstance(one, Tensor)), type(module).__name__


@pytest.mark.parametrize("size", ["inputs", "other"])
def test_a_view_gives_what_its_model_gives(case: Case, size: str):
    for view in case.views.values():
        if view.name == "decoder_with_past":
            continue  # below, with a cache that means something
        found = run(view.module, getattr(view, size))
        assert len(found) == len(view.outputs) == len(set(view.outputs))
        wanted = expected(case, view, size)[: len(found)]
        if [*view.inputs] == ["input_ids", "attention_mask"] and view.outputs == ("logits",):
            real = getattr(view, size)["attention_mask"].bool()  # what is counted at padding nobody reads
            found, wanted = (tuple(one[real] for one in given) for given in (found, wanted))
        close(found, wanted)
        assert float(found[0].std()) > 1e-3


def test_traced_at_one_size_it_is_right_at_another(case: Case):
    for view in case.views.values():
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            traced = torch.jit.trace(view.module, tuple(view.inputs.values()), check_trace=False)
            for inputs in (view.inputs, view.other):
                close(traced(*inputs.values()), run(view.module, inputs))


def test_the_weights_are_the_models_own(case: Case):
    own = {id(parameter) for parameter in case.model.parameters()}
    for view in case.views.values():
        there = list(view.module.parameters())
        assert there
        assert {id(parameter) for parameter in there} <= own, view.name
        assert not any(module.training for module in view.module.modules())


def test_every_layer_is_in_some_view(case: Case):
    there = {id(one) for view in case.views.values() for one in view.module.parameters()}
    layers = [layer for t in case.adapter.towers(case.model) for b in t.blocks for layer in case.adapter.layers(b)]
    assert layers
    assert all(id(layer.weight) in there for layer in layers)


def test_a_view_holds_no_tower_that_it_does_not_run(case: Case):
    """What is not run would be in the file all the same."""
    towers = {tower.name: tower for tower in case.adapter.towers(case.model) if not tower.outside}
    strangers = {
        "vision": ("text", "language", "encoder", "decoder"),
        "text": ("vision",),
        "encoder": ("vision", "decoder"),
        "decoder": ("vision", "encoder"),
        "decoder_with_past": ("encoder",),
        "language": ("vision", "qformer"),
    }
    for view in case.views.values():
        there = {id(parameter) for parameter in view.module.parameters()}
        for name in strangers.get(view.name, ()):
            blocks = towers[name].blocks if name in towers else ()
            assert not [one for block in blocks for one in block.module.parameters() if id(one) in there], name


def test_axes_that_vary_are_those_that_differ(case: Case):
    for view in case.views.values():
        assert list(view.inputs) == list(view.other) == list(view.dynamic)
        sizes: dict[str, set[tuple[int, int]]] = {}
        for name, one in view.inputs.items():
            other, axes = view.other[name], view.dynamic[name]
            assert one.dtype == other.dtype
            assert one.device.type == "cpu"
            assert {axis for axis in range(one.ndim) if one.shape[axis] != other.shape[axis]} == set(axes), name
            for axis, called in axes.items():
                sizes.setdefault(called, set()).add((one.shape[axis], other.shape[axis]))
        assert all(len(found) == 1 for found in sizes.values()), "one name, one size"
        assert len({next(iter(found)) for found in sizes.values()}) == len(sizes), "two names, two sizes"
        masks = [one for name, one in view.inputs.items() if name.endswith("attention_mask")]
        assert all(0 < int(mask.sum()) < mask.numel() and bool((mask.sum(1) > 0).all()) for mask in masks)


def test_examples_are_the_same_every_time(case: Case):
    again = {view.name: view for view in case.adapter.export_views(case.model)}  # type: ignore[attr-defined]
    for name, view in case.views.items():
        for one, other in ((view.inputs, again[name].inputs), (view.other, again[name].other)):
            assert all(torch.equal(tensor, other[key]) for key, tensor in one.items())


@pytest.mark.parametrize("name", [name for name in sorted(ROWS) if not name.startswith("lavis")])
def test_in_16_bits_inputs_are_of_the_models_type(name: str):
    model, adapter = ROWS[name].build().to(torch.bfloat16), ROWS[name].adapter()
    for view in adapter.export_views(model):  # type: ignore[attr-defined]
        assert {tensor.dtype for tensor in view.inputs.values() if tensor.is_floating_point()} <= {torch.bfloat16}
        assert {made.dtype for made in run(view.module, view.inputs)} == {torch.bfloat16}


def cache_of(made: Any) -> Any:
    return getattr(made, "cache", None) or made.past_key_values


def layers_of(cache: Any) -> list[tuple[Tensor, ...]]:
    """Keys and values of each layer, by the way out that every version of transformers has."""
    if isinstance(cache, tuple):
        return list(cache)
    if hasattr(cache, "to_legacy_cache"):
        return list(cache.to_legacy_cache())
    if hasattr(cache, "self_attention_cache"):
        both = (layers_of(one) for one in (cache.self_attention_cache, cache.cross_attention_cache))
        return [own + other for own, other in zip(*both, strict=True)]
    return [(layer.keys, layer.values) for layer in cache.layers]


def step(view: View, inputs: Mapping[str, Tensor], past: list[Tensor]) -> tuple[Tensor, ...]:
    names = [name for name in view.inputs if name.startswith("past_key_values.")]
    found = run(view.module, {**inputs, **dict(zip(names, past, strict=True))})
    assert len(found) == len(view.outputs)
    return found


needs_caches = pytest.mark.skipif(LAVIS, reason="transformers 4.26 has no caches that are filled by hand")


@needs_caches
@pytest.mark.parametrize("name", ["llama", "llama-tied"])
@pytest.mark.parametrize("begins", [0, 1, 4])
def test_a_step_with_a_cache_is_that_of_the_whole_text(name: str, begins: int):
    """From an empty cache too, which is how a text begins."""
    case = case_of(name)
    view = case.views["decoder_with_past"]
    ids, mask = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1)), torch.ones(2, 7).long()
    mask[1, 0] = 0
    counted = torch.stack([torch.arange(7), torch.arange(-1, 6).clamp(min=0)])  # from each text's first word on
    with torch.no_grad():
        whole = case.model(input_ids=ids, attention_mask=mask, position_ids=counted, use_cache=True)
    kept = [tensor for layer in layers_of(cache_of(whole)) for tensor in layer[:2]]
    past = [tensor[:, :, :begins] for tensor in kept]
    logits, *present = step(view, {"input_ids": ids[:, begins:], "attention_mask": mask}, past)
    real = mask[:, begins:].bool()
    close(logits[real], whole.logits[:, begins:][real])
    for found, wanted in zip(present, kept, strict=True):
        close(found.transpose(1, 2)[mask.bool()], wanted.transpose(1, 2)[mask.bool()])


@needs_caches
@pytest.mark.parametrize("name", ["t5", "t5_untied_gated", "mt5"])
def test_a_decoder_begins_and_goes_on_with_what_it_gave(name: str):
    case = case_of(name)
    decoder, goes_on = case.views["decoder"], case.views["decoder_with_past"]
    _, hidden, mask = decoder.other.values()
    ids = torch.randint(3, 60, (3, 6), generator=torch.Generator().manual_seed(2))
    whole, *kept = run(decoder.module, {"input_ids": ids, "hidden": hidden, "mask": mask})
    first, *past = run(decoder.module, {"input_ids": ids[:, :1], "hidden": hidden, "mask": mask})
    close(first, whole[:, :1])
    for at in range(1, 6):
        inputs = {"input_ids": ids[:, at : at + 1], "encoder_attention_mask": mask}
        logits, *grown = step(goes_on, inputs, past)
        close(logits, whole[:, at : at + 1])
        own = dict(zip(goes_on.outputs[1:], grown, strict=True))
        # what Optimum's loop does: the decoder's own grow, and the encoder's stay
        past = [own.get(name, before) for name, before in zip(decoder.outputs[1:], past, strict=True)]
    close(past, kept)
    assert [name.replace("present", "past_key_values") for name in decoder.outputs[1:]] == list(goes_on.inputs)[2:]


@pytest.mark.parametrize("name", [name for name in ("blip2_t5", "blip2_opt", "blip2_llama") if name in ROWS])
def test_vision_and_language_are_all_of_it(name: str):
    """The text model in the whole forward is given what the view of language takes, with the image where it belongs."""
    case = case_of(name)
    inputs = case.views["all"].other
    (whole,) = run(case.views["all"].module, inputs)
    given, _ = watched(case.model.language_model, lambda: case.model(**inputs, use_cache=False))
    language = case.views["language"]
    (logits,) = run(language.module, {key: given[key] for key in language.inputs})
    close(logits, whole)
    (image,) = run(case.views["vision"].module, {"pixel_values": inputs["pixel_values"]})
    is_image = inputs["input_ids"] == case.model.config.image_token_index
    close(given["inputs_embeds"][is_image], image.flatten(0, 1))


@pytest.mark.skipif(not LAVIS, reason="needs salesforce-lavis")
@pytest.mark.parametrize("name", [name for name in ROWS if name.startswith("lavis BLIP-2") and "retrieval" not in name])
def test_vision_and_language_of_lavis_are_all_of_it(name: str):
    from ecoflap.adapters.lavis_blip2.adapter import logits_and_labels

    case = case_of(name)
    batch: Batch = case.adapter.collate(case.model, list(ROWS[name].samples(3)))
    text, view = (case.model.t5_model if "T5" in name else case.model.opt_model), case.views["language"]
    given, made = watched(text, lambda: logits_and_labels(case.model, batch))
    inputs = {key: given[key] for key in ("inputs_embeds", "attention_mask")}
    if "decoder_input_ids" in view.inputs:
        inputs["decoder_input_ids"] = text._shift_right(given["labels"])
    (logits,) = run(view.module, inputs)
    # LAVIS masks a decoder's padding, which nothing that is said can see
    real = given["labels"] != -100 if "T5" in name else given["attention_mask"].bool()
    close(logits[real], made.logits[real])
    (image,) = run(case.views["vision"].module, {"pixel_values": batch["image"]})
    close(given["inputs_embeds"][:, : image.shape[1]], image)
