"""What the model in the box knows, and what pruning costs it: accuracy by question type, dense and pruned.

    python examples/box/check.py                       # on the validation part, dense and at 50, 60 and 70 %
    python examples/box/check.py --split test --sparsity

It asks transformers alone, with the processor that lies beside the model, and decodes greedily. An answer is right when
it is the annotated one letter for letter. What begins with the right tokens and then goes on, for want of an end, is
counted apart. Beside it stand two baselines that see no picture: the answer that each question has most often in the
training set, and the one that all questions have most often (they need the training set that ``make_data.py`` makes).
"""

import argparse
import json
import tempfile
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

HERE = Path(__file__).parent
DATA, TRAIN = HERE / "data", HERE / ".cache" / "train"
TOKENS = 20
"""Longer than any answer."""


@dataclass(frozen=True)
class Asked:
    """One question of a split."""

    file: Path
    question: str
    answer: str
    kind: str


def read(folder: Path, split: str) -> list[Asked]:
    """All questions, those of one picture together."""
    asked = json.loads((folder / f"{split}_questions.json").read_text(encoding="utf-8"))
    files = {row["id"]: folder / "images" / row["file_name"] for row in asked["images"]}
    texts = {row["question_id"]: row["question"] for row in asked["questions"]}
    answers = json.loads((folder / f"{split}_annotations.json").read_text(encoding="utf-8"))["annotations"]
    return [
        Asked(files[row["image_id"]], texts[row["question_id"]], row["multiple_choice_answer"], row["question_type"])
        for row in answers
    ]


@torch.no_grad()
def said(model: Any, processor: Any, asked: Sequence[Asked], at_once: int = 128) -> list[list[int]]:
    """The tokens of each answer, after the one that starts all, up to the end or to :data:`TOKENS`."""
    found: list[list[int]] = []
    for start in range(0, len(asked), at_once):
        part = asked[start : start + at_once]
        images = [Image.open(row.file).convert("RGB") for row in part]
        texts = [row.question for row in part]
        batch = processor(images=images, text=texts, padding=True, return_tensors="pt")
        tokens = model.generate(**batch, max_new_tokens=TOKENS, do_sample=False, num_beams=1)
        found += [row[1:] for row in tokens.tolist()]
    return found


def marked(processor: Any, asked: Sequence[Asked], tokens: Sequence[Sequence[int]]) -> list[str]:
    """``right``, ``endless`` (the right tokens, without an end after them) or ``wrong``."""
    marks = []
    for row, got in zip(asked, tokens, strict=True):
        text = processor.tokenizer.decode(got, skip_special_tokens=True).strip()
        wanted = processor.tokenizer(row.answer, add_special_tokens=False)["input_ids"]
        endless = list(got[: len(wanted)]) == wanted
        marks.append("right" if text == row.answer else "endless" if endless else "wrong")
    return marks


def shares(asked: Sequence[Asked], marks: Sequence[str], mark: str = "right") -> dict[str, float]:
    """By question type, and of all."""
    counted: dict[str, list[bool]] = defaultdict(list)
    for row, got in zip(asked, marks, strict=True):
        counted[row.kind].append(got == mark)
        counted["all"].append(got == mark)
    return {kind: sum(values) / len(values) for kind, values in sorted(counted.items())}


def blind(train: Sequence[Asked], asked: Sequence[Asked]) -> dict[str, list[str]]:
    """Marks of the two baselines that see no picture."""
    overall = Counter(row.answer for row in train)
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    for row in train:
        by_question[row.question][row.answer] += 1
    often = overall.most_common(1)[0][0]
    guesses = {question: answers.most_common(1)[0][0] for question, answers in by_question.items()}
    return {
        "majority": ["right" if row.answer == often else "wrong" for row in asked],
        "question only": ["right" if row.answer == guesses.get(row.question, often) else "wrong" for row in asked],
    }


def pruned(folder: Path, sparsity: float, work: Path, samples: int) -> Path:
    """A copy of the model with that share of every prunable matrix's weights gone, by Wanda."""
    import ecoflap

    index = work / "calibration.jsonl"
    rows = [
        {"image": str(row.file), "question": row.question, "answer": row.answer} for row in read(DATA, "calibration")
    ]
    index.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "version": 1, "seed": 0, "model": {"source": str(folder), "dtype": "float32"}, "sparsity": sparsity,
        "calibration": {"use": "image_question_answer", "path": str(index), "samples": samples},
        "allocate": "uniform", "prune": "wanda",
    }  # fmt: skip
    run = work / f"{sparsity}"
    ecoflap.run(recipe, folder=run)
    return run / "model"


def measured(folder: Path, asked: Sequence[Asked]) -> Mapping[str, dict[str, float]]:
    from transformers import AutoProcessor, Blip2ForConditionalGeneration

    model = Blip2ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    marks = marked(processor, asked, said(model, processor, asked))
    return {"right": shares(asked, marks), "endless": shares(asked, marks, "endless")}


def table(columns: Mapping[str, Mapping[str, float]]) -> str:
    """In Markdown, a question type a row."""
    kinds = [kind for kind in next(iter(columns.values())) if kind != "all"] + ["all"]
    lines = [f"| question | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    lines += [f"| {kind} | {' | '.join(f'{column[kind]:.3f}' for column in columns.values())} |" for kind in kinds]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Accuracy of the model in the box, dense and pruned.")
    parser.add_argument("--model", type=Path, default=HERE / "blip2")
    parser.add_argument("--split", default="validation", choices=("validation", "test"))
    parser.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.6, 0.7])
    parser.add_argument("--samples", type=int, default=128)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    asked = read(DATA, chosen.split)
    columns: dict[str, Mapping[str, float]] = {}
    if TRAIN.is_dir():
        columns |= {name: shares(asked, marks) for name, marks in blind(read(TRAIN, "train"), asked).items()}
    found = measured(chosen.model, asked)
    columns["dense"], columns["endless"] = found["right"], found["endless"]
    with tempfile.TemporaryDirectory() as work:
        for sparsity in chosen.sparsity:
            found = measured(pruned(chosen.model, sparsity, Path(work), chosen.samples), asked)
            columns[f"{sparsity:.0%}"], columns[f"{sparsity:.0%} endless"] = found["right"], found["endless"]
    print(f"{len(asked)} questions of the {chosen.split} part\n\n{table(columns)}")


if __name__ == "__main__":
    main()
