"""The harness on models that look at images: by their adapter, and by the harness' own class for them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pico_blip
import pico_clip
import pytest
from box_tasks import make_tasks, model_in_the_box, vqa
from family import redraw
from pico_blip2 import picture
from plan_contexts import context
from transformers_version import is_before

pytest.importorskip("lm_eval", reason="pip install 'ecoflap[lm-eval]'")

import lm_eval.tasks
import transformers

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.adapters.shared.matrices import tower_at
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Anatomy, Tower
from ecoflap.plugins.evaluators.lm_eval import LmEval

needs_box = pytest.mark.skipif(is_before("5"), reason="the box's tokenizer is stored as 5 stores it")
IMAGE, NEW = len(pico_clip.WORDS), 5
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> w1 {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


@pytest.fixture(autouse=True)
def _only_tasks_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking through the thousands that the harness has takes seconds."""
    monkeypatch.setattr(lm_eval.tasks.TaskManager.__init__, "__defaults__", (None, None, False, None))


@needs_box
def test_the_box_answers_as_vqa_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = make_tasks(monkeypatch)
    tasks, _ = script.write(tmp_path, script.rows_of("test", 60))
    model, adapter = model_in_the_box()
    evaluator = LmEval(("box_vqa",), tasks, through="adapter", batch_size=32)
    assert [*evaluator.problems(context(adapter=adapter, model=model))] == []
    found = evaluator(model, adapter, ignore)["box_vqa exact_match"]
    expected = vqa(model, adapter, 60)
    assert 0.2 < expected.value < 1
    assert (found.value, found.n, found.unit) == (pytest.approx(expected.value), expected.n, "documents")


@needs_box
def test_the_box_has_an_encoder_which_the_harness_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = make_tasks(monkeypatch)
    tasks, _ = script.write(tmp_path, script.rows_of("test", 2))
    model, adapter = model_in_the_box()
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    (told,) = LmEval(("box_vqa",), tasks).problems(context(anatomy=anatomy, adapter=adapter, model=model))
    assert "hf-multimodal cannot take this model that looks at images: its text model has an encoder" in told
    assert "Where its adapter can make texts, through: adapter takes it." in told
    with pytest.raises(ModelError, match="its text model has an encoder"):
        LmEval(("box_vqa",), tasks)(model, adapter, ignore)


def test_questions_of_a_file_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "asked.jsonl"
    lines = [{"image": f"of/{number}.png", "kind": "shape", "question": "what?", "answers": ["a"]} for number in (1, 2)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    image = str(tmp_path / "of" / "1.png")
    script = make_tasks(monkeypatch)
    assert script.rows_in(file, 1) == [{"image": image, "question": "what?", "answer": "a", "kind": "shape"}]


class Llava(LlamaAdapter):
    """As much of a LLaVA's adapter as the harness' own class needs."""

    def __init__(self, processor: Any) -> None:
        super().__init__()
        self.processor = processor

    def towers(self, model: Any) -> Sequence[Tower]:
        return [tower_at(model, "model.vision_tower.encoder.layers", "vision")]


@pytest.fixture
def llava() -> Any:
    text = {**pico_clip.TEXT, "vocab_size": IMAGE + 8, "max_position_embeddings": 128}
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**pico_clip.TOWER, **pico_clip.VISION),
        text_config=transformers.LlamaConfig(**text),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
    )
    return redraw(transformers.LlavaForConditionalGeneration(config), 7)


@pytest.fixture
def processor() -> Any:
    tokenizer = pico_clip.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.model_max_length = 128
    return transformers.LlavaProcessor(
        image_processor=pico_clip.image_processor(), tokenizer=tokenizer, patch_size=pico_clip.PATCH,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def said(model: Any, processor: Any, image: Any, text: str) -> str:
    """By the model's own generate, one question at a time, up to the token that ends a text."""
    inputs = processor(images=image, text=text, return_tensors="pt")
    made = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()
    ends = processor.tokenizer.eos_token_id
    return processor.tokenizer.decode(made[: made.index(ends)] if ends in made else made).strip()


@pytest.mark.parametrize(
    ("by_template", "before"), [pytest.param(False, "<image>", marks=pytest.mark.slow), (True, "<image> w1 ")]
)
def test_a_llava_is_run_by_the_harness_own_class(
    by_template: bool, before: str, llava: Any, processor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Every other answer of the task is what the model says, so that an image or a prompt that is lost shows."""
    rows = []
    for number in range(7):
        picture(number).save(tmp_path / f"{number}.png")
        question = " ".join(pico_clip.WORDS[5 + number : 8 + 2 * number])
        says = said(llava, processor, picture(number), f"{before}{question}")
        answer = says if number % 2 else f"{says} w9"
        rows.append({"image": str(tmp_path / f"{number}.png"), "question": question, "answer": answer})
    assert len({row["answer"] for row in rows}) > 3
    tasks, _ = make_tasks(monkeypatch).write(tmp_path / "tasks", rows, NEW)
    template = processor.tokenizer.padding_side, processor.tokenizer.pad_token
    found = LmEval(("box_vqa",), tasks, batch_size=1, chat_template=by_template)(llava, Llava(processor), ignore)
    assert found["box_vqa exact_match"].value == pytest.approx(3 / 7)
    assert (processor.tokenizer.padding_side, processor.tokenizer.pad_token) == template


def test_a_processor_that_is_missing(llava: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tasks, _ = make_tasks(monkeypatch).write(tmp_path, [{"image": "", "question": "", "answer": ""}])
    with pytest.raises(ModelError, match="lm_eval needs the model's processor, with its tokenizer"):
        LmEval(("box_vqa",), tasks)(llava, Llava(None), ignore)


def test_models_that_the_harness_own_class_cannot_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tasks, _ = make_tasks(monkeypatch).write(tmp_path, [{"image": "", "question": "", "answer": ""}])
    evaluator, adapter = LmEval(("box_vqa",), tasks), pico_blip.adapter(pico_blip.CAPTION)
    model = pico_blip.build(pico_blip.CAPTION)
    with pytest.raises(ModelError, match="names no image_token_id"):
        evaluator(model, adapter, ignore)
    anatomy = Anatomy.of(adapter.towers(model), adapter.layers)
    (told,) = evaluator.problems(context(anatomy=anatomy, adapter=adapter, model=model.vision_model.encoder.layers))
    assert "it is no model of transformers" in told


@needs_box
def test_an_adapter_knows_no_likelihoods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = make_tasks(monkeypatch)
    tasks, _ = script.write(tmp_path, script.rows_of("test", 2))
    text = (tasks / "box_vqa.yaml").read_text()
    choices = "output_type: multiple_choice\ndoc_to_choice: [red, blue]"
    text = text.replace("output_type: generate_until", choices).replace("doc_to_target: answer", "doc_to_target: 0")
    (tasks / "box_vqa.yaml").write_text(text)
    with pytest.raises(DataError, match="compares how likely texts are, and an adapter only makes texts"):
        LmEval(("box_vqa",), tasks, through="adapter")(*model_in_the_box(), ignore)
