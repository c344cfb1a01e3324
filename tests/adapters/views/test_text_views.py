"""Views of text models that no family's adapter claims: what each gives, its files, and why some cannot be."""

from collections.abc import Mapping
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from exported import half_pruned
from pico_causal import FAMILIES as CAUSAL
from pico_encoders import FAMILIES as ENCODERS
from pico_seq2seq import FAMILIES as PAIRS
from table import GENERIC_ROWS
from torch import Tensor

from ecoflap.adapters.generic.seq2seq_lm import Seq2SeqLMAdapter
from ecoflap.adapters.views.view import without
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.contracts.records import View
from ecoflap.exporters.torchscript.store import quiet

pytest.importorskip("transformers", minversion="5.0", reason="before, models had caches of kinds of their own")

from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

VIEWS = {
    **dict.fromkeys(CAUSAL, ("decoder", "decoder_with_past")),
    **dict.fromkeys(PAIRS, ("encoder", "decoder", "decoder_with_past")),
    **dict.fromkeys(ENCODERS, ("encoder",)),
    **dict.fromkeys(("qwen3_5_text", "gemma3n_text", "mamba2", "jamba", "deepseek_v4"), ("decoder",)),
}
REFUSED = {
    ("dbrx", "decoder"): "it runs in a loop over the experts that a router chose",
    ("dbrx", "decoder_with_past"): "it runs in a loop over the experts that a router chose",
    ("deepseek_v4", "decoder_with_past"): "a DeepseekV4CSACache is what 2 of its 2 layers keep of a text",
    ("jamba", "decoder"): "it runs in a loop over its text",
    ("jamba", "decoder_with_past"): "a LinearAttentionLayer is what 1 of its 2 layers keep of a text",
    ("gemma3n_text", "decoder_with_past"): "a DummyLayer is what 1 of its 2 layers keep of a text",
    ("mamba2", "decoder"): "it fills its text up to a multiple",
    ("mamba2", "decoder_with_past"): "a LinearAttentionLayer is what 2 of its 2 layers keep of a text",
    ("qwen3_5_text", "decoder"): "it runs in a loop over its text",
    ("qwen3_5_text", "decoder_with_past"): "a LinearAttentionLayer is what 1 of its 2 layers keep of a text",
    ("llama4_text", "decoder", "onnx"): "it computes with complex numbers",
    ("llama4_text", "decoder_with_past", "onnx"): "it computes with complex numbers",
}
"""By row, view and, where the other can write it, exporter."""
CHEAP = {
    ("gpt2", "decoder_with_past", "torchscript"),
    ("bart", "decoder", "torchscript"),
    ("bert", "encoder", "torchscript"),
    ("bert", "encoder", "onnx"),
}


def views_of(name: str) -> tuple[Any, dict[str, View]]:
    row = GENERIC_ROWS[name]
    model, adapter = row.build(), row.adapter()
    return model, {view.name: view for view in adapter.export_views(model)}  # type: ignore[attr-defined]


def why_not(name: str, view: str, exporter: str) -> str:
    return REFUSED.get((name, view), REFUSED.get((name, view, exporter), ""))  # type: ignore[call-overload, no-any-return]


def run(view: View, *inputs: Tensor) -> tuple[Tensor, ...]:
    with torch.no_grad():
        given: tuple[Tensor, ...] = view.module(*inputs)
    return given


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def empty_past(view: View) -> list[Tensor]:
    """A cache of two rows with nothing in it."""
    return [tensor[:2, :, :0] for key, tensor in view.inputs.items() if key.startswith("past_key_values.")]


def text(length: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Two rows, the second of them padded on the left."""
    ids = torch.randint(5, 60, (2, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    return ids, mask


@pytest.mark.parametrize("name", sorted(VIEWS))
def test_views_and_what_cannot_be_one_are_known_without_weights(name: str):
    row = GENERIC_ROWS[name]
    model, adapter = row.build().to("meta"), row.adapter()
    adapter.processor = None
    views = adapter.export_views(model)  # type: ignore[attr-defined]
    assert tuple(view.name for view in views) == VIEWS[name]
    for exporter in ("onnx", "torchscript"):
        refused = adapter.views_refused(model, exporter)  # type: ignore[attr-defined]
        wanted = {view: why for view in ("encoder", *VIEWS["gpt2"]) if (why := why_not(name, view, exporter))}
        assert refused.keys() == wanted.keys()
        assert all(refused[view].startswith(why) for view, why in wanted.items())


# DeepSeek-V4 cuts its text into windows from the first place on, be that padding or not.
@pytest.mark.parametrize("name", sorted(CAUSAL.keys() - {"deepseek_v4"}))
def test_padding_on_the_left_changes_nothing_of_a_text(name: str):
    """Models that learnt a vector for each position are told where a text begins, as ``generate`` tells them."""
    model, views = views_of(name)
    ids, _ = text(7)
    for length in (7, 4):  # the second with padding before it
        mask = (torch.arange(7) >= 7 - length).long().expand(2, 7)
        with torch.no_grad():
            alone = model(input_ids=ids[:, 7 - length :]).logits
        close(run(views["decoder"], ids, mask)[0][:, 7 - length :], alone)
        if "decoder_with_past" in views:
            past = empty_past(views["decoder_with_past"])
            close(run(views["decoder_with_past"], ids, mask, *past)[0][:, 7 - length :], alone)


@pytest.mark.parametrize("name", sorted(name for name in CAUSAL if "decoder_with_past" in VIEWS[name]))
def test_steps_with_a_cache_are_the_whole_text(name: str):
    """From an empty cache on, and across the window of those that have one."""
    model, views = views_of(name)
    ids, mask = text(20)
    given = {"input_ids": ids, "attention_mask": mask}
    if "position_ids" in signature(model.forward).parameters:  # the second row begins behind three tokens of padding
        given["position_ids"] = torch.stack([torch.arange(20), torch.arange(-3, 17).clamp(min=0)])
    with torch.no_grad():
        whole = model(**given, use_cache=False).logits
    close(run(views["decoder"], ids, mask)[0], whole)
    goes_on = views["decoder_with_past"]
    past = empty_past(goes_on)
    for begin, end in ((0, 6), (6, 12), (12, 13), (13, 20)):
        logits, *past = run(goes_on, ids[:, begin:end], mask[:, :end], *past)
        real = mask[:, begin:end].bool()
        close(logits[real], whole[:, begin:end][real])
        assert {tensor.shape[2] for tensor in past} == {end}


# MPT takes no positions: it counts how far apart two places are, be there padding between them or not.
@pytest.mark.parametrize(
    "name", sorted(name for name in CAUSAL if "decoder_with_past" in VIEWS[name] and name != "mpt")
)
def test_a_text_goes_on_behind_padding_on_the_right(name: str):
    model, views = views_of(name)
    goes_on, (ids, _), (more, _) = views["decoder_with_past"], text(5), text(3, seed=2)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 1, 1, 1]])
    _, *past = run(goes_on, ids, mask[:, :5], *empty_past(goes_on))
    first, *past = run(goes_on, more[:, :1], mask[:, :6], *past)
    rest, *_ = run(goes_on, more[:, 1:], mask, *past)
    found = torch.cat([first, rest], dim=1)
    for row, length in ((0, 5), (1, 3)):
        whole = torch.cat([ids[row, :length], more[row]])[None]
        with torch.no_grad():
            alone = model(input_ids=whole, attention_mask=torch.ones_like(whole), use_cache=False).logits
        close(found[row], alone[0, length:])


@pytest.mark.parametrize("name", sorted(PAIRS))
def test_a_decoder_reads_what_the_encoder_gave_and_goes_on_from_its_own(name: str):
    model, views = views_of(name)
    ids, mask = text(9)
    said, _ = text(6, seed=2)
    with torch.no_grad():
        whole = model(input_ids=ids, attention_mask=mask, decoder_input_ids=said, use_cache=False).logits
    (hidden,) = run(views["encoder"], ids, mask)
    close(run(views["decoder"], said, hidden, mask)[0], whole)
    logits, *past = run(views["decoder"], said[:, :2], hidden, mask)
    for begin, end in ((2, 3), (3, 6)):
        logits, *own = run(views["decoder_with_past"], said[:, begin:end], mask, *past)
        close(logits, whole[:, begin:end])
        grown = dict(zip(views["decoder_with_past"].outputs[1:], own, strict=True))
        past = [grown.get(key, before) for key, before in zip(views["decoder"].outputs[1:], past, strict=True)]


@pytest.mark.parametrize("name", sorted(ENCODERS))
def test_an_encoder_gives_the_logits_of_masked_words(name: str):
    model, views = views_of(name)
    ids, mask = text(40)
    with torch.no_grad():
        close(run(views["encoder"], ids, mask)[0], model(input_ids=ids, attention_mask=mask).logits)


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_what_is_not_run_is_not_there(name: str):
    model, views = views_of(name)
    own = {id(one) for one in model.parameters()}
    for view, stranger in (("encoder", "decoder"), ("decoder", "encoder"), ("decoder_with_past", "encoder")):
        there = {id(one) for one in views[view].module.parameters()}
        assert there <= own
        assert not there & {id(one) for one in model.get_submodule(f"model.{stranger}.layers").parameters()}


def test_a_module_without_some_of_its_inside_leaves_the_whole_as_it_is():
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU()), torch.nn.Linear(2, 2))
    rest = without(model, "0.0", "1")
    assert [name for name, _ in rest.named_modules()] == ["", "0", "0.1"]
    assert len(list(model.modules())) == 5
    assert rest.get_submodule("0.1") is model.get_submodule("0.1")


def matrix() -> list[Any]:
    """Every view of every row through both exporters; all but a few take seconds each, most of a minute together."""
    return [
        pytest.param(name, view, exporter, marks=() if (name, view, exporter) in CHEAP else pytest.mark.slow)
        for name, views in VIEWS.items()
        for view in views
        for exporter in ("onnx", "torchscript")
        if not why_not(name, view, exporter)
    ]


@pytest.mark.parametrize(("name", "view", "exporter"), matrix())
def test_a_file_is_the_view_for_a_longer_text_too(name: str, view: str, exporter: str, tmp_path: Path):
    """What an exporter compares is two short texts."""
    pruned = half_pruned(name)
    path, check = exported(pruned, view, exporter, tmp_path)
    made = next(one for one in pruned.adapter.export_views(pruned.model) if one.name == view)  # type: ignore[attr-defined]
    assert check.difference <= check.tolerance
    inputs = {key: longer(made, key) for key in made.inputs}
    for found, wanted in zip(loaded(path, exporter, made, inputs), run(made, *inputs.values()), strict=True):
        close(found, wanted)


def exported(pruned: PrunedModel, view: str, exporter: str, folder: Path) -> tuple[Path, Any]:
    if exporter == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
        from ecoflap.exporters.onnx.exporter import Onnx as Exporter
    else:
        from ecoflap.exporters.torchscript.exporter import TorchScript as Exporter
    written = Exporter(views=(view,))(pruned, folder)
    return written.files[0], written.checks[0]


def loaded(path: Path, exporter: str, view: View, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    if exporter == "torchscript":
        with torch.no_grad(), quiet():
            return list(torch.jit.load(path)(*inputs.values()))  # type: ignore[no-untyped-call]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    made = session.run(list(view.outputs), {key: tensor.numpy() for key, tensor in inputs.items()})
    return [torch.from_numpy(one) for one in made]


def longer(view: View, name: str) -> Tensor:
    """The first example, of 8 tokens, said again: four times, and twice where a cache makes it longer."""
    tensor, times, axes = view.inputs[name], 4 if len(view.inputs) <= 3 else 2, view.dynamic[name]
    return tensor.repeat([times if axes.get(axis, "batch") != "batch" else 1 for axis in range(tensor.ndim)])


def test_a_decoder_of_experts_that_reads_an_encoder_is_run_as_its_model_runs_it():
    """It asks the encoder for what its routers gave, and is refused for what it does itself."""
    config = SwitchTransformersConfig(
        vocab_size=50, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, decoder_start_token_id=0,
    )  # fmt: skip
    refused = Seq2SeqLMAdapter().views_refused(SwitchTransformersForConditionalGeneration(config).eval(), "onnx")
    assert "a loop over the experts that a router chose" in refused["decoder"]
