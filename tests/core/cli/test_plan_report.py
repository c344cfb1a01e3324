"""What the plan tells where the model is not here, or the data are not: from a configuration beside the recipe."""

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.views.cache import has_cache
from ecoflap.core.cli.plan_report import plan_tables, prepared_tables
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.errors import ModelError, RecipeError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.differences import differences
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.run import spare_memory
from ecoflap.core.statistics.gram import Gram
from ecoflap.core.text.numbers import bytes_text
from ecoflap.plugins.refiners.reconstruct import Reconstruct

HUB = "somebody/some-llama"


@pytest.fixture
def named(plain, pico, tmp_path):
    """A recipe for a model of the hub, of which only the configuration is here."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_bytes((pico / "model" / "config.json").read_bytes())

    def named(config="config", **keys):
        model = {"source": HUB, **({"config": config} if config else {})}
        return parse_recipe(plain(**{"model": model, **keys}), registry=load_registry(), file=tmp_path / "recipe.yaml")

    return named


@pytest.fixture
def hub(monkeypatch):
    """A hub that holds one model."""

    def hub(folder):
        def download(repository, file, revision=None, local_files_only=False):
            if not (folder / file).is_file():
                raise OSError("no such file")
            return str(folder / file)

        monkeypatch.setattr("huggingface_hub.hf_hub_download", download)

    return hub


def by_title(sections):
    return {section.title: section.rows for section in sections}


class Unsure:
    """A scorer and an exporter whose predictions fail."""

    aggregate = "sum"

    def forwards(self, anatomy, batches):
        raise KeyError("batches")

    def predicted_bytes(self, view):
        raise KeyError("width")


class UnsureScorer(Unsure):
    def __call__(self, replay, layers):
        return iter(())


class UnsureExporter(Unsure):
    def __call__(self, pruned, folder):
        raise NotImplementedError


class SayingExporter:
    def __call__(self, pruned, folder):
        raise NotImplementedError

    def notes(self, context):
        yield f"it leaves out {len(context.views)} views"


class Unmade(Gram):
    """A statistic that cannot be made."""

    def __init__(self, in_features):
        raise KeyError("in_features")


class UnsurePruner:
    needs = (Unmade,)

    def __call__(self, weight, seen, budget, layer):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"score": UnsureScorer}, "the scorer .*UnsureScorer, asked for its forwards, raised KeyError"),
        ({"export": [UnsureExporter]}, "the exporter .*UnsureExporter, asked for its predicted_bytes, raised Key"),
        ({"prune": UnsurePruner}, "the statistic Unmade, made without memory, raised KeyError"),
    ],
)
def test_a_part_whose_prediction_fails_is_named(plain, keys, problem):
    with pytest.raises(PartError, match=problem):
        plan_tables(parse_recipe(plain(**keys), registry=load_registry()), load_registry())


def test_what_an_exporter_says_stands_in_the_plan(plain, pico_llama):
    use = f"{__name__}:SayingExporter"
    recipe = parse_recipe(plain(export=[SayingExporter, "safetensors"]), registry=load_registry())
    tables = plan_tables(recipe, load_registry())
    (said,) = (table for table in tables if table.title == "exports")
    views = 2 if has_cache(pico_llama()) else 1
    assert said.rows == [(use, f"it leaves out {views} views")]


def test_a_pruner_by_the_losss_gradient_is_told_with_its_backward_and_its_file(plain, pico_llama):
    """A number in float32 for each prunable weight, beside the finished blocks."""
    recipe = parse_recipe(plain(prune={"use": "by_metric", "metric": "magnitude_gradient"}), registry=load_registry())
    sections = by_title(plan_tables(recipe, load_registry()))
    assert dict(sections["work"])["prune"].endswith(", after a backward of the whole model")
    made_of = {row[0]: row[2] for row in sections["needs, predicted"]}["disk meanwhile"]
    adapter = LlamaAdapter()
    size = sum(layer.size for _, layer in Anatomy.of(adapter.towers(pico_llama()), adapter.layers).layers())
    assert made_of == f"finished blocks, until model/ is complete; gradients of the loss {bytes_text(4 * size)}"


def test_a_plan_needs_no_hub_where_a_configuration_is_named(named, plain, tmp_path, monkeypatch):
    for changed_by_others in ("available_memory", "_free_disk"):
        monkeypatch.setattr(f"ecoflap.core.cli.needs_table.{changed_by_others}", lambda: 1 << 34)
    here = plan_tables(parse_recipe(plain(), registry=load_registry()), load_registry())
    there = plan_tables(named(), load_registry())
    (by,) = (section for section in there if section not in here and section.title == "")
    assert by.rows == [(f"{tmp_path / 'config'}, instead of the one on the hub, with which a run compares it",)]
    there.remove(by)
    (left,) = (section for section in there if section.title == "not tried before a run")
    there.remove(left)
    assert [section.rows for section in there] == [section.rows for section in here]
    assert there[0].title == here[0].title.replace(plain()["model"], HUB)


def test_a_configuration_may_be_named_by_its_file(named):
    assert plan_tables(named("config/config.json"), load_registry())


def test_without_one_the_plan_says_how_to_do_without_the_hub(named):
    with pytest.raises(ModelError, match=r"to plan without it, name its config\.json: model: \{source: some"):
        plan_tables(named(config=None), load_registry())


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (
            "confg",
            r"model\.config: .*confg does not exist\. Did you mean 'config'\? A config\.json, or a folder with one",
        ),
        (".", r"model\.config: the folder .* holds neither config\.json nor open_clip_config\.json"),
    ],
)
@pytest.mark.parametrize("planning", [True, False])
def test_a_configuration_that_is_not_there(config, told, planning, named, hub, pico):
    hub(pico / "model")
    with pytest.raises((ModelError, RecipeError), match=told):
        prepare(named(config), load_registry(), planning=planning)


def test_a_folder_has_its_own_configuration(named, pico):
    (section, *_) = plan_tables(
        named("nowhere", model={"source": str(pico / "model"), "config": "nowhere"}), load_registry()
    )
    assert section.title.startswith(str(pico / "model"))


def test_a_run_takes_the_hubs_configuration(named, hub, pico):
    hub(pico / "model")
    prepared = prepare(named(), load_registry())
    assert prepared.source.config == json.loads((pico / "model" / "config.json").read_text())


def test_a_run_refuses_what_was_planned_by_another_model(named, hub, pico, tmp_path):
    config = json.loads((pico / "model" / "config.json").read_text())
    (tmp_path / "hub").mkdir()
    wider = {**config, "intermediate_size": 96, "num_hidden_layers": config["num_hidden_layers"] + 1}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(wider))
    hub(tmp_path / "hub")
    with pytest.raises(RecipeError) as caught:
        ecoflap.run(named(), folder=tmp_path / "run")
    (problem,) = caught.value.problems
    size, layers = config["hidden_size"], config["num_hidden_layers"]
    assert f"another model than {HUB} has on the hub: {3 * layers + 7} layers differ" in problem
    gate = f"model.layers.0.mlp.gate_proj.weight is 96×{size} there and {config['intermediate_size']}×{size} here"
    assert gate in problem
    assert not (tmp_path / "run").exists()


def test_a_run_refuses_what_was_planned_by_another_kind_of_model(named, hub, pico, tmp_path):
    hub(pico / "model")
    (tmp_path / "config" / "config.json").write_text('{"model_type": "t5"}')
    told = f"model.config: {HUB} is a 'llama', and {tmp_path / 'config'} is of a 't5'."
    with pytest.raises(RecipeError, match=f"^{re.escape(told)}$"):
        prepare(named(), load_registry())


def test_which_configuration_a_plan_was_made_by_changes_no_run(named):
    with_one, without = named().plain(), named(config=None).plain()
    assert Path(with_one["model"]["config"]).is_absolute()
    assert parse_recipe(with_one, registry=load_registry()) == named()
    assert differences(with_one, without) == []


def test_the_plan_is_shown_before_the_data_are_here(named, ecoflap_command, tmp_path):
    """The exit code says that a run would be refused, and what for comes last."""
    text = {"use": "text", "path": str(tmp_path / "not-yet"), "sequence_length": 16}
    recipe = named(calibration={**text, "samples": 4, "batch_size": 2}, evaluate={"use": "perplexity", "data": text})
    (tmp_path / "recipe.yaml").write_text(recipe.dump())
    code, out, err = ecoflap_command("plan", tmp_path / "recipe.yaml")
    assert code == 2
    assert "zeroth_order: 42 forwards" in out
    assert "peak memory" in out
    where = re.escape(str(tmp_path / "recipe.yaml")) + r":\d+:\d+"
    first, *told = err.splitlines()
    assert first == "ecoflap: 2 problems"
    for key, line in zip(("calibration", "evaluate.0.data"), told, strict=True):
        assert re.fullmatch(rf"  {where}: {key}: text: {re.escape(str(tmp_path / 'not-yet'))} does not exist\.", line)


def test_other_problems_are_told_without_a_plan(named, ecoflap_command, tmp_path):
    text = {"use": "text", "path": str(tmp_path / "not-yet"), "sequence_length": 999}
    (tmp_path / "recipe.yaml").write_text(named(calibration=text, evaluate=None).dump())
    code, out, err = ecoflap_command("plan", tmp_path / "recipe.yaml")
    assert (code, out) == (2, "")
    assert "calibration: text: sequence_length is 999; this model reads 128 tokens at most." in err
    assert "not-yet does not exist" in err


def test_what_is_kept_whole_is_told_with_its_share(plain, pico, tmp_path):
    """By hand: 64 × 32 of embedding and head each, and seven norms of 32, beside 23,040 weights in blocks."""
    sections = by_title(plan_tables(parse_recipe(plain(), registry=load_registry()), load_registry()))
    assert sections["kept whole: 4,320 parameters, 15.8 % of the model"] == [
        ("embedding", "2,048", "7.5 %", "model.embed_tokens.weight"),
        ("outside the blocks; include: takes it in", "2,048", "7.5 %", "lm_head.weight"),
        ("norms, biases and scales", "224", "0.8 %", "model.layers.0.input_layernorm.weight"),
    ]
    done = ecoflap.run(plain(score=None, allocate="uniform", evaluate=None), folder=tmp_path / "run")
    assert json.loads((done.folder / "plan.json").read_text())["kept_whole"] == {
        "embedding": 2048,
        "outside the blocks; include: takes it in": 2048,
        "norms, biases and scales": 224,
    }
    assert ecoflap.run(done.recipe, folder=done.folder).plan == done.plan


@pytest.mark.parametrize("rounds", [3, [0.2, 0.4, 0.6]])
def test_rounds_are_told_with_what_they_cost(plain, rounds):
    def told(**keys):
        recipe = parse_recipe(plain(sparsity=0.6, **keys), registry=load_registry())
        sections = by_title(plan_tables(recipe, load_registry()))
        needs = {what: (size, of) for what, size, of in sections["needs, predicted"]}
        return dict(sections["work"]), needs

    work, needs = told(rounds=rounds)
    shares = "20 %, 40 %, 60 %" if isinstance(rounds, list) else "26.3194 %, 45.7116 %, 60 %"
    assert work["rounds"] == f"{shares} pruned: the model is scored, allocated and pruned 3 times"
    # three times a bit each of 23,040 weights, and in bfloat16 those that a pruner changes
    assert needs["disk meanwhile"] == ("8.6 kB", "finished blocks of 3 rounds, until model/ is complete")
    assert told(rounds=rounds, prune="sparsegpt")[1]["disk meanwhile"][0] == "146.9 kB"
    assert "rounds" not in told()[0]
    refined, more = told(rounds=rounds, refine="reconstruct")
    assert refined["rounds"].endswith("pruned 3 times, and is refined after the last")
    assert more["peak memory"] != told(refine="reconstruct")[1]["peak memory"]


@pytest.mark.parametrize(
    ("refine", "bytes_a_weight", "told"),
    [(["distill"], 0, "553.0 kB"), (["distill", "distill"], 4, "553.0 kB"), (["reconstruct"], 2, None)],
)
def test_steps_of_a_models_refiner_take_disk_if_it_is_long_at_it(plain, refine, bytes_a_weight, told, monkeypatch):
    """Of 23,040 weights blocks' files have a bit each, and in bfloat16 those that are trained in them; four bytes are
    what one refiner leaves to the next. Weights and moments, 24 bytes, lie twice while they are written anew.
    """
    recipe = parse_recipe(plain(sparsity=0.6, refine=refine), registry=load_registry())
    sections = by_title(plan_tables(recipe, load_registry()))
    needs = {what: (size, of) for what, size, of in sections["needs, predicted"]}
    beside = f"; {told} more for the refiner's steps if it takes over 2 minutes" if told else ""
    expected = 23_040 * (1 / 8 + bytes_a_weight) / 1e3
    left = "; what one refiner of the model leaves to the next 92.2 kB" if len(refine) > 1 else ""
    assert needs["disk meanwhile"] == (f"{expected:.1f} kB", f"finished blocks, until model/ is complete{left}{beside}")
    if not told:
        return
    # Room for the one and not for the other, between which is half a megabyte.
    monkeypatch.setattr("ecoflap.core.cli.needs_table.free_for", lambda path: 300_000)
    rows = by_title(plan_tables(recipe, load_registry()))["needs, predicted"]
    (free,) = (row[2] for row in rows if row[0] == "disk free here")
    assert free.startswith("the recipe as it is does not fit if refining takes over 2 minutes")
    assert re.search(r"keep: disk takes [\d.]+ kB, which does not fit if refining takes over 2 minutes", free)


def test_sub_blocks_are_named_and_what_is_kept_of_them_is_counted(plain, monkeypatch):
    """4 texts of 16 tokens; attention and MLP give 32 numbers in bfloat16 each, and take 32 in float32."""

    def told(each, keep="memory"):
        calibration = {**plain()["calibration"], "keep": keep}
        model = {"source": plain()["model"], "compute": "model"}
        keys = plain(model=model, calibration=calibration, refine={"use": "reconstruct", "each": each})
        recipe = parse_recipe(keys, registry=load_registry())
        sections = by_title(plan_tables(recipe, load_registry()))
        needs = {what: (size, of) for what, size, of in sections["needs, predicted"]}
        return dict(sections["work"])["refine"], needs

    (block, before), (sub, after) = told("block"), told("subblock")
    assert block == "reconstruct: each block once it is pruned"
    monkeypatch.setattr(Reconstruct, "inside", True, raising=False)  # one that looks at sub-blocks and trains blocks
    assert told("block")[0] == block
    monkeypatch.undo()
    assert sub == "reconstruct: each block once it is pruned, by its sub-blocks (language: self_attn, mlp)"
    more = 4 * 16 * (2 * 32 * 2 + 32 * 4)
    refining = [float(one["peak memory"][1].partition("refining ")[2].partition(" kB")[0]) for one in (before, after)]
    assert refining[1] - refining[0] == pytest.approx(more / 1e3, abs=0.11)
    spilled = [told(each, "disk")[1] for each in ("block", "subblock")]
    on_disk = [float(one["disk meanwhile"][0].removesuffix(" kB")) for one in spilled]
    assert on_disk[1] - on_disk[0] == pytest.approx(more / 1e3, abs=0.11)
    assert spilled[0]["peak memory"][0] == spilled[1]["peak memory"][0]


def test_what_a_recipe_includes_or_keeps_moves(plain):
    sections = plan_tables(parse_recipe(plain(include=["lm_head"]), registry=load_registry()), load_registry())
    assert "kept whole: 2,272 parameters, 8.3 % of the model" in by_title(sections)


class Elsewhere(LlamaAdapter):
    def matches(self, source):
        return False


def test_an_adapter_that_was_named_and_does_not_know_the_model_is_told(plain):
    def told(adapter):
        model = {"source": plain()["model"], "adapter": adapter}
        sections = plan_tables(parse_recipe(plain(model=model), registry=load_registry()), load_registry())
        return [row for section in sections if section.title == "" for (row,) in section.rows]

    assert told("llama") == []
    assert told(Elsewhere) == [
        f"{__name__}:Elsewhere does not know this model. Before it does anything else a run holds it against the "
        "model, and refuses it where its loss is not the model's own"
    ]


def test_only_what_is_scored_counts_as_work(two_stacks):
    """By hand: 2 losses × 3 matrices × 1 noise × 2 batches, for the stack that is neither kept nor of a pattern."""
    for own in ("keep", {"sparsity": "2:4"}):
        work = dict(by_title(prepared_tables(two_stacks(own)))["work"])
        assert "zeroth_order: 12 forwards" in work["score"]


class Stacks(nn.Module):
    """Two towers of one block, each with three matrices."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.ModuleList([nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])]) for _ in "ab")


class StacksAdapter:
    processor = None
    matches = load = loss = tokens = save = print  # no plan calls them for a model in memory

    def collate(self, model, samples):
        return {"windows": [sample.tokens for sample in samples]}

    def towers(self, model):
        return [Tower(name, (Block(f"{name}.0", getattr(model, name)[0], name),)) for name in ("a", "b")]

    def layers(self, block):
        return [Layer(f"{block.name}.{i}.weight", linear) for i, linear in enumerate(block.module)]

    def max_length(self, model):
        return None


@pytest.fixture
def two_stacks(plain, pico_tokenizer, monkeypatch):
    monkeypatch.setattr("ecoflap.core.preparing.prepare.adapter_for", lambda *_: StacksAdapter())

    def two_stacks(own):
        calibration = {**plain()["calibration"], "samples": 4, "batch_size": 2}
        keys = plain(model=None, calibration=calibration, evaluate=None, score={"use": "zeroth_order", "samples": 4})
        recipe = parse_recipe({**keys, "towers": {"a": own}}, registry=load_registry(), in_memory=True)
        return prepare(recipe, load_registry(), model=Stacks(), processor=pico_tokenizer)

    return two_stacks


def test_memory_that_is_spent_on_speed_is_told(plain, monkeypatch):
    """Scores take float32; the whole model is held in it where half of the free memory takes that."""

    def needs(free, **keys):
        monkeypatch.setattr(spare_memory, "available_memory", lambda: free)
        recipe = parse_recipe(plain(**keys), registry=load_registry())
        sections = by_title(plan_tables(recipe, load_registry()))
        return {what: of for what, _, of in sections["needs, predicted"]}

    def widened(told):
        return re.search(r"scoring in float32 ([^,]+),", told["peak memory"])[1]

    much, little = needs(1 << 40), needs(1 << 12)
    assert "the model in float32 at once" in much["for speed"]
    assert "at once" not in little["for speed"]
    model = re.search(r"weights ([^,]+),", much["peak memory"])[1]
    assert widened(much) == bytes_text(2 * 1000 * float(model.removesuffix(" kB")))
    assert widened(little) != widened(much)
    for keys in ({"model": {"source": plain()["model"], "offload": "cpu"}}, {"score": None}):
        kept = needs(1 << 40, **keys)
        assert "for speed" not in kept
    assert "for speed" not in needs(None)
    in_turn = {"sequential": True, "score": None, "allocate": "uniform"}
    assert "forwards of a block waiting" in needs(1 << 40, **in_turn)["for speed"]
    assert "for speed" not in needs(1 << 40, **in_turn, calibration={**plain()["calibration"], "keep": "disk"})


@pytest.mark.parametrize("lacks", [True, False])
def test_a_type_that_this_cpu_lacks_is_told(plain, monkeypatch, lacks):
    for module in ("core.cli.needs_table", "core.preparing.prepared"):
        monkeypatch.setattr(f"ecoflap.{module}.is_slow", lambda dtype: lacks and dtype == torch.bfloat16)

    def told(**keys):
        recipe = parse_recipe(plain(model={"source": plain()["model"], **keys}), registry=load_registry())
        rows = by_title(plan_tables(recipe, load_registry()))["needs, predicted"]
        return {what: (much, of) for what, much, of in rows}

    auto, narrow, wide = told(), told(compute="model"), told(compute="float32")
    slowly = "torch does products in bfloat16 several times as slowly on this CPU"
    if lacks:
        assert auto["arithmetic"] == ("products in float32", f"{slowly}; it stays in bfloat16") == wide["arithmetic"]
        assert narrow["slow"][0] == "products in bfloat16"
        assert f"{slowly}: model.compute: float32 is quicker" in narrow["slow"][1]
    else:
        assert "arithmetic" not in auto
        assert "slow" not in narrow
        assert wide["arithmetic"] == ("products in float32", "as the recipe asks")
    assert "slow" not in auto
    assert "arithmetic" not in narrow
    assert not {"slow", "arithmetic"} & told(dtype="float32").keys()
