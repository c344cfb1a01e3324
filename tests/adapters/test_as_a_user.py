"""From a folder on disk and images in a folder to a pruned model, by the command line, for models of several towers."""

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from table import ROWS, marked

import ecoflap
from ecoflap.core.cli.main import main

WORDS = ["a", "picture", "of", "w1", "w2", "w3", "w4", "w5", "w6"]
RUNS = {
    "blip_caption": ("image_text", ["vision", "decoder"], ["text_decoder.cls.predictions.transform.dense"]),
    "blip_vqa": ("image_question_answer", ["vision", "encoder", "decoder"], ["text_decoder.cls.predictions.decoder"]),
    "blip_retrieval": ("image_text", ["vision", "text"], ["vision_proj", "text_proj", "itm_head"]),
    "blip2_t5": ("image_question_answer", ["vision", "encoder", "decoder"], ["qformer", "language_projection"]),
    "blip2_opt": ("image_text", ["vision", "language"], ["qformer", "language_projection"]),
    "clip": ("image_text", ["vision", "text"], ["visual_projection", "text_projection"]),
    "vit_classifier": ("image", ["vision"], ["classifier"]),
    "timm_eva02": ("image", ["vision"], []),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Eight pictures with everything that a sample may have."""
    from PIL import Image

    random, rows = Random(0), []
    for number in range(8):
        Image.effect_noise((28, 28), 64).convert("RGB").save(tmp_path / f"{number}.png")
        text = " ".join(random.choices(WORDS, k=3 + number % 4))
        rows.append({"image": f"{number}.png", "text": text, "question": text, "answers": ["w1"], "label": number % 3})
    (tmp_path / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "index.jsonl"


def command(capsys: Any, *arguments: str | Path) -> str:
    sys.argv = ["ecoflap", *map(str, arguments)]
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code in (0, None), said.err
    return said.out


@pytest.mark.parametrize("name", marked(name for name in RUNS if name in ROWS))
def test_inspect_plan_and_run(
    name: str, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
):
    monkeypatch.setattr("sys.argv", [])
    dataset, towers, included = RUNS[name]
    row = ROWS[name]
    adapter = row.adapter()
    adapter.save(row.build(), tmp_path / "model")
    inspected = command(capsys, "inspect", tmp_path / "model")
    assert all(word in inspected for word in [*towers, *included, "never pruned", "embedding", "norm"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"version: 1\nmodel: ./model\nsparsity: 0.5\nprune: wanda\nscore: {{use: zeroth_order, samples: 2}}\n"
        f"calibration: {{use: {dataset}, path: {pictures.name}, samples: 8, batch_size: 2}}\n"
        f"include: [{', '.join(included)}]\nexport: [safetensors, hugging_face]\n"
    )
    assert "shared" in command(capsys, "plan", recipe) or len(towers) == 1
    command(capsys, "run", recipe, "--folder", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert set(report["towers"]) == {*towers, *included}
    again = row.reload(tmp_path / "run" / "exports" / "hugging_face")
    packed = row.reload(tmp_path / "run" / "model")
    torch.testing.assert_close(again.state_dict(), packed.state_dict(), rtol=0, atol=0)


@pytest.mark.skipif("clip" not in ROWS, reason="these families are not of this environment")
def test_a_run_knows_its_classifier_and_keeps_the_processor_it_was_given(pictures: Path, tmp_path: Path):
    """Another file under the same name is another run; a processor of the caller's is not exchanged."""
    from safetensors.torch import save_file

    row, classifier = ROWS["clip_vision"], tmp_path / "classes.safetensors"
    given = row.adapter()
    given.save(row.build(), tmp_path / "model")
    width = row.build().visual_projection.weight.shape[0]

    def run() -> ecoflap.Run:
        recipe = {
            "version": 1,
            "model": {"source": str(tmp_path / "model"), "adapter": {"use": "clip", "classifier": str(classifier)}},
            "calibration": {"use": "image", "path": str(pictures), "samples": 4},
            "sparsity": 0.5,
            "score": {"use": "zeroth_order", "samples": 2, "joint": True},
            "prune": "magnitude",
        }
        return ecoflap.run(recipe, processor=Counting(), folder=tmp_path / "run")

    asked: list[int] = []
    original = given.processor.__class__.__call__

    class Counting:
        """The same processor, that tells when it is asked."""

        def __getattr__(self, name: str) -> Any:
            asked.append(1)
            return getattr(given.processor, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            asked.append(1)
            return original(given.processor, *args, **kwargs)

    save_file({"classes": torch.randn(3, width)}, classifier)
    run()
    assert asked
    run()  # finished, and taken over
    save_file({"classes": torch.randn(3, width)}, classifier)
    with pytest.raises(ecoflap.EcoflapError, match="was begun with another adapter"):
        run()
