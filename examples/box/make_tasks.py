"""Write the questions in the box as a task of two harnesses, which ask a model about pictures without a network.

    python examples/box/make_tasks.py tasks --samples 500
    ecoflap run box/blip2 --allow-code \\
        --set 'evaluate={use: lmms_eval, tasks: [box_vqa], include_path: …/tasks/lmms_eval}'

The folder then holds ``questions.jsonl`` and a task ``box_vqa`` each for EleutherAI's harness (``lm_eval``) and for
LMMs-Lab's (``lmms_eval``). They are the first questions of a split, an answer is right where it is the annotated one
but for capitals and blanks, and files are named in full, so that the folder is of use on this machine only. With
``--questions llava/built/questions/test.jsonl`` they are the LLaVA's, or those of any file of lines that
``image_question_answer`` reads.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from check import DATA, read

NAME = "box_vqa"
CODE = '''"""Open a question's picture, and judge an answer."""

from PIL import Image


def pictures(doc):
    with Image.open(doc["image"]) as picture:
        return [picture.convert("RGB")]


def judge(doc, results):
    return {"exact_match": float(results[0].strip().lower() == doc["answer"].lower())}
'''
TASK = """task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {questions}}}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_text: {text}
{shows}: !function {name}.pictures
doc_to_target: answer
process_results: !function {name}.judge
generation_kwargs: {{until: ["\\n"], {tokens}: {most}, do_sample: false}}
metric_list:
  - {{metric: exact_match, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""
HARNESSES = {
    "lm_eval": {"text": '"<image>{{question}}"', "shows": "doc_to_image", "tokens": "max_gen_toks"},
    "lmms_eval": {"text": "question", "shows": "doc_to_visual", "tokens": "max_new_tokens"},
}


def rows_of(split: str, samples: int) -> list[dict[str, str]]:
    """The first questions of a split, with their pictures' files."""
    return [
        {"image": str(asked.file.resolve()), "question": asked.question, "answer": asked.answer, "kind": asked.kind}
        for asked in read(DATA, split)[:samples]
    ]


def rows_in(file: Path, samples: int) -> list[dict[str, str]]:
    """The first questions of a file with one on each line, whose pictures lie where it says, seen from its folder."""
    lines = file.read_text(encoding="utf-8").splitlines()[:samples]
    return [
        {
            "image": str((file.parent / row["image"]).resolve()), "question": row["question"],
            "answer": row["answers"][0], "kind": row["kind"],
        }
        for row in map(json.loads, lines)
    ]  # fmt: skip


def write(folder: Path, rows: Sequence[Mapping[str, str]], most: int = 10) -> list[Path]:
    """The questions and both tasks; their folders, as ``include_path`` takes them.

    :param most: How many tokens an answer may have.
    """
    folder.mkdir(parents=True, exist_ok=True)
    questions = folder.resolve() / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    files = {"questions": json.dumps(str(questions)), "cache": json.dumps(str(folder.resolve() / "cache"))}
    for harness, words in HARNESSES.items():
        (folder / harness).mkdir(exist_ok=True)
        (folder / harness / f"{NAME}.py").write_text(CODE, encoding="utf-8")
        task = TASK.format(name=NAME, most=most, **files, **words)
        (folder / harness / f"{NAME}.yaml").write_text(task, encoding="utf-8")
    return [folder / harness for harness in HARNESSES]


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line, and say where the tasks are."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test", choices=("test", "validation"))
    parser.add_argument("--questions", type=Path, help="a file of lines, in the place of the box's own split")
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=10, help="how many tokens an answer may have")
    given = parser.parse_args(arguments)
    asked = given.questions
    rows = rows_in(asked, given.samples) if asked else rows_of(given.split, given.samples)
    for folder in write(given.folder, rows, given.tokens):
        print(f"include_path: {folder.resolve()}")


if __name__ == "__main__":
    main()
