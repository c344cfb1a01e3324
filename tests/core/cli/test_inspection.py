"""A model is shown as its adapter takes it apart, and everything that is never pruned with its reason."""

import pytest

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.cli.inspection import inspection
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.errors import ModelError, RegistryError
from ecoflap.core.registry.registry import load_registry


@pytest.fixture
def shown(pico_llama, pico_tokenizer, tmp_path):
    """The rows of each table about a pico LLaMA, by the table's title."""

    def shown(adapter=None, **keywords):
        # transformers 4.26 cannot write tied weights as safetensors; only the configuration is looked at
        safe = not keywords.get("tied")
        pico_llama(**keywords).save_pretrained(tmp_path / "model", safe_serialization=safe)
        pico_tokenizer.save_pretrained(tmp_path / "model")
        sections = inspection(str(tmp_path / "model"), adapter, load_registry(allow_code=True))
        return {section.title: list(section.rows) for section in sections}

    return shown


@pytest.mark.parametrize(
    ("family", "adapter", "name", "sure"),
    [
        ("llama", None, "llama", "special: written for this family"),
        ("gemma2", None, "causal_lm", "generic: no family's own adapter claims it"),
        ("gemma2", "llama", "llama", "named, and it does not claim this model"),
    ],
)
def test_the_adapter_is_named_and_how_sure_it_is(family, adapter, name, sure, shown):
    pytest.importorskip(f"transformers.models.{family}", reason="transformers here is too old for it")
    ((found, why),) = shown(adapter, family=family)["adapter"]
    assert found == name
    assert why.startswith(sure)


def test_blocks_that_are_alike_share_their_rows(shown):
    title, rows = list(shown().items())[2]
    assert title == "layers of each block"
    assert rows[0] == ("model.layers.0 … model.layers.2 (3)", "self_attn.q_proj.weight", "32×32", "1,024", "language")
    assert {row[0] for row in rows[1:]} == {""}
    assert list(shown(layers=1).items())[2][1][0][0] == "model.layers.0"


def test_the_experts_of_one_parameter_share_a_row_and_their_router_is_kept(tmp_path):
    pytest.importorskip("transformers", minversion="5.0", reason="experts are packed from transformers 5 on")
    from pico_causal import FAMILIES

    FAMILIES["mixtral"].build().save_pretrained(tmp_path)
    tables = {section.title: list(section.rows) for section in inspection(str(tmp_path), None, load_registry())}
    rows = {name: rest for _, name, *rest in tables["layers of each block"]}
    assert rows["mlp.experts.gate_up_proj[0 … 3] (4)"] == ["96×32", "3,072 each", "language"]
    assert rows["mlp.experts.down_proj[0 … 3] (4)"] == ["32×48", "1,536 each", "language"]
    (kept,) = (rows for title, rows in tables.items() if title.startswith("never pruned"))
    assert (
        "model.layers.0.mlp.gate.weight",
        "4×32",
        "router: it chooses which experts run, or which tokens are read",
    ) in kept


def test_a_tied_head_is_shown_with_its_other_name(shown):
    title = "outside the blocks: kept unless a recipe's include: names it"
    assert shown(tied=True)[title] == [("lm_head", "64×32", "2,048", "model.embed_tokens.weight")]
    assert shown(tied=False)[title] == [("lm_head", "64×32", "2,048", "")]


def test_what_is_never_pruned_is_counted_whole_and_shown_by_example(shown):
    title, rows = list(shown().items())[-1]
    assert title == f"never pruned: {64 * 32 + 7 * 32:,} parameters"
    assert [(name, reason) for name, _, reason in rows] == [
        ("model.embed_tokens.weight", "embedding"),
        ("model.layers.0.input_layernorm.weight", "norm"),
        ("model.layers.0.post_attention_layernorm.weight", "norm"),
        ("model.norm.weight", "norm"),
    ]


def test_an_adapter_may_be_named(shown, tmp_path):
    assert shown("llama") == shown()
    assert shown(f"{__name__}:Same")["adapter"][0][0] == f"{__name__}:Same"
    with pytest.raises(RegistryError, match=r"no adapter named 'lama'\. Did you mean 'llama'\?"):
        shown("lama")
    with pytest.raises(ModelError, match="nowhere"):
        inspection(str(tmp_path / "nowhere"), None, load_registry())


def test_a_generic_adapter_that_is_named_says_which_one_is_written_for_the_family(shown):
    pytest.importorskip("transformers", minversion="5.0", reason="generic adapters are tested with what they are for")
    assert shown("causal_lm")["adapter"] == [("causal_lm", "named, and generic: without that it would be llama")]


def test_what_is_named_and_is_no_adapter_is_refused(shown):
    with pytest.raises(RegistryError, match=r"^json:loads: it is no class, and does not say that it makes an adapter"):
        shown("json:loads")
    with pytest.raises(RegistryError, match=r"json:JSONDecoder: it is no adapter: it has no matches, load, "):
        shown("json:JSONDecoder")


class Same(LlamaAdapter):
    """One that is registered under no name."""


class Towerless(LlamaAdapter):
    def towers(self, model):
        raise KeyError("model.layers")


def test_an_adapter_whose_code_raises_is_named(shown):
    with pytest.raises(
        PartError, match=r"the adapter Towerless, taking .*model apart, raised KeyError: 'model\.layers'"
    ):
        shown(f"{__name__}:Towerless")
