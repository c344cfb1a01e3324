"""What the LLaVA in the box answers, by type of question, asked through transformers alone.

    python examples/box/llava/check_llava.py

The whole test set, two questions on each of 1,000 images, greedily, with the processor that lies beside the model. An
answer is right when it is the annotated one letter for letter. Beside it stand what it answers when each question comes
with another image, and a baseline that sees none: the answer that the question has most often in the training part.
"""

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from PIL import Image
from questions import Asked, drawn_for_test, image_file, training

HERE = Path(__file__).parent
TOKENS = 6
"""More than any answer and its end have."""


@torch.no_grad()
def said(model: Any, processor: Any, asked: Sequence[Asked], images: Sequence[int], at_once: int = 100) -> list[str]:
    """Give the answers, each asked about the image of the same place."""
    processor.tokenizer.padding_side = "left"
    found: list[str] = []
    for start in range(0, len(asked), at_once):
        texts = [prompt(processor, one.question) for one in asked[start : start + at_once]]
        shown = [Image.open(image_file("test", image)).convert("RGB") for image in images[start : start + at_once]]
        batch = processor(images=shown, text=texts, padding=True, return_tensors="pt").to(model.dtype)
        tokens = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False)
        found += processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in found]


def prompt(processor: Any, question: str) -> str:
    """Write a question down as a chat is put to the model."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text


def blind(asked: Sequence[Asked]) -> list[str]:
    """Give the answers of the baseline that sees no image."""
    often: dict[str, Counter[str]] = defaultdict(Counter)
    for rows in training(0)[0].values():
        for one in rows:
            often[one.question][one.answer] += 1
    return [often[one.question].most_common(1)[0][0] if one.question in often else "" for one in asked]


def shares(asked: Sequence[Asked], answers: Sequence[str]) -> dict[str, float]:
    """Give the share of right answers by type, and of all."""
    right: dict[str, list[bool]] = defaultdict(list)
    for one, answer in zip(asked, answers, strict=True):
        right[one.kind].append(answer == one.answer)
        right["all"].append(answer == one.answer)
    return {kind: sum(right[kind]) / len(right[kind]) for kind in ("colour", "shape", "yes/no", "all")}


def table(columns: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]) -> str:
    """Write it in Markdown, a type of question a row; the last is of all, with its standard error."""
    lines = [f"| question | of them | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for kind, count in counts.items():
        cells = [
            f"{column[kind]:.4f} ± {math.sqrt(column[kind] * (1 - column[kind]) / count):.4f}"
            for column in columns.values()
        ]
        lines.append(f"| {kind} | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the LLaVA in the box.")
    parser.add_argument("--model", type=Path, default=HERE / "built" / "model")
    parser.add_argument("--every", type=int, default=1, help="ask every so many questions only")
    chosen = parser.parse_args()
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(chosen.model, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(chosen.model, local_files_only=True)
    asked = drawn_for_test(0)[:: chosen.every]
    images = [one.image for one in asked]
    others = Random("shuffled").sample(images, len(images))
    answers = said(model, processor, asked, images)
    columns = {
        "right": shares(asked, answers),
        "another image": shares(asked, said(model, processor, asked, others)),
        "no image": shares(asked, blind(asked)),
    }
    counts = {**dict(sorted(Counter(one.kind for one in asked).items())), "all": len(asked)}
    print(table(columns, counts))
    wrong = [(one, answer) for one, answer in zip(asked, answers, strict=True) if answer != one.answer]
    for one, answer in wrong:
        print(json.dumps({"image": one.image, "question": one.question, "answer": one.answer, "said": answer}))


if __name__ == "__main__":
    main()
