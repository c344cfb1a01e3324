"""What is known, and refused, before weights are read; and what the plan command makes of it."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

import ecoflap
from ecoflap.adapters.hubs.hugging_face import save_model
from ecoflap.core.cli.inspection import inspection
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.errors import EcoflapError, ModelError, RecipeError
from ecoflap.core.model.source import Source
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.adapter_for import adapter_for
from ecoflap.core.registry.registry import load_registry

TOWERS = '''
"""T5 with its two towers, read as pairs of the same words."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from ecoflap import Block, Layer, Tower, hookimpl
from ecoflap.adapters.hubs.hugging_face import save_model


class T5Adapter:
    processor: Any = None

    def matches(self, source):
        return source.config.get("model_type") == "t5"

    def load(self, source, dtype, device):
        from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

        if device == "meta":
            with torch.device("meta"):
                return T5ForConditionalGeneration(AutoConfig.for_model(**source.config)).eval()
        self.processor = AutoTokenizer.from_pretrained(source.path)
        return T5ForConditionalGeneration.from_pretrained(source.path).eval()

    def towers(self, model):
        def tower(name):
            blocks = getattr(model, name).block
            return Tower(name, tuple(Block(f"{name}.block.{i}", block, name) for i, block in enumerate(blocks)))

        return [tower("encoder"), tower("decoder")]

    def layers(self, block):
        cross = ("EncDecAttention.k", "EncDecAttention.v")
        return [
            Layer(f"{block.name}.{name}.weight", module, reads="encoder" if name.endswith(cross) else "")
            for name, module in block.module.named_modules()
            if isinstance(module, nn.Linear)
        ]

    def max_length(self, model):
        return None

    def collate(self, model, samples):
        tokens = torch.stack([sample.tokens for sample in samples])
        return {"input_ids": tokens, "labels": tokens[:, :6].contiguous()}

    def loss(self, model, batch):
        return model(**batch, use_cache=False).loss.double()

    def tokens(self, model, batch, tower, call=0):
        return torch.ones_like(batch["input_ids" if tower == "encoder" else "labels"], dtype=torch.int8)

    def save(self, model, folder: Path):
        save_model(model, self.processor, folder)


@hookimpl
def ecoflap_register_adapters():
    return {"towers": T5Adapter}
'''


RAISES = """
from ecoflap import hookimpl
from ecoflap.adapters.llama import LlamaAdapter


class Odd(LlamaAdapter):
    def matches(self, source):
        return source.config["odd"]


@hookimpl
def ecoflap_register_adapters():
    return {"odd": Odd}
"""


def test_an_adapter_that_raises_where_it_is_asked_is_named_with_how_to_go_on_without_it(plain, tmp_path, monkeypatch):
    (tmp_path / "odd_plugin.py").write_text(RAISES)
    (tmp_path / "registry.yaml").write_text("version: 1\nplugins: {oddity: odd_plugin}\n")
    monkeypatch.syspath_prepend(tmp_path)
    said = (
        r"the adapter Odd, asked whether it is the one for .* raised KeyError: 'odd'.* To go on without it, put "
        r"'oddity' under disable: in your registry file\. With model\.adapter in a recipe, no other is asked\."
    )
    with pytest.raises(PartError, match=said):
        ecoflap.run(plain(), folder=tmp_path / "run", registry=load_registry(tmp_path / "registry.yaml"))
    sys.modules.pop("odd_plugin", None)


@pytest.fixture(scope="session")
def t5(redraw, pico_tokenizer, tmp_path_factory):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0, relative_attention_num_buckets=8,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    redraw(model, 3)
    folder = tmp_path_factory.mktemp("t5")
    save_model(model, pico_tokenizer, folder)
    return folder


@pytest.fixture
def two_towers(t5, plain, tmp_path, monkeypatch):
    """Recipes for a model with an encoder and a decoder, and the registry that knows its adapter."""
    (tmp_path / "towers_plugin.py").write_text(TOWERS)
    (tmp_path / "registry.yaml").write_text("version: 1\ndisable: [t5]\nplugins: {towers: towers_plugin}\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield lambda **keys: plain(model=str(t5), **keys), load_registry(tmp_path / "registry.yaml")
    sys.modules.pop("towers_plugin", None)


def kept(run, tower):
    layers = [layer for layer in run.plan.layers.values() if layer.tower == tower]
    masks = ecoflap.core.pruning.masks.read_masks(run.folder / "masks.safetensors")
    counted = sum(int(mask.sum()) for name, mask in masks.items() if name.startswith(f"{tower}."))
    assert counted == sum(layer.keep for layer in layers)
    return counted, sum(layer.size for layer in layers)


@pytest.mark.parametrize("prune", ["wanda", "sparsegpt"])
def test_towers_share_a_budget(two_towers, tmp_path, prune):
    recipe, registry = two_towers
    run = ecoflap.run(recipe(prune=prune, evaluate=None), folder=tmp_path / "run", registry=registry)
    (encoder, encoder_size), (decoder, decoder_size) = kept(run, "encoder"), kept(run, "decoder")
    assert encoder + decoder == (encoder_size + decoder_size) // 2
    assert encoder != encoder_size // 2  # it is the scores that decide
    masks = ecoflap.core.pruning.masks.read_masks(run.folder / "masks.safetensors")
    state = run.model.state_dict()
    assert all(not state[name][~mask].any() for name, mask in masks.items())


def test_a_tower_has_its_own_sparsity_and_pruner_and_another_is_kept(two_towers, t5, tmp_path):
    recipe, registry = two_towers
    own = {"encoder": {"sparsity": 0.3, "prune": "magnitude"}}
    run = ecoflap.run(recipe(towers=own), folder=tmp_path / "own", registry=registry)
    (encoder, encoder_size), (decoder, decoder_size) = kept(run, "encoder"), kept(run, "decoder")
    assert (encoder, decoder) == (encoder_size * 7 // 10, decoder_size // 2)
    before = _state(t5)
    for name in (name for name in run.plan.layers if name.startswith("encoder.")):
        weight = before[name]
        smallest = run.model.state_dict()[name].ne(0)
        assert weight[smallest].abs().min() >= weight[~smallest].abs().max()

    run = ecoflap.run(recipe(towers={"encoder": "keep"}), folder=tmp_path / "kept", registry=registry)
    assert {layer.tower for layer in run.plan.layers.values()} == {"decoder"}
    assert kept(run, "decoder")[0] == decoder_size // 2
    state = run.model.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in before if name not in run.plan.layers)


def _state(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_pattern_for_one_tower_is_not_scored(two_towers, tmp_path):
    recipe, registry = two_towers
    towers = {"encoder": {"sparsity": "2:4"}}
    run = ecoflap.run(recipe(towers=towers, evaluate=None), folder=tmp_path / "run", registry=registry)
    lines = (run.folder / "scores.jsonl").read_text().splitlines()[1:]
    assert {json.loads(line)["name"].split(".")[0] for line in lines} == {"decoder"}
    assert kept(run, "encoder")[0] * 2 == kept(run, "encoder")[1]


def test_the_plan_tells_who_shares_what(two_towers):
    recipe, registry = two_towers

    def rows(**keys):
        return plan_tables(parse_recipe(recipe(**keys), registry=registry), registry)[0].rows

    sizes = [row[3].replace(",", "") for row in rows()]
    half = f"of {sum(map(int, sizes)) // 2:,} in all"
    assert [row[4:] for row in rows()] == [("50 % pruned, shared", half)] * 2
    own = rows(towers={"encoder": {"sparsity": "2:4"}})
    assert [row[4] for row in own] == ["2:4", "50 % pruned"]
    assert own[0][5] == f"{int(sizes[0]) // 2:,}"
    assert [row[4] for row in rows(towers={"decoder": "keep"})] == ["50 % pruned", "kept whole"]


def test_towers_that_are_not_there_are_told_with_those_that_are(two_towers):
    recipe, registry = two_towers
    wrong = recipe(towers={"encodr": "keep", "decoder": "keep", "encoder": "keep"})
    with pytest.raises(RecipeError) as caught:
        prepare(parse_recipe(wrong, registry=registry), registry)
    unknown, nothing = caught.value.problems
    assert unknown == "towers.encodr: this model has no such tower. Did you mean 'encoder'? Known: encoder, decoder."
    assert nothing.startswith("towers: every tower of this model is kept")


def predicted(sections):
    """Name to size in bytes of the plan's last table, where it tells bytes."""
    units = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
    sizes = {what: much.rsplit(" ", 1) for what, much, _ in sections[-1].rows}
    return {what: float(size) * units[unit] for what, (size, unit) in sizes.items() if unit in units}


def test_the_predicted_disk_is_about_what_a_run_takes(plain, pico_tokenizer, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "llama", vocab_size=64, hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=128,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(tmp_path / "model")
    pico_tokenizer.save_pretrained(tmp_path / "model")
    recipe = plain(model=str(tmp_path / "model"), score=None, sparsity=0.7, export=["safetensors", "hugging_face"])
    registry = load_registry()
    needs = predicted(plan_tables(parse_recipe(recipe, registry=registry), registry))
    run = ecoflap.run(recipe, folder=tmp_path / "run")
    taken = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    assert needs["disk"] == pytest.approx(taken, rel=0.2)
    assert 300e6 < needs["peak memory"] < 700e6


def test_the_work_is_told_in_forwards_and_tokens(plain):
    registry = load_registry()

    def work(**keys):
        sections = plan_tables(parse_recipe(plain(**keys), registry=registry), registry)
        return dict(next(section for section in sections if section.title == "work").rows)

    told = work()
    assert told["score"] == (
        "zeroth_order: 42 forwards from the block in question on, over 2 samples of 16 tokens, 2 a batch"
    )
    assert told["prune"] == "wanda: 3 blocks, each block twice on 4 samples of 16 tokens, 2 a batch"
    assert work(sequential=True)["prune"].startswith(
        "wanda: 3 blocks, each block once if forwards can wait for its layers, else once for each group of those that "
        "share an input and once, on 4 samples"
    )
    by_gradients = {"use": "by_metric", "metric": "magnitude_gradient"}
    assert work(prune=by_gradients)["prune"].startswith("by_metric: 3 blocks, each block twice on 4 s")
    assert told["evaluate"] == "perplexity: before and after"
    assert work(allocate="uniform")["score"] == "nothing: uniform looks at no score"
    assert work(towers={"language": {"sparsity": "2:4"}})["score"] == "nothing: a pattern leaves no budget to divide"
    best = {"use": "best_of", "of": ["uniform", "ecoflap"]}
    assert work(allocate=best)["allocate"] == (
        "best_of: the model is pruned by each of uniform, ecoflap, to see which loses least"
    )
    assert work(allocate={**best, "tokens": ["real", "all"]})["allocate"] == (
        "best_of: the model is pruned by each of uniform, ecoflap by real, all tokens each, 4 times in all, to see "
        "which loses least"
    )
    assert work(score="magnitude")["score"] == "magnitude: no data needed"
    assert work(score={"use": "sensitivity", "samples": 3})["score"] == (
        "sensitivity: 20 forwards from the block in question on, over 3 samples of 16 tokens, 2 a batch"
    )
    assert work(prune="magnitude")["prune"] == "magnitude: 3 blocks, no data needed"
    calibration = {key: value for key, value in plain()["calibration"].items() if key != "sequence_length"}
    assert "4 samples of 128 tokens" in work(calibration=calibration)["prune"]
    assert "all samples of 16 tokens" in work(
        calibration={**plain()["calibration"], "samples": None, "order": "consecutive"}
    )["prune"]  # fmt: skip


def test_a_model_in_memory_keeps_its_type(plain, pico_llama, pico_tokenizer, tmp_path):
    recipe = plain(model={"source": "memory", "dtype": "bfloat16"})
    with pytest.raises(RecipeError, match=r"model\.dtype: a model in memory keeps the type it has"):
        ecoflap.run(recipe, model=pico_llama(), processor=pico_tokenizer, folder=tmp_path / "run")


@pytest.mark.parametrize("below", ["", "shards/"])
def test_a_type_that_no_configuration_names_is_that_of_the_files_that_are_read(below, plain, pico_llama_folder):
    index, config = (pico_llama_folder / f"{name}.json" for name in ("model.safetensors.index", "config"))
    told = {key: value for key, value in json.loads(config.read_text()).items() if "dtype" not in key}
    config.write_text(json.dumps(told))
    weights = load_file(pico_llama_folder / "model.safetensors")
    (pico_llama_folder / "model.safetensors").unlink()
    (pico_llama_folder / below).mkdir(exist_ok=True)
    save_file({name: one.bfloat16() for name, one in weights.items()}, pico_llama_folder / f"{below}1.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(weights, f"{below}1.safetensors")}))
    save_file({"other": torch.zeros(1)}, pico_llama_folder / "0.safetensors")  # which nothing reads
    registry = load_registry()
    recipe = parse_recipe(plain(model={"source": str(pico_llama_folder), "dtype": "auto"}), registry=registry)
    assert prepare(recipe, registry).dtype_of_files == torch.bfloat16


def test_a_model_no_adapter_claims(plain):
    registry = load_registry()
    with pytest.raises(
        ModelError, match=r"no adapter claims a model of type 'gpt9' \(GPT9\)\. Known adapters: .*llama, .*how to"
    ) as refused:
        adapter_for(Source("x", config={"model_type": "gpt9", "architectures": ["GPT9"]}), registry)
    bare = torch.nn.Linear(1, 1)
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    headless = r"no adapter claims a Linear of type 'llama'\. Its configuration is of LlamaForCausalLM: give that, the"
    with pytest.raises(ModelError, match=headless):
        adapter_for(Source("Linear", config=config, model=bare), registry)
    assert "model.adapter" not in str(refused.value)  # an adapter of another family would prune it wrongly
    with pytest.raises(
        EcoflapError, match=r"model\.adapter: pathlib:PurePath: it is no adapter: it has no matches, load"
    ):
        parse_recipe(plain(model={"source": "m", "adapter": "pathlib:PurePath"}), registry=registry.trusting(True))


def test_an_adapter_for_the_old_signatures_is_refused_when_it_claims_a_model(two_towers):
    _, registry = two_towers
    from ecoflap.adapters.llama import LlamaAdapter

    class Older(LlamaAdapter):
        def matches(self, source):
            return True

        def collate(self, samples):
            return {}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(registry), "find", lambda self, kind, name: Older)
        patch.setattr(type(registry), "names", lambda self, kind: ["older"])
        with pytest.raises(
            EcoflapError,
            match=r"the adapter older: its collate takes \(samples\), and is called with \(model, samples\)",
        ):
            adapter_for(Source("x"), registry)


def test_a_model_two_adapters_claim(two_towers):
    _, registry = two_towers
    from ecoflap.adapters.llama import LlamaAdapter

    class Greedy(LlamaAdapter):
        def matches(self, source):
            return True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(registry), "find", lambda self, kind, name: Greedy)
        with pytest.raises(
            ModelError, match=r"these adapters all claim it: .*llama, .*towers.*\. Choose one: with model\.adapter"
        ):
            adapter_for(Source("x"), registry)


def test_of_adapters_that_claim_a_model_the_one_with_the_highest_priority_is_taken():
    from ecoflap.adapters.llama import LlamaAdapter

    class Greedy(LlamaAdapter):
        def matches(self, source):
            return True

    class Last(Greedy):
        priority = -1

    class First(Greedy):
        priority = 1

    registry = load_registry()
    for made, expected in (({"a": Last, "b": Greedy}, Greedy), ({"a": First, "b": Greedy, "c": Last}, First)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(registry), "find", lambda self, kind, name, made=made: made[name])
            patch.setattr(type(registry), "names", lambda self, kind, made=made: [*made])
            assert type(adapter_for(Source("x"), registry)) is expected


def test_inspection_tells_blocks_alike_once_and_what_they_read(t5, two_towers):
    _, registry = two_towers
    _, towers, layers, outside = inspection(str(t5), None, registry)
    assert [row[0] for row in towers.rows] == ["encoder", "decoder"]
    assert [row[0] for row in layers.rows if row[0]] == [
        "encoder.block.0 … encoder.block.1 (2)",
        "decoder.block.0 … decoder.block.1 (2)",
    ]
    cross = next(row for row in layers.rows if row[1] == "layer.1.EncDecAttention.k.weight")
    assert cross[2:] == ("32×32", "1,024", "encoder")
    assert ("shared.weight", "64×32", "embedding") in outside.rows
