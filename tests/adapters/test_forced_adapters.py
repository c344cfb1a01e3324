"""Every built-in adapter on every pico family: what does not fit is refused in words, whoever named it."""

from functools import cache

import pytest
from table import ROWS, marked
from torch import nn

import ecoflap
from ecoflap.core.cli.inspection import inspection
from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import Adapter
from ecoflap.core.errors import EcoflapError, ModelError
from ecoflap.core.model.source import in_memory
from ecoflap.core.preparing.prepare import prepare
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

PARTS = {("blip_vqa", "blip_caption")}
"""Models with all weights of another class in them: of one that answers, the vision tower and decoder could caption."""
LONGEST = 600
"""Of what is said of one adapter, in characters; lists of all classes that there are would be longer."""


@cache
def registry():
    return load_registry(installed=False, allow_code=True)


@pytest.fixture(params=marked(sorted(ROWS)))
def row(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def adapters(*, generic: bool) -> dict[str, Adapter]:
    found = {name: registry().find("adapter", name)() for name in registry().names("adapter")}
    return {name: one for name, one in found.items() if (options_of(AdapterOptions, one).priority < 0) is generic}


def others(model: nn.Module) -> list[str]:
    """The families' own adapters that do not claim a model."""
    source = in_memory(model)
    return [name for name, adapter in adapters(generic=False).items() if not adapter.matches(source)]


def recipe_for(row: str, adapter: str) -> dict[str, object]:
    size = ROWS[row].batch_size
    return {
        "version": 1,
        "model": {"adapter": adapter},
        "calibration": {"use": "table:Samples", "row": row, "samples": size, "batch_size": size},
        "sparsity": 0.5,
        "prune": "magnitude",
    }


def check_said(error: EcoflapError, adapter: str, what: str) -> None:
    *problems, _ = error.problems
    assert problems, str(error)
    for problem in problems:
        assert problem.startswith(f"model.adapter: {adapter} does not fit {what}"), problem
        assert "which it does not know: " in problem
        assert len(problem) <= LONGEST, problem


def test_no_other_adapter_prunes_a_model_in_memory(row, tmp_path):
    """Where the structure fits too, as SigLIP's fits CLIP, the loss does not."""
    model, own = ROWS[row].build(), ROWS[row].adapter()
    for adapter in others(model):
        recipe = parse_recipe(recipe_for(row, adapter), registry=registry(), in_memory=True)
        try:
            prepare(recipe, registry(), model, own.processor)
        except ModelError as error:
            refused = error
        else:
            with pytest.raises(ModelError) as caught:
                ecoflap.run(
                    recipe, model=model, processor=own.processor, registry=registry(), folder=tmp_path / adapter
                )
            refused = caught.value
        check_said(refused, adapter, f"this {type(model).__name__}")


def test_no_other_adapter_takes_a_folder_apart(row, tmp_path):
    """But for another class of one configuration, of which the folder lacks weights, so that a run refuses it."""
    model, own = ROWS[row].build(), ROWS[row].adapter()
    if not ROWS[row].is_whole_on_disk:
        pytest.skip("what is saved of it is read into a model at hand")
    own.save(model, tmp_path)
    for adapter in others(model):
        try:
            inspection(str(tmp_path), adapter, registry())
        except EcoflapError as error:
            check_said(error, adapter, str(tmp_path))
        else:
            if (row, adapter) not in PARTS:
                assert_lacks_weights(adapter, tmp_path)


def assert_lacks_weights(name, folder):
    from ecoflap.core.model.source import open_source

    adapter: Adapter = registry().find("adapter", name)()
    with pytest.raises(ModelError, match=r"lacks \d+ of the model's weights"):
        adapter.load(open_source(str(folder), folder), None, "cpu")


def test_a_generic_adapter_prunes_it_or_refuses_it_in_words(row, tmp_path):
    """Made for models that nobody has listed, it may well fit one that has an adapter of its own."""
    for adapter in adapters(generic=True):
        model, processor = ROWS[row].build(), ROWS[row].adapter().processor
        recipe, said = parse_recipe(recipe_for(row, adapter), registry=registry(), in_memory=True), [""]
        keys = {"model": model, "processor": processor, "registry": registry(), "folder": tmp_path / adapter}
        try:
            report = ecoflap.run(recipe, **keys).report
            exact = report.kept == report.prunable // 2
        except EcoflapError as error:
            exact, said = True, list(error.problems)
        assert exact, adapter
        assert max(map(len, said)) <= LONGEST, said
