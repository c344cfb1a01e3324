"""A plan refuses what a run would: each mistake is made in a folder as a user has it, and both commands are asked."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pico_llava import recipe_of_llava, save_llava
from safetensors.torch import save_file
from table import GENERIC_ROWS

import ecoflap
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.cli.plan_report import plan_tables
from ecoflap.core.contracts.abilities import Generates
from ecoflap.core.errors import EcoflapError
from ecoflap.core.preparing.prepare import DataNotReady, prepare
from ecoflap.core.preparing.trial import untried
from ecoflap.core.recipe.load import parse_recipe
from ecoflap.core.registry.registry import load_registry

REGISTRY = load_registry()
TEMPLATE = "{% for turn in messages %}hi{% endfor %}"


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A folder with ``model``, a pico LLaVA with its processor, and ``images`` with an index of all there may be."""
    if "llava" not in GENERIC_ROWS:
        pytest.skip("transformers here is too old for it")
    folder = tmp_path_factory.mktemp("llava")
    save_llava(folder)
    return folder


@pytest.fixture
def of_llava(llava, tmp_path):
    """Make a recipe for a copy of the LLaVA that a mistake was made in."""

    def make(spoil: Callable[[Path], None], **keys: Any) -> dict[str, Any]:
        shutil.copytree(llava / "model", tmp_path / "model")
        spoil(tmp_path / "model")
        recipe = {**recipe_of_llava(tmp_path / "model", llava / "images"), **keys}
        return {key: value for key, value in recipe.items() if value is not None}

    return make


def dataset(llava: Path, use: str, **keys: Any) -> dict[str, Any]:
    return {"use": use, "path": str(llava / "images"), "samples": 4, **keys}


def planned(recipe: dict[str, Any]) -> tuple[str, ...]:
    """The problems that a plan finds."""
    with pytest.raises(EcoflapError) as refused:
        plan_tables(parse_recipe(recipe, registry=REGISTRY), REGISTRY)
    return refused.value.problems


def refused_by_both(recipe: dict[str, Any], folder: Path) -> str:
    """The one problem, which a plan and a run tell in the same words; the run leaves nothing behind."""
    (problem,) = planned(recipe)
    with pytest.raises(EcoflapError) as refused:
        ecoflap.run(recipe, folder=folder / "run")
    assert refused.value.problems == (problem,)
    assert not (folder / "run").exists()
    return problem


def delete(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def without_key(file: str, *keys: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps({key: value for key, value in content.items() if key not in keys}))

    return spoil


def with_token(folder: Path) -> None:
    content = json.loads((folder / "config.json").read_text())
    content.update(image_token_index=9, image_token_id=9)
    (folder / "config.json").write_text(json.dumps(content))


def whole(folder: Path) -> None:
    return


def changed(**settings: Any) -> Callable[[Path], None]:
    """Change the processor's settings, those of its images too."""

    def spoil(folder: Path) -> None:
        content = json.loads((folder / "processor_config.json").read_text())
        content["image_processor"].update(settings.pop("image_processor", {}))
        (folder / "processor_config.json").write_text(json.dumps({**content, **settings}))

    return spoil


def of_another_family(name: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        delete("processor_config.json", "tokenizer.json", "tokenizer_config.json")(folder)
        GENERIC_ROWS[name].adapter().processor.save_pretrained(folder)

    return spoil


def without_the_image_token(folder: Path) -> None:
    without_key("tokenizer_config.json", "image_token", "extra_special_tokens")(folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"] = [one for one in content["added_tokens"] if one["content"] != "<image>"]
    (folder / "tokenizer.json").write_text(json.dumps(content))


LARGER = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
TOO_LARGE = (
    r"calibration: the LlavaForConditionalGeneration cannot read what its LlavaProcessor made: Input image size "
    r"\(56\*56\) doesn't match model \(28\*28\)\. .* Are its patches and the size of its images those of config.json\?"
)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (delete("processor_config.json"), "calibration: this model needs a processor for images and text, and came"),
        (delete("tokenizer.json"), "model: the tokenizer or processor of .* tokenizer.json is missing in .*model, "),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "model: .*tokenizer.json: cannot be read: "),
        (with_token, "calibration: sample 0 of a batch has no place for its image: the model looks for token 9"),
        (
            lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE),
            "calibration: the LlavaProcessor cannot read the images and texts: .* chat template writes no '<image>'",
        ),
        (
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages.nope.nope }}"),
            "calibration: the chat template of the LlavaProcessor failed",
        ),
        (without_key("tokenizer_config.json", "pad_token"), "calibration: the .* has no padding token"),
        (
            without_the_image_token,
            r"calibration: the LlavaProcessor cannot be used: '<image>' stands for an image, and its \w+ has no such",
        ),
        (changed(image_processor=LARGER), TOO_LARGE),
        (changed(patch_size=7), "calibration: .* what its LlavaProcessor made: Image features .* do not match"),
        (
            of_another_family("idefics3"),
            "calibration: .* what its Idefics3Processor made: .* For a model of type 'llava' transformers has LlavaPro",
        ),
    ],
    ids=[
        "no processor",
        "no tokenizer",
        "damaged",
        "other image token",
        "no image",
        "bad template",
        "no padding",
        "no image token",
        "other size",
        "other patches",
        "other family",
    ],
)
def test_a_processor_that_does_not_serve(of_llava, tmp_path, spoil, said):
    pytest.importorskip("transformers", minversion="5")
    assert re.match(said, refused_by_both(of_llava(spoil), tmp_path))


@pytest.mark.parametrize("use", ["text", "image"])
def test_data_of_another_kind_than_the_model_reads(of_llava, llava, pico, tmp_path, use):
    path = pico / "text.jsonl" if use == "text" else llava / "images"
    recipe = of_llava(whole, calibration={"use": use, "path": str(path), "samples": 2})
    assert "calibration: this model learns to say something of an image" in refused_by_both(recipe, tmp_path)


@pytest.mark.parametrize(
    ("evaluator", "said"),
    [
        ({"use": "vqa", "data": "image_text"}, "vqa: a sample of its data has no question."),
        ({"use": "caption", "data": "image_question_answer"}, "caption: a sample of its data has no caption"),
        ({"use": "perplexity", "data": "image_question_answer"}, "perplexity: a sample of its data has no tokens"),
    ],
)
def test_data_that_an_evaluator_cannot_look_at(of_llava, llava, tmp_path, evaluator, said):
    evaluator = {**evaluator, "data": dataset(llava, evaluator["data"])}
    assert f"evaluate.0.data: {said}" in refused_by_both(of_llava(whole, evaluate=evaluator), tmp_path)


def test_data_of_an_evaluator_that_another_one_asks(of_llava, llava, tmp_path):
    inner = {"use": "vqa", "data": dataset(llava, "image_text")}
    said = refused_by_both(of_llava(whole, evaluate={"use": "agreement", "of": inner}), tmp_path)
    assert said.startswith("evaluate.0.of.data: vqa: a sample of its data has no question.")


def test_a_processor_that_an_evaluator_alone_needs(of_llava, llava, tmp_path):
    pytest.importorskip("transformers", minversion="5")
    evaluator = {"use": "vqa", "data": dataset(llava, "image_question_answer")}
    recipe = of_llava(delete("processor_config.json"), calibration=None, prune="magnitude", evaluate=evaluator)
    assert "evaluate.0.data: this model needs a processor" in refused_by_both(recipe, tmp_path)


class Harness:
    """An evaluator that has texts made of data of its own."""

    wants = Generates

    def __call__(self, model, adapter, note):
        return {"asked": ecoflap.Measure(float(len(adapter.tokens_of(model, "w1"))), 1, 0.0)}


def test_words_that_a_harness_needs(plain, pico, tmp_path):
    shutil.copytree(pico / "model", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    keys = {"calibration": None, "score": None, "allocate": "uniform", "prune": "magnitude"}
    recipe = plain(model=str(tmp_path / "model"), evaluate={"use": Harness}, **keys)
    assert refused_by_both(recipe, tmp_path).startswith("evaluate.0: this model needs a tokenizer to read text")
    served = plain(evaluate={"use": Harness}, **keys)
    plan_tables(parse_recipe(served, registry=REGISTRY), REGISTRY)


def test_a_processor_that_nothing_needs_may_be_missing(of_llava, tmp_path):
    pytest.importorskip("transformers", minversion="5")
    recipe = of_llava(delete("processor_config.json", "tokenizer.json"), calibration=None, prune="magnitude")
    plan_tables(parse_recipe(recipe, registry=REGISTRY), REGISTRY)
    assert ecoflap.run(recipe, folder=tmp_path / "run").plan.sparsity == 0.5


def test_an_image_that_cannot_be_read(of_llava, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(b"no picture")
    (tmp_path / "images" / "index.jsonl").write_text('{"image": "0.png", "text": "w1"}')
    data = {"use": "image_text", "path": str(tmp_path / "images"), "samples": 1}
    assert "have an image that cannot be read" in refused_by_both(of_llava(whole, calibration=data), tmp_path)


def test_what_serves_is_planned_and_run(of_llava, llava, tmp_path):
    evaluators = [
        {"use": "vqa", "data": dataset(llava, "image_question_answer"), "prompt": "{}", "num_beams": 1},
        {"use": "loss", "data": dataset(llava, "image_text")},
        {"use": "kl", "data": dataset(llava, "image_text"), "batch_size": 2},
    ]
    evaluators.append({"use": "agreement", "of": evaluators[0]})
    recipe = of_llava(whole, evaluate=evaluators)
    titles = [section.title for section in plan_tables(parse_recipe(recipe, registry=REGISTRY), REGISTRY)]
    assert "not tried before a run" not in titles
    report = ecoflap.run(recipe, folder=tmp_path / "run").report
    assert report.sparsity == 0.5
    assert {"vqa", "loss", "kl", "agreement of answers"} <= set(report.measures.pruned)


@pytest.mark.parametrize("where", ["calibration", "evaluate.0.data"])
def test_a_column_that_a_text_does_not_have(plain, tmp_path, where):
    recipe = plain()
    data = recipe["calibration"] if where == "calibration" else recipe["evaluate"]["data"]
    data["column"] = "body"
    assert refused_by_both(recipe, tmp_path).startswith(f"{where}: text: ")


def test_a_model_in_memory_without_its_tokenizer(plain, pico_llama, tmp_path):
    with pytest.raises(DataNotReady, match="calibration: text: this model came without a tokenizer"):
        ecoflap.run(plain(model="memory"), model=pico_llama(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_dataset_that_needs_a_tokenizer_is_named_at_once(plain, pico, tmp_path):
    shutil.copytree(pico / "model", tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    problems = planned(plain(model=str(tmp_path / "model")))
    assert [problem.split(": ")[0] for problem in problems] == ["calibration", "evaluate.0.data"]


def test_the_adapter_has_no_processor_after_the_trial(plain):
    """A tokenizer keeps the padding that it was last asked for: what was tried is not what is saved."""
    assert prepare(parse_recipe(plain(), registry=REGISTRY), REGISTRY).adapter.processor is None


def test_a_plan_reads_no_weights_and_a_hub_id_is_planned_by_its_configuration(plain, pico, tmp_path):
    shutil.copytree(pico / "model", tmp_path / "model")
    save_file({}, tmp_path / "model" / "model.safetensors")  # nobody looks for what it lacks
    assert prepare(parse_recipe(plain(model=str(tmp_path / "model")), registry=REGISTRY), REGISTRY).pools
    model = {"source": "org/name", "config": str(pico / "model" / "config.json")}
    sections = plan_tables(parse_recipe(plain(model=model), registry=REGISTRY), REGISTRY)
    (told,) = (section.rows for section in sections if section.title == "not tried before a run")
    assert told == [
        ("model and data", "org/name is on the hub, and of it a configuration is all that is read before a run")
    ]


def test_what_is_not_tried_is_said(plain, pico, monkeypatch):
    monkeypatch.setattr("ecoflap.plugins.datasets.text.LONG", 10)
    monkeypatch.setattr("ecoflap.plugins.datasets.text.Text.__call__", None)  # and is not called
    prepared = prepare(parse_recipe(plain(), registry=REGISTRY), REGISTRY)
    why = "the first sample of text takes long"
    assert list(untried(prepared)) == [("calibration", why), ("evaluate.0.data", why)]


def test_an_adapter_that_reads_no_processor_alone_is_not_tried(plain, monkeypatch):
    monkeypatch.setattr(LlamaAdapter, "read_processor", None)
    prepared = prepare(parse_recipe(plain(), registry=REGISTRY), REGISTRY)
    reason = "the adapter LlamaAdapter reads no processor without weights"
    assert list(untried(prepared)) == [("model and data", reason)]
