"""Whether a model can be asked for what an evaluator wants of it is said before its weights are read."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from table import ROWS

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.abilities import Classifies, Compares, Generates, offers
from ecoflap.core.contracts.protocols import Evaluator
from ecoflap.core.errors import RecipeError
from ecoflap.core.preparing.checks import ability_problems
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.registry.registry import load_registry


class Compared:
    """Has all that comparing takes."""

    def embed_images(self, model, samples): ...
    def embed_texts(self, model, texts): ...
    def similarity(self, model, images, texts): ...


class Picky(Compared):
    def refuses(self, model, ability):
        return "it has no text tower." if ability is Compares else None


class Half:
    def embed_images(self, model, samples): ...


class Sorts:
    """An evaluator of images by their class, which a language model has no use for."""

    wants: ClassVar = Classifies

    def __call__(self, model, adapter, note):
        return {}


class Matches(Sorts):
    """An evaluator that compares images with texts."""

    wants: ClassVar = Compares


class Anything(Sorts):
    """An evaluator that asks for nothing beside a loss."""

    wants: ClassVar = None


def problems(evaluator, adapter):
    """What is said of an evaluator on a model of an adapter."""
    named = PartSpec("evaluator", evaluator.__name__.lower(), {}, evaluator)
    return list(ability_problems(named, adapter, torch.nn.Identity(), load_registry()))


def test_an_adapter_or_its_class_offers_what_it_has_all_methods_of():
    assert offers(Compared(), Compares)
    assert offers(Compared, Compares)
    assert not offers(Half(), Compares)


@pytest.mark.parametrize("ability", [Generates, Classifies])
def test_and_nothing_else(ability):
    assert not offers(Compared(), ability)


def test_what_is_wanted_and_not_there_is_told_with_the_ways_out():
    (told,) = problems(Sorts, LlamaAdapter())
    assert told.startswith("sorts needs a model that can classify images, and the adapter llama has none.")
    assert "Evaluators for this model: " in told
    assert "perplexity" in told.split("Evaluators for this model: ")[1]


def test_an_adapter_may_refuse_for_one_of_its_models():
    (told,) = problems(Matches, Picky())
    assert told == "matches needs a model that can compare images with texts: it has no text tower."


@pytest.mark.parametrize("evaluator", [Anything, Matches])
def test_what_fits_is_not_talked_about(evaluator):
    assert problems(evaluator, Compared()) == []


def test_it_is_said_before_weights_are_read(pico_llama):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["evaluate"] = [{"use": Sorts}]
    registry = load_registry()
    with pytest.raises(RecipeError, match=r"evaluate\.0: .*Sorts needs a model that can classify images"):
        prepare(parse_recipe(recipe, registry=registry, in_memory=True), registry, pico_llama())


@dataclass(frozen=True)
class Asks:
    """An evaluator that asks another one."""

    other: Evaluator

    def __call__(self, model, adapter, note):
        return self.other(model, adapter, note)


def test_it_is_said_of_an_evaluator_inside_another_too(pico_llama):
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["evaluate"] = [{"use": Anything}, {"use": Asks, "other": {"use": Asks, "other": {"use": Sorts}}}]
    registry = load_registry()
    with pytest.raises(RecipeError, match=r"evaluate\.1\.other\.other: .*Sorts needs a model that can classify images"):
        prepare(parse_recipe(recipe, registry=registry, in_memory=True), registry, pico_llama())


@pytest.mark.skipif("clip" not in ROWS, reason="this environment has no CLIP")
def test_words_and_classes_of_a_model_that_has_none_are_refused_before_a_run():
    data, registry = {"use": "text"}, load_registry()
    recipe = {"version": 1, "model": "m", "sparsity": 0.5, "prune": "magnitude"}
    recipe["evaluate"] = [{"use": "kl", "data": data}, {"use": "agreement", "data": data}]
    parsed = parse_recipe(recipe, registry=registry, in_memory=True)
    with pytest.raises(RecipeError) as refused:
        prepare(parsed, registry, ROWS["clip"].build())
    told = "\n".join(refused.value.problems)
    for place, name in (("evaluate.0", "kl"), ("evaluate.1", "agreement")):
        assert f"{place}: {name} looks at logits over words or classes, and ClipAdapter compares images with" in told


def refined(row, *refiners):
    """Prepare a recipe of pairs, whose refiners are these, on the model of a row, as a plan does."""
    model, processor = ROWS[row].build(), ROWS[row].adapter().processor
    data = {"use": "table:Samples", "row": row, "samples": 4, "batch_size": 2}
    recipe = {"version": 1, "sparsity": 0.5, "prune": "magnitude", "calibration": data, "refine": list(refiners)}
    registry = load_registry().trusting(True)
    return prepare(parse_recipe(recipe, registry=registry, in_memory=True), registry, model, processor, planning=True)


@pytest.mark.skipif("siglip" not in ROWS, reason="this environment has no SigLIP")
def test_a_model_that_says_nothing_is_not_refined_by_what_it_says():
    with pytest.raises(RecipeError) as refused:
        refined("siglip", "reconstruct", "distill")
    (told,) = refused.value.problems
    assert told == (
        "refine.1: distill holds what the pruned model says against what the dense one says, and the loss of the "
        "adapter siglip is no cross entropy of logits here: it judges every pair of an image and a text by itself, by "
        "a sigmoid. Refine its blocks, by refine: [reconstruct]."
    )


@pytest.mark.skipif("siglip" not in ROWS, reason="this environment has no SigLIP")
@pytest.mark.parametrize(("row", "refiner"), [("siglip", "reconstruct"), ("clip", "distill")])
def test_what_has_logits_may_and_blocks_of_any_model(row, refiner):
    assert refined(row, refiner).pools


def test_a_head_in_pieces_is_not_pruned_where_the_model_is_refined_by_what_it_says(plain):
    """A run would come upon it behind all pruning, when it asks for what the dense head gave."""

    def asked(**keys):
        recipe = parse_recipe(plain(include=["lm_head"], **keys), registry=load_registry())
        return prepare(recipe, load_registry())

    told = (
        r"refine\.1: distill holds what .* once lm_head is pruned: the model applies it in pieces\. Leave lm_head out"
    )
    with pytest.raises(RecipeError, match=told):
        asked(refine=["reconstruct", "distill"])
    assert asked(refine=["reconstruct"]).block_refiners["language"]


def test_sub_blocks_are_refused_where_no_block_has_any(pico_llama, pico_tokenizer, plain, monkeypatch):
    layers = LlamaAdapter.layers
    monkeypatch.setattr(LlamaAdapter, "layers", lambda self, block: layers(self, block)[:4])
    recipe = plain(model=None, refine=[{"use": "reconstruct", "each": "subblock"}], export=None)
    parsed = parse_recipe(recipe, registry=load_registry(), in_memory=True)
    with pytest.raises(RecipeError) as refused:
        prepare(parsed, load_registry(), pico_llama(layers=1), pico_tokenizer, planning=True)
    assert refused.value.problems == (
        "refine: reconstruct would train the sub-blocks of each block, and no block of language has two that hold all "
        "of its layers, such as an attention and an MLP. Refine whole blocks: each: block.",
    )


def test_a_quantised_model_in_memory_is_refused_by_its_layers(pico_llama, pico_tokenizer):
    model = pico_llama(layers=1)
    weight = model.model.layers[0].mlp.up_proj
    weight.weight = torch.nn.Parameter((weight.weight * 100).to(torch.int8), requires_grad=False)
    recipe = parse_recipe(
        {"version": 1, "sparsity": 0.5, "prune": "magnitude"}, registry=load_registry(), in_memory=True
    )
    with pytest.raises(
        RecipeError, match=r"model: 1 layers hold no real numbers, of which model\.layers\.0\.mlp\.up_pr"
    ):
        prepare(recipe, load_registry(), model, pico_tokenizer)


def blip2(**keys):
    """Prepare a recipe on a BLIP-2 in memory, whose Q-Former is kept by default."""
    model, processor = ROWS["blip2_t5"].build(), ROWS["blip2_t5"].adapter().processor
    data = {"use": "table:Samples", "row": "blip2_t5", "samples": 4, "batch_size": 2}
    recipe = {"version": 1, "sparsity": 0.5, "prune": "wanda", "calibration": data, **keys}
    registry = load_registry().trusting(True)
    return prepare(parse_recipe(recipe, registry=registry, in_memory=True), registry, model, processor, planning=True)


PRUNED = ["vision", "encoder", "decoder"]
needs_blip2 = pytest.mark.skipif("blip2_t5" not in ROWS, reason="this environment has no BLIP-2")


@needs_blip2
@pytest.mark.parametrize("others", [{}, {"qformer": "keep"}])
def test_tokens_of_a_tower_that_is_kept_are_nobodys_concern(others):
    own = {name: {"tokens": "real"} for name in PRUNED}
    assert blip2(prune="dsnot", tokens="balanced", towers={**own, **others}).pruned_towers == PRUNED
    with pytest.raises(RecipeError, match="which prunes the decoder tower"):
        blip2(prune="dsnot", tokens="balanced", towers={name: own[name] for name in ("vision", "encoder")})


@needs_blip2
@pytest.mark.parametrize("own", [{"tokens": "real"}, {"refine": []}])
def test_what_does_not_say_that_a_kept_tower_is_pruned_has_none_pruned(own):
    with pytest.raises(RecipeError) as refused:
        blip2(towers={"qformer": own})
    assert refused.value.problems == (
        f"towers.qformer: it is kept whole by default, where {next(iter(own))} would change nothing. Remove this, or "
        f"have it pruned too by include: [qformer].",
    )
    assert "qformer" in blip2(towers={"qformer": own}, include=["qformer"]).pruned_towers
    matrix = "vision_projection_that_is_not_there"
    with pytest.raises(RecipeError, match=f"towers.{matrix}: this model has no such tower"):
        blip2(towers={matrix: own})


def test_a_head_that_is_kept_anyway_may_be_kept(pico_llama, pico_tokenizer):
    keys = {"version": 1, "sparsity": 0.5, "prune": "magnitude", "towers": {"lm_head": "keep"}}
    registry = load_registry()
    prepared = prepare(parse_recipe(keys, registry=registry, in_memory=True), registry, pico_llama(), pico_tokenizer)
    assert prepared.pruned_towers == ["language"]
    asked = parse_recipe({**keys, "include": ["lm_head"]}, registry=registry, in_memory=True)
    with pytest.raises(RecipeError, match=r"include: lm_head is to be pruned here and kept under towers\. Remove"):
        prepare(asked, registry, pico_llama(), pico_tokenizer)


@needs_blip2
@pytest.mark.parametrize("own", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"prune": "magnitude"}])
def test_how_much_or_what_by_has_a_kept_tower_pruned(own):
    assert "qformer" in blip2(towers={"qformer": own}).pruned_towers


@needs_blip2
def test_a_choice_of_tokens_is_for_towers_that_read_both_kinds():
    assert blip2(tokens="drifting").pruned_towers == PRUNED  # of which the encoder reads both
    blip2(
        towers={"encoder": {"tokens": "drifting"}, "decoder": {"tokens": "text"}}
    )  # it reads the encoder's tokens too
    with pytest.raises(RecipeError) as refused:
        # The decoder has read text alone so far, and may read images where the data have them.
        blip2(tokens="drifting", towers={"encoder": {"tokens": "real"}, "vision": {"tokens": "text"}})
    said = "tells tokens of text from those of images, and those of"
    assert [problem.split(" are of one kind")[0] for problem in refused.value.problems] == [
        f"towers.vision.tokens: text {said} vision",
    ]


@needs_blip2
def test_no_statistic_is_looked_at_in_the_tower_that_a_choice_is_for():
    own = {"encoder": {"prune": "magnitude", "tokens": "text"}}
    with pytest.raises(
        RecipeError, match=r"towers\.encoder\.tokens: text changes nothing, for no statistic .* by magnitude"
    ):
        blip2(towers=own)
    assert blip2(tokens="text", towers={"vision": {"prune": "magnitude"}}).pools
