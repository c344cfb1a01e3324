"""The questions in the box as tasks of harnesses, and the model that answers them."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from ecoflap.adapters.blip2 import Blip2Adapter
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.contracts.records import Measure
from ecoflap.core.model.source import open_source
from ecoflap.plugins.datasets.image_question_answer import ImageQuestionAnswer
from ecoflap.plugins.evaluators.vqa import Vqa

BOX = Path(__file__).parents[3] / "examples" / "box"
DATA = BOX / "data"


def make_tasks(patch: pytest.MonkeyPatch) -> Any:
    """The script that writes them, which is no part of the package."""
    patch.syspath_prepend(BOX)
    return import_module("make_tasks")


def model_in_the_box() -> tuple[Any, Blip2Adapter]:
    adapter = Blip2Adapter()
    return adapter.load(open_source("blip2", BOX), None, "cpu"), adapter


def vqa(model: Any, adapter: Any, samples: int) -> Measure:
    """What the evaluator ``vqa`` makes of the same questions."""
    files = {"path": DATA / "test_questions.json", "annotations": DATA / "test_annotations.json"}
    data = ImageQuestionAnswer(**files, images=DATA / "images", samples=samples, order="first")
    return Vqa(data, prompt="{}", num_beams=1, batch_size=32)(model, adapter, ignore)["vqa"]
