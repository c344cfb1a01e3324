"""Where blocks are while they run, and what a matrix outside the blocks needs of the walk."""

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from idle import Idle
from spec import spec
from torch import nn

import ecoflap
from ecoflap import ColumnNorm, EcoflapError, Gram, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.shared import losses
from ecoflap.core.cli.inspection import inspection
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.errors import RecipeError
from ecoflap.core.forward.placement import Placement
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Tower
from ecoflap.core.planning.plan import make_plan, pools_of
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry
from ecoflap.core.run.run_model import RunModel
from ecoflap.plugins.allocators.uniform import Uniform
from ecoflap.plugins.pruners.sparsegpt import SparseGPT
from ecoflap.plugins.pruners.wanda import Wanda


def batches(count=2):
    generator = torch.Generator().manual_seed(2)
    mask = torch.tensor([[1] * 12, [1] * 7 + [0] * 5])
    return [
        {"input_ids": torch.randint(3, 60, (2, 12), generator=generator), "attention_mask": mask} for _ in range(count)
    ]


@pytest.fixture
def recipe(plain):
    def recipe(**keys):
        return parse_recipe(plain(**keys), registry=load_registry())

    return recipe


def test_inputs_are_brought_along_and_outputs_taken_back():
    """A meta device stands for one that is elsewhere: what is on it shows."""
    seen = []

    def forward(x, *, mask, others):
        seen.extend([x.device.type, mask.device.type, others["pair"][0].device.type, others["pair"][1]])
        return {"hidden": torch.zeros(2), "rest": (x.new_zeros(3, device="cpu"), None, "text")}

    x, mask, home = torch.ones(2, 4), torch.ones(2), torch.device("cpu")
    placement = Placement(device=torch.device("meta"))
    output = placement.call(home, forward, (x,), {"mask": mask, "others": {"pair": (mask, 1)}})
    assert seen == ["meta", "meta", "meta", 1]
    assert output["rest"][1:] == (None, "text")
    assert output["hidden"].device.type == output["rest"][0].device.type == "cpu"


def test_weights_come_back_as_the_same_storage():
    module = nn.Linear(4, 4).bfloat16()
    storage, weight = module.weight.data_ptr(), module.weight
    with Placement(torch.float32, torch.device("cpu:0")).held(module.parameters()):
        assert module.weight.dtype == torch.float32
    assert module.weight is weight
    assert (module.weight.dtype, module.weight.data_ptr()) == (torch.bfloat16, storage)


@pytest.mark.parametrize("pruner", [SparseGPT(), Wanda()], ids=["sparsegpt", "wanda"])
def test_the_fine_step_with_idle_blocks_gone(pico_llama, pruner, tmp_path: Path):
    """The same bits, with one block at a time where it runs and NaN in all others."""

    def prune(folder, idle):
        model, adapter = pico_llama(), LlamaAdapter()
        anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
        plan = make_plan(pools_of(anatomy, Fraction(1, 2), {}, []), Uniform(), "layer", None)
        replay = Replay(model, adapter, batches(), anatomy=anatomy)
        if idle:
            replay.placement = there = Idle(None, torch.device("cpu:0"))
            there.put_aside(replay.blocks)
        folder.mkdir()
        BlockwisePruning(replay, plan, {"language": spec("pruner", pruner)}, folder, lambda event: None)()
        if idle:
            there.put_back(replay.blocks)
        return model.state_dict()

    usual, apart = prune(tmp_path / "usual", idle=False), prune(tmp_path / "apart", idle=True)
    for name, weight in usual.items():
        assert torch.equal(weight, apart[name]), name


def test_a_block_is_brought_once_for_all_batches(pico_llama, monkeypatch):
    """Once to be observed and once to be recorded, however many batches there are."""
    brought, held = [], Placement.held
    replay = Replay(pico_llama(), LlamaAdapter(), batches(3), dtype=torch.float64)
    blocks = {id(block.module.self_attn.q_proj.weight): block.name for block in replay.blocks}

    def counted(self, tensors):
        tensors = list(tensors)
        brought.extend(blocks[id(tensor)] for tensor in tensors if id(tensor) in blocks)
        return held(self, tensors)

    monkeypatch.setattr(Placement, "held", counted)
    for i, block in enumerate(replay.blocks):
        replay.run(i, [Gram])
        replay.advance(i)
        assert brought == [block.name] * 2
        brought.clear()
    assert all(block.module.self_attn.q_proj.weight.dtype == torch.float32 for block in replay.blocks)


def test_a_run_with_offload_is_the_same_run(plain, lasting, monkeypatch, tmp_path: Path):
    usual = ecoflap.run(plain(), folder=tmp_path / "usual")
    monkeypatch.setattr(RunModel, "device", "cpu:0")  # another device than cpu, by name
    moved = []
    run = Placement.run
    monkeypatch.setattr(Placement, "run", lambda self, *rest: moved.append(self.device) or run(self, *rest))
    model = {"source": plain()["model"], "offload": "cpu"}
    apart = ecoflap.run(plain(model=model), folder=tmp_path / "apart")
    assert moved
    assert set(moved) == {torch.device("cpu:0")}
    # The model card quotes the recipe, in which they differ, and its hash is told beside it.
    quoting = {f"exports/safetensors{name}" for name in ("/README.md", "/SHA256SUMS", "/manifest.json", ".json")}
    files = set(lasting(usual.folder)) - quoting
    assert {n: lasting(usual.folder)[n] for n in files} == {n: lasting(apart.folder)[n] for n in files}
    assert usual.report.measures == apart.report.measures


def test_plan_says_what_the_device_needs(recipe, plain):
    sections = plan_tables(recipe(model={"source": plain()["model"], "offload": "cpu"}), load_registry())
    needs = {row[0]: row for row in sections[-1].rows}
    assert "the largest block" in needs["device memory"][2]
    assert "device memory" not in {row[0] for row in plan_tables(recipe(), load_registry())[-1].rows}


def test_a_head_is_a_block_only_where_it_is_included(pico_llama):
    model, adapter = pico_llama(), LlamaAdapter()
    towers = adapter.towers(model)
    assert [tower.name for tower in Anatomy.of(towers, adapter.layers).towers] == ["language"]
    assert [tower.name for tower in Anatomy.of(towers, adapter.layers, ["lm_head"]).towers] == ["language", "lm_head"]


def test_a_head_that_is_applied_in_chunks(pico_llama, monkeypatch):
    """However many chunks there are: its statistic is of every position that predicts, its loss the usual one."""
    monkeypatch.setattr(losses, "LOGITS_BYTES", 4 * 4 * 64)
    model, adapter = pico_llama(), LlamaAdapter()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, ["lm_head"])
    replay = Replay(model, adapter, batches(), anatomy=anatomy)
    with torch.no_grad():
        expected = torch.stack([adapter.loss(model, batch) for batch in batches()])
        hidden = [model.model(**batch, use_cache=False).last_hidden_state for batch in batches()]
    predicting = torch.tensor([[True] * 11 + [False], [True] * 6 + [False] * 6])
    for index in range(3):
        replay.advance(index)
    assert torch.equal(replay.loss(3), expected)
    norm = sum(states[predicting].double().square().sum(0) for states in hidden)
    (seen,) = replay.run(3, (ColumnNorm,)).values()
    statistic = seen[ColumnNorm]
    assert statistic.tokens == 2 * 17
    torch.testing.assert_close(statistic.squared.double(), norm, rtol=1e-5, atol=0)
    replay.advance(3)


def test_a_chunked_heads_gradient_is_the_sum_of_its_chunks(pico_llama, monkeypatch):
    model, adapter = pico_llama(dtype=torch.bfloat16), LlamaAdapter()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers, ["lm_head"])
    monkeypatch.setattr(losses, "LOGITS_BYTES", 4 * 4 * 64)
    visited = []
    replay = Replay(model, adapter, batches(1), anatomy=anatomy, dtype=torch.float32)
    replay.gradients(lambda layer, gradient: visited.append((layer.name, gradient.clone())))
    (gradient,) = [gradient for name, gradient in visited if name == "lm_head.weight"]
    model.float().requires_grad_(True)
    adapter.loss(model, batches(1)[0]).backward()
    torch.testing.assert_close(gradient, model.lm_head.weight.grad, rtol=1e-4, atol=1e-7)


def test_only_the_last_block_may_run_any_number_of_times(pico_llama):
    class Early(LlamaAdapter):
        def towers(self, model):
            language, *_ = super().towers(model)
            return [language, Tower("head", (Block("lm_head", model.lm_head, "head", calls=2),))]

        def layers(self, block):
            return (
                [Layer("lm_head.weight", block.module, layout="selected")]
                if block.tower == "head"
                else super().layers(block)
            )

    replay = Replay(pico_llama(), Early(), batches(1))
    with pytest.raises(EcoflapError, match=r"lm_head ran 1 times in one forward; its adapter declares 2"):
        replay.loss()


def test_tokens_are_asked_for_each_call():
    """Two calls of one block on inputs of unequal length, each with its own padding."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(8, 8)

        def forward(self, x, y):
            return self.block(x).sum() + self.block(y).sum()

    class TwiceAdapter(LlamaAdapter):
        def towers(self, model):
            return [Tower("text", (Block("block", model.block, "text", calls=2),))]

        def layers(self, block):
            return [Layer("block.weight", block.module)]

        def loss(self, model, batch):
            return model(batch["x"], batch["y"]).double()

        def tokens(self, model, batch, tower, call=0):
            return batch["masks"][call]

    x, y = torch.randn(2, 5, 8), torch.randn(2, 3, 8)
    masks = (
        torch.tensor([[1, 1, 1, 0, 0], [1] * 5], dtype=torch.int8),
        torch.tensor([[1] * 3, [1, 0, 0]], dtype=torch.int8),
    )
    replay = Replay(Twice().eval(), TwiceAdapter(), [{"x": x, "y": y, "masks": masks}])
    expected = x[masks[0].bool()].square().sum(0) + y[masks[1].bool()].square().sum(0)
    found = replay.run(0, (ColumnNorm, Gram))["block.weight"]
    torch.testing.assert_close(found[ColumnNorm].squared, expected)
    assert found[Gram].tokens == 8 + 4


def test_a_tied_head_says_what_else_it_changes(pico_llama, pico_tokenizer, recipe, plain, tmp_path: Path):
    folder = tmp_path / "tied"
    pico_llama(tied=True).save_pretrained(folder)
    pico_tokenizer.save_pretrained(folder)
    keys = {"model": str(folder), "include": ["lm_head.weight"]}
    also = "lm_head.weight is the same weight as model.embed_tokens.weight, which is pruned with it"
    assert any(also in row[0] for section in plan_tables(recipe(**keys), load_registry()) for row in section.rows)
    done = ecoflap.run(plain(**keys), folder=tmp_path / "run")
    heard = (done.folder / "warnings.jsonl").read_text()
    assert also in heard
    assert "lm_head.weight" in done.plan.layers
    sections = inspection(str(folder), None, load_registry())
    (row,) = next(section.rows for section in sections if section.title.startswith("outside the blocks"))
    assert row == ("lm_head", "64×32", "2,048", "model.embed_tokens.weight")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.norm", "model.norm is never pruned: model.norm.weight is a norm. Can be included here: lm_head."),
        ("model.embed_tokens.weight", "model.embed_tokens.weight is never pruned: model.embed_tokens.weight is an emb"),
        ("lm_haed", "lm_haed is not in this model. Did you mean 'lm_head'?"),
        ("model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj is pruned anyway, being in a tower."),
    ],
)
def test_what_cannot_be_included_is_refused_by_name(recipe, name, told):
    with pytest.raises(RecipeError) as caught:
        plan_tables(recipe(include=name), load_registry())
    assert f"include: {told}" in str(caught.value)


def test_included_and_kept_at_once(recipe):
    with pytest.raises(RecipeError, match="include: lm_head is to be pruned here and kept under towers"):
        plan_tables(recipe(include="lm_head", towers={"lm_head": "keep"}), load_registry())


def test_inspection_says_what_is_kept_and_why(plain):
    sections = {section.title: section for section in inspection(plain()["model"], None, load_registry())}
    kept = next(section for title, section in sections.items() if title.startswith("never pruned"))
    reasons = {name: reason for name, _, reason in kept.rows}
    assert reasons["model.embed_tokens.weight"] == "embedding"
    assert reasons["model.norm.weight"] == "norm"
    assert "lm_head.weight" not in reasons
    assert not any("layers.1" in name for name in reasons)
