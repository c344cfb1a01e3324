"""The recipe's choice of tokens, from the file to the masks."""

import json

import pytest
import torch
from sealed_by_hand import read_lines

import ecoflap
from ecoflap import ColumnNorm, Replay
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import RecipeError
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.pruning.masks import read_masks
from ecoflap.core.pruning.prune_blocks import BlockwisePruning
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry


class Looking(LlamaAdapter):
    """Takes tokens with an even number for those of images."""

    def tokens(self, model, batch, tower, call=0):
        kinds = 2 - (batch["input_ids"] % 2).to(torch.int8)
        return kinds * batch["attention_mask"].to(torch.int8)


def looking(plain, pico, **keys):
    return plain(model={"source": str(pico / "model"), "adapter": Looking}, **keys)


def run(plain, pico, folder, **keys):
    recipe = looking(plain, pico, score=None, allocate="uniform", export=None, evaluate=None, **keys)
    return ecoflap.run(recipe, folder=folder)


def test_masks_are_those_by_the_chosen_tokens(plain, pico, tmp_path, monkeypatch):
    seen = []
    real = Replay.observed

    def noting(self, i, needs=(), layers=None, tokens="real", paused=None):
        found = real(self, i, needs, layers, tokens, paused)
        seen.append((tokens, {name: one[ColumnNorm].squared.clone() for name, one in found.seen.items()}))
        return found

    monkeypatch.setattr(Replay, "observed", noting)
    done = {choice: run(plain, pico, tmp_path / choice, tokens=choice) for choice in ("real", "text", "balanced")}
    masks = {choice: read_masks(one.folder / "masks.safetensors") for choice, one in done.items()}
    first = "model.layers.0.self_attn.q_proj.weight"
    assert [choice for choice, norms in seen if first in norms] == ["real", "text", "balanced"]
    assert all(int((masks["text"][name] ^ mask).sum()) for name, mask in masks["real"].items() if ".v_proj" in name)
    assert any(int((masks["text"][name] ^ mask).sum()) for name, mask in masks["balanced"].items())
    assert done["text"].report.sparsity == done["real"].report.sparsity


def test_a_tower_has_its_own_choice_or_the_recipes(plain, pico):
    registry = load_registry()

    def chosen(**keys):
        return prepare(parse_recipe(looking(plain, pico, **keys), registry=registry), registry).tokens()

    assert chosen() == {"language": "real"}
    assert chosen(tokens="text") == {"language": "text"}
    assert chosen(tokens="text", towers={"language": {"tokens": "drifting"}}) == {"language": "drifting"}


def test_a_recipe_that_chooses_nothing_is_written_as_before_there_was_a_choice(plain):
    registry = load_registry()
    assert "tokens" not in parse_recipe(plain(), registry=registry).plain()
    chosen = parse_recipe(plain(tokens="text", towers={"language": {"tokens": "balanced"}}), registry=registry)
    assert chosen.plain()["tokens"] == "text"
    assert chosen.plain()["towers"] == {"language": {"tokens": "balanced"}}


def test_another_word_is_refused_with_the_choices(plain):
    with pytest.raises(RecipeError, match=r"tokens: .*'real', 'text', 'balanced', 'drifting' or 'all'"):
        parse_recipe(plain(tokens="image"), registry=load_registry())


def planned(recipe):
    registry = load_registry()
    return prepare(parse_recipe(recipe, registry=registry), registry, planning=True)


def test_a_statistic_that_cannot_weigh_tokens_is_refused_by_the_plan(plain, pico):
    with pytest.raises(RecipeError, match=r"dsnot, which prunes the language tower, asks for ColumnMom.*towers\."):
        planned(looking(plain, pico, prune="dsnot", tokens="balanced"))
    for choice in ("text", "all"):
        planned(looking(plain, pico, prune="dsnot", tokens=choice))
    planned(looking(plain, pico, prune="dsnot", tokens="balanced", towers={"language": {"tokens": "real"}}))


@pytest.mark.parametrize("choice", ["text", "balanced", "drifting"])
@pytest.mark.parametrize("own", [False, True])
def test_a_choice_between_kinds_is_refused_where_the_data_have_one(plain, pico, choice, own):
    keys = {"towers": {"language": {"tokens": choice}}} if own else {"tokens": choice}
    with pytest.raises(RecipeError) as refused:
        planned(plain(prune="wanda", **keys))
    assert refused.value.problems == (
        f"{'towers.language.' if own else ''}tokens: {choice} tells tokens of text from those of images, and those of "
        f"language are of one kind here, so that it changes nothing. Remove this, or say it of a tower that reads both",
    )
    planned(looking(plain, pico, prune="wanda", **keys))
    planned(plain(prune="wanda", tokens="all"))  # padding is told from what is real in any tower


@pytest.mark.parametrize("choice", ["all", "text"])
@pytest.mark.parametrize("prune", ["magnitude", {"use": "by_metric", "metric": "magnitude_gradient"}])
def test_a_towers_choice_is_refused_where_its_pruner_asks_for_no_statistic_of_inputs(plain, pico, choice, prune):
    own = {"towers": {"language": {"tokens": choice}}}
    with pytest.raises(RecipeError) as refused:
        planned(looking(plain, pico, prune=prune, **own))
    name = prune if isinstance(prune, str) else prune["use"]
    assert refused.value.problems == (
        f"towers.language.tokens: {choice} changes nothing, for no statistic of layers' inputs is asked for by {name}. "
        f"Remove this, or prune by what does, such as wanda",
    )
    planned(looking(plain, pico, prune="wanda", **own))


@pytest.mark.parametrize("keys", [{"tokens": "all"}, {"tokens": "text"}, {"sequential": True}])
def test_what_is_said_of_the_whole_model_stands_beside_every_pruner_that_is_compared(plain, pico, keys):
    planned(looking(plain, pico, prune="magnitude", **keys))


TRIED = ("real", "text", "balanced")


def tried(plain, pico, folder, **keys):
    """Run with one budget, and the tokens that lose least of three choices."""
    recipe = looking(plain, pico, score=None, export=None, evaluate=None, **keys)
    recipe["allocate"] = {"use": "best_of", "of": ["uniform"], "tokens": list(TRIED)}
    return ecoflap.run(recipe, folder=folder)


@pytest.mark.parametrize("keys", [{}, {"rounds": 2}])
def test_a_run_prunes_by_the_tokens_that_lose_least(plain, pico, tmp_path, keys):
    """The run is that by this choice alone, whichever it is."""
    done = tried(plain, pico, tmp_path / "run", **keys)
    losses = {line["candidate"]: line["loss"] for line in read_lines(done.folder / "trials.jsonl")}
    assert list(losses) == [f"uniform by {choice} tokens" for choice in TRIED]
    assert len(set(losses.values())) == 3
    taken = min(TRIED, key=lambda choice: losses[f"uniform by {choice} tokens"])
    assert done.plan.tokens == done.report.tokens == taken
    assert json.loads((done.folder / "plan.json").read_text("utf-8"))["tokens"] == taken
    assert any(one.endswith(f"uniform by {taken} tokens was taken") for one in done.report.warnings)
    if not keys:  # of rounds each takes its own
        alone = run(plain, pico, tmp_path / "alone", tokens=taken)
        assert alone.plan.tokens is None
        assert masks_of(done) == masks_of(alone)
        others = [run(plain, pico, tmp_path / choice, tokens=choice) for choice in TRIED if choice != taken]
        assert all(masks_of(done) != masks_of(other) for other in others)


def masks_of(run):
    return {name: mask.tolist() for name, mask in read_masks(run.folder / "masks.safetensors").items()}


@pytest.mark.parametrize("where", ["plan_trials", "stages"])
def test_a_run_that_was_cut_off_takes_the_same_tokens(plain, pico, tmp_path, lasting, monkeypatch, where):
    whole = tried(plain, pico, tmp_path / "whole")
    asked = []

    class CutOff(BlockwisePruning):
        def __call__(self):
            asked.append(dict(self.tokens_of))
            if len(asked) == (2 if where == "plan_trials" else 1):
                raise KeyboardInterrupt
            return super().__call__()

    with monkeypatch.context() as patched:
        patched.setattr(f"ecoflap.core.run.{where}.BlockwisePruning", CutOff)
        with pytest.raises(KeyboardInterrupt):
            tried(plain, pico, tmp_path / "cut")
    known = (tmp_path / "cut" / "trials.jsonl").read_bytes()
    assert len(read_lines(tmp_path / "cut" / "trials.jsonl")) == (1 if where == "plan_trials" else 3)
    done = tried(plain, pico, tmp_path / "cut")
    assert (tmp_path / "cut" / "trials.jsonl").read_bytes().startswith(known)
    assert lasting(done.folder) == lasting(whole.folder)
    assert done.plan.tokens == whole.plan.tokens
    assert asked[-1] == {"language": whole.plan.tokens if where == "stages" else TRIED[1]}


TWO = {"allocate": {"use": "best_of", "of": ["uniform"], "tokens": ["real", "balanced"]}, "score": None}
OWN = {"towers": {"language": {"tokens": "real"}}}


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"prune": "dsnot"}, "allocate.tokens: balanced weighs tokens in sums of squares, and dsnot, which prunes the"),
        ({"prune": "magnitude"}, "allocate.tokens: balanced changes nothing, for no statistic of layers' inputs is"),
        (
            {"prune": "magnitude", "allocate": {**TWO["allocate"], "tokens": ["real", "text", "balanced"]}},
            "allocate.tokens: text and balanced change nothing, for no statistic of layers' inputs is",
        ),
        ({"tokens": "text"}, "allocate: it tries real, balanced tokens, and the recipe has tokens: text, which would"),
        (OWN, "allocate.tokens: nothing is tried, for towers.language.tokens say it of every tower that is pruned."),
    ],
)
def test_tokens_that_cannot_be_tried_are_refused_by_the_plan(plain, pico, keys, told):
    with pytest.raises(RecipeError) as refused:
        planned(looking(plain, pico, **{**TWO, **keys}))
    (problem,) = refused.value.problems
    assert problem.startswith(told)


def test_tokens_are_tried_where_the_data_have_both_kinds(plain, pico):
    planned(looking(plain, pico, **TWO))
    with pytest.raises(RecipeError, match=r"allocate\.tokens: balanced tells tokens of text from those of im"):
        planned(plain(**TWO))
