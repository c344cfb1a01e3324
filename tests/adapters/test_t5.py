import json
import math
from pathlib import Path
from typing import Any

import pico_t5
import pytest
import torch
import torch.nn.functional as F
from column_norms import column_norms
from transformers_version import is_before

from ecoflap import Replay
from ecoflap.adapters.t5 import T5Adapter
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source

SAMPLES = [*pico_t5.windows(2), *pico_t5.questions(2), *pico_t5.texts(2)]


@pytest.fixture
def adapter() -> T5Adapter:
    return pico_t5.adapter()


def terms_by_hand(model: Any, encoder: list[int], said: list[int]) -> list[float]:
    """Token by token in float64, each from a forward of its own that sees only what precedes it."""
    exact = type(model)(model.config).double().eval()
    if model.lm_head.weight is not model.shared.weight:
        pico_t5.untie(exact)
    exact.load_state_dict(model.state_dict())
    terms = []
    for at, token in enumerate(said):
        before = torch.tensor([[0, *said[:at]]])
        with torch.no_grad():
            logits = exact(input_ids=torch.tensor([encoder]), decoder_input_ids=before, use_cache=False).logits
        terms.append(-float(logits.double()[0, -1].log_softmax(-1)[token]))
    return terms


def real(row: torch.Tensor, mask: torch.Tensor) -> list[int]:
    return row[mask.bool()].tolist()


def test_is_an_adapter(adapter: T5Adapter):
    assert isinstance(adapter, Adapter)


@pytest.mark.parametrize(
    ("config", "claimed"),
    [
        ({"model_type": "t5"}, True),
        ({"model_type": "t5", "architectures": ["T5WithLMHeadModel"]}, True),
        ({"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}, True),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, False),
        ({"model_type": "llama"}, False),
        ({}, False),
    ],
)
def test_claims_by_configuration(config: dict[str, Any], claimed: bool, adapter: T5Adapter):
    assert adapter.matches(Source("x", config=config)) is claimed


def test_claims_a_model_in_memory_by_its_structure(adapter: T5Adapter):
    model = pico_t5.build()
    assert adapter.matches(in_memory(model))
    assert adapter.matches(Source("mine", model=model))
    assert not adapter.matches(in_memory(model.encoder))
    assert not adapter.matches(Source("mine", model=torch.nn.Linear(2, 2)))


def test_anatomy(adapter: T5Adapter):
    model = pico_t5.build(gated=True)
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, {"lm_head"})
    assert [block.name for block in anatomy.blocks] == [
        "encoder.block.0", "encoder.block.1", "decoder.block.0", "decoder.block.1", "lm_head",
    ]  # fmt: skip
    layers = {layer.name: layer for _, layer in anatomy.layers()}
    assert len(layers) == 2 * 7 + 2 * 11 + 1
    assert {name for name, layer in layers.items() if layer.reads == "encoder"} == {
        f"decoder.block.{i}.layer.1.EncDecAttention.{matrix}.weight" for i in (0, 1) for matrix in "kv"
    }
    assert (layers["lm_head.weight"].reads, layers["lm_head.weight"].layout) == ("decoder", "batch token")
    assert not [name for name in layers if "relative_attention_bias" in name]


def test_a_window_is_cut_in_the_middle(adapter: T5Adapter):
    windows = pico_t5.windows(2)
    batch = adapter.collate(pico_t5.build(), windows)
    for window, ids, mask, labels in zip(windows, *batch.values(), strict=True):
        assert window.tokens is not None
        middle = len(window.tokens) // 2
        assert real(ids, mask) == window.tokens[:middle].tolist()
        assert real(labels, labels != -100) == window.tokens[middle:].tolist()


def test_a_question_is_read_and_its_first_answer_said(adapter: T5Adapter):
    batch = adapter.collate(
        pico_t5.build(), [Sample(question="what is this ?", answers=("a w1", "w2")), Sample(question="a", text="w3")]
    )
    assert batch["input_ids"].tolist() == [[3, 4, 5, 8, 1], [6, 1, 0, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert batch["labels"].tolist() == [[6, 11, 1], [13, 1, -100]]


def test_text_alone_is_cut_in_the_middle_of_its_tokens(adapter: T5Adapter):
    batch = adapter.collate(pico_t5.build(), [Sample(text="this is a w0 .")])
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[5, 4, 6]], [[10, 9, 1]])


@pytest.mark.parametrize(
    ("sample", "problem"),
    [
        (Sample(), "sample 1 of a batch holds neither tokens, nor text"),
        (Sample(question="what"), "nor a question with an answer"),
        (Sample(tokens=torch.tensor([5])), "sample 1 of a batch holds 1 tokens: at least two"),
    ],
)
def test_collate_says_what_is_missing(sample: Sample, problem: str, adapter: T5Adapter):
    with pytest.raises(DataError, match=problem):
        adapter.collate(pico_t5.build(), [Sample(text="this is"), sample])


def test_collate_needs_a_tokenizer_for_text_alone():
    model = pico_t5.build()
    with pytest.raises(DataError, match=r"needs a tokenizer .*tokenizer\.json .* give ecoflap\.run a processor"):
        T5Adapter().collate(model, [Sample(text="this is")])
    assert T5Adapter().collate(model, pico_t5.windows(1))["labels"].numel()
    with pytest.raises(DataError, match="at least one sample"):
        T5Adapter().collate(model, [])


def test_tokens(adapter: T5Adapter):
    model = pico_t5.build()
    batch = adapter.collate(model, SAMPLES)
    encoder, decoder = (adapter.tokens(model, batch, tower) for tower in ("encoder", "decoder"))
    assert encoder.dtype == decoder.dtype == torch.int8
    assert torch.equal(encoder, batch["attention_mask"])
    assert torch.equal(decoder.bool(), batch["labels"] != -100)
    assert 0 < int(decoder.sum()) < decoder.numel()


@pytest.mark.parametrize("kind", sorted(pico_t5.FAMILIES))
def test_loss_is_the_mean_over_what_the_decoder_says(kind: str, adapter: T5Adapter):
    """A tied head of T5 reads the decoder's states scaled, one of its own and mT5's do not: the model sees to that."""
    model = pico_t5.FAMILIES[kind].build()
    batch = adapter.collate(model, SAMPLES)
    with torch.no_grad():
        loss = adapter.loss(model, batch)
        theirs = model(**batch, use_cache=False).loss
    terms: list[float] = []
    for ids, mask, labels in zip(*batch.values(), strict=True):
        terms += terms_by_hand(model, real(ids, mask), real(labels, labels != -100))
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(math.fsum(terms) / len(terms), rel=1e-6)
    torch.testing.assert_close(loss.float(), theirs, rtol=1e-6, atol=0)


def test_difference_of_two_losses_is_accurate(adapter: T5Adapter):
    model = pico_t5.build()
    batch = adapter.collate(model, SAMPLES)
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    found = []
    for net in (model, exact):
        weight = net.decoder.block[1].layer[1].EncDecAttention.v.weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7)).to(weight)
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                weight.add_(noise, alpha=sign * 1e-2)
                logits = net(**batch, use_cache=False).logits.double()
                wide = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
                losses.append(float(adapter.loss(net, batch) if net is model else wide))
                weight.sub_(noise, alpha=sign * 1e-2)
        found.append(losses[0] - losses[1])
    assert found[0] == pytest.approx(found[1], rel=0.01)


def test_padding_changes_nothing(adapter: T5Adapter):
    model, samples = pico_t5.build(), SAMPLES[:2]
    alone = adapter.collate(model, samples)
    wide = {
        "input_ids": F.pad(alone["input_ids"], (0, 6)),
        "attention_mask": F.pad(alone["attention_mask"], (0, 6)),
        "labels": F.pad(alone["labels"], (0, 4), value=-100),
    }
    with torch.no_grad():
        torch.testing.assert_close(adapter.loss(model, wide), adapter.loss(model, alone), rtol=1e-6, atol=0)


def test_the_position_bias_of_the_first_block_reaches_the_others(adapter: T5Adapter):
    """Another bias in a tower's first block changes what the second one's projection reads."""

    def seen(change: bool) -> dict[str, torch.Tensor]:
        model = pico_t5.build()
        if change:
            with torch.no_grad():
                for stack in (model.encoder, model.decoder):
                    stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.neg_()
        replay = Replay(model, adapter, [adapter.collate(model, SAMPLES)])
        found: dict[str, torch.Tensor] = {}
        for index in range(len(replay.blocks)):
            found |= {name: statistic.squared for name, statistic in column_norms(replay, index).items()}
            replay.advance(index)
        return found

    as_is, changed = seen(False), seen(True)
    for stack in ("encoder", "decoder"):
        name = f"{stack}.block.1.layer.0.SelfAttention.o.weight"
        assert not torch.allclose(as_is[name], changed[name], rtol=1e-4)


def test_statistics_where_batch_encoder_and_decoder_are_of_one_length(adapter: T5Adapter):
    """Their sizes tell nothing apart, so only the right mask gives the right counts."""
    model = pico_t5.build()
    batch = {
        "input_ids": torch.randint(3, 60, (4, 4), generator=torch.Generator().manual_seed(2)),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 0]]),
        "labels": torch.tensor([[5, 6, -100, -100], [7, 8, 9, 1], [4, 1, -100, -100], [9, 9, 1, -100]]),
    }
    replay = Replay(model, adapter, [batch], anatomy=Anatomy.of(adapter.towers(model), adapter.layers, {"lm_head"}))
    for index, block in enumerate(replay.blocks):
        for name, statistic in column_norms(replay, index).items():
            reads = (
                "encoder" if name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight")) else block.tower
            )
            assert statistic.tokens == (10 if reads == "encoder" else 11), name
        replay.advance(index)


def test_loads_a_folder(adapter: T5Adapter, tmp_path: Path):
    model = pico_t5.build()
    adapter.save(model, tmp_path)
    source, other = open_source(str(tmp_path), tmp_path), T5Adapter()
    assert other.matches(source)
    weightless = other.load(source, None, "meta")
    assert other.processor is None
    assert {parameter.device.type for parameter in weightless.parameters()} == {"meta"}
    loaded = other.load(source, None, "cpu")
    assert not loaded.training
    assert other.max_length(loaded) is None
    assert other.processor("what is")["input_ids"] == [3, 4, 1]
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert other.load(in_memory(model), None, "cpu") is model


@pytest.mark.parametrize("kind", sorted(pico_t5.FAMILIES))
def test_saved_it_stays_tied_or_untied(kind: str, adapter: T5Adapter, tmp_path: Path):
    model = pico_t5.FAMILIES[kind].build()
    batch = adapter.collate(model, SAMPLES)
    tied = model.lm_head.weight is model.shared.weight
    adapter.save(model, tmp_path)
    again = adapter.load(open_source(str(tmp_path), tmp_path), None, "cpu")
    assert (again.lm_head.weight is again.shared.weight) is tied is (kind == "t5")
    weightless = adapter.load(open_source(str(tmp_path), tmp_path), None, "meta")
    assert (weightless.lm_head.weight is weightless.shared.weight) is tied
    assert again.encoder.embed_tokens.weight is again.shared.weight is again.decoder.embed_tokens.weight
    assert json.loads((tmp_path / "config.json").read_text()).get("tie_word_embeddings", True) is tied
    assert torch.equal(again(**batch, use_cache=False).logits, model(**batch, use_cache=False).logits)
    adapter.save(again, tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


@pytest.mark.skipif(is_before("5"), reason="one flag says both that it is tied and that it is scaled")
@pytest.mark.parametrize("tied", [True, False])
def test_a_loss_is_scaled_as_before_after_saving(tied: bool, adapter: T5Adapter, tmp_path: Path):
    """An untied T5 whose states are scaled, and a tied one whose are not, are rare and stay what they are."""
    model = pico_t5.build(tied=not tied)
    batch = adapter.collate(model, SAMPLES)
    if tied:
        model.lm_head.weight = model.shared.weight
    else:
        pico_t5.untie(model)
        torch.nn.init.normal_(model.lm_head.weight, generator=torch.Generator().manual_seed(1))
    adapter.save(model, tmp_path)
    with torch.no_grad():
        before = adapter.loss(model, batch)
        assert torch.equal(adapter.loss(adapter.load(open_source(str(tmp_path), tmp_path), None, "cpu"), batch), before)


def test_float16_keeps_wo_in_float32(adapter: T5Adapter, tmp_path: Path):
    adapter.save(pico_t5.build(), tmp_path / "wide")
    half = adapter.load(open_source(str(tmp_path / "wide"), tmp_path), torch.float16, "cpu")
    adapter.save(half, tmp_path / "half")
    again = adapter.load(open_source(str(tmp_path / "half"), tmp_path), None, "cpu")
    for model in (half, again):
        types = {name: parameter.dtype for name, parameter in model.named_parameters()}
        assert {name.split(".")[-2] for name, dtype in types.items() if dtype == torch.float32} == {"wo"}
        assert {dtype for name, dtype in types.items() if ".wo." not in name} == {torch.float16}
    torch.testing.assert_close(again.state_dict(), half.state_dict(), rtol=0, atol=0)


def test_a_folder_without_weights_is_refused(adapter: T5Adapter, tmp_path: Path):
    pico_t5.build().config.save_pretrained(tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    assert adapter.load(source, None, "meta").lm_head.weight.device.type == "meta"
    with pytest.raises(ModelError, match="no weights"):
        adapter.load(source, None, "cpu")


def test_what_blocks_hand_on_is_counted_as_hooks_see_it(adapter: T5Adapter):
    """Of a text of sixteen tokens: what the second block of each tower is given with as many heads as there are."""
    model = pico_t5.build()
    heads, seen = model.config.num_heads, dict.fromkeys(("encoder", "decoder"), 0)

    def count(tower: str) -> Any:
        def hook(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensors = [one for one in (*given, *named.values()) if isinstance(one, torch.Tensor)]
            seen[tower] += sum(one.numel() for one in tensors if one.dim() == 4 and one.shape[1] == heads)

        return hook

    for tower in seen:
        model.get_submodule(f"{tower}.block.1").register_forward_pre_hook(count(tower), with_kwargs=True)
    with torch.no_grad():
        adapter.loss(model, adapter.collate(model, [Sample(tokens=torch.arange(3, 19))]))
    assert seen == {tower: adapter.handed_on(model, tower, 16) for tower in seen}
    assert seen["decoder"] == 2 * seen["encoder"] == 2 * heads * 8 * 8
    assert adapter.handed_on(model, "lm_head", 16) == 0
