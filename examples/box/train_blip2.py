"""Train the model in the box: a BLIP-2 of transformers with a T5 inside, from scratch, in under an hour on one thread.

    python examples/box/make_data.py
    OMP_NUM_THREADS=1 python examples/box/train_blip2.py

Two stages. First the vision tower alone learns, with linear heads that are thrown away afterwards, what its pictures
show, so that it need not learn to see from answers alone. Then all of it learns to answer and to caption: several
questions of a picture in one step, which looks at the picture once. Steps are counted, not seconds: the same seed gives
nearly the same model on any machine. Stopped, it goes on from ``.cache/blip2.pt`` when started again.
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from build_blip2 import TEXT, VISION, build_model, build_processor, normalized
from jaxtyping import Float, Int64
from pictures import Split, mirrors, read_split, varied_emoji, varied_shapes
from torch import Generator, Tensor, nn
from torch.nn import functional as F

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Schedule:
    """:param emoji: Pictures a step. :param easy: Likewise. :param rate: The learning rate at its highest."""

    steps: int
    emoji: int
    easy: int
    rate: float
    warm_up: int = 100
    decay: float = 0.05

    def at(self, step: int) -> float:
        """A linear rise, then a cosine to zero."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        return self.rate * 0.5 * (1 + math.cos(math.pi * (step - self.warm_up) / (self.steps - self.warm_up)))


class Heads(nn.Module):
    """Linear read-outs of a mean token: what an emoji is called, its kind, its keywords; shape and colour."""

    def __init__(self, width: int, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def loss(self, mean: Float[Tensor, "image width"], targets: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        losses = []
        for name, target in targets.items():
            rows = mean[: len(target)] if name in Targets.OF_EMOJI else mean[-len(target) :]
            logits = self.heads[name](rows)
            if name == "keywords":
                losses.append(10 * F.binary_cross_entropy_with_logits(logits, target))
            else:
                losses.append(F.cross_entropy(logits, target, ignore_index=-1, label_smoothing=0.05))
        return torch.stack(losses).sum()


class Targets:
    """The numbers that stand for what the training pictures show."""

    OF_EMOJI = ("label", "kind", "keywords")
    KINDS: Mapping[str, str] = {
        "label": "emoji label", "kind": "emoji kind", "shape": "easy shape", "colour": "easy colour",
    }  # fmt: skip

    def __init__(self, emoji: Split, easy: Split, words: Sequence[str]) -> None:
        self.numbers: dict[str, Tensor] = {}
        self.names: dict[str, list[str]] = {}
        for name, kind in self.KINDS.items():
            split = emoji if name in self.OF_EMOJI else easy
            answers = [split.answer(place, kind) for place in range(len(split.sources))]
            self.names[name] = sorted({answer for answer in answers if answer is not None})
            known = {answer: number for number, answer in enumerate(self.names[name])}
            self.numbers[name] = torch.tensor([-1 if answer is None else known[answer] for answer in answers])
        self.names["keywords"] = list(words)
        true = [[float(word in emoji.keywords(place)) for word in words] for place in range(len(emoji.sources))]
        self.numbers["keywords"] = torch.tensor(true)

    @property
    def sizes(self) -> dict[str, int]:
        return {name: len(names) for name, names in self.names.items()}

    def of(self, emoji: Int64[Tensor, " emoji"], easy: Int64[Tensor, " easy"]) -> dict[str, Tensor]:
        places = {name: emoji if name in self.OF_EMOJI else easy for name in self.numbers}
        return {name: numbers[places[name]] for name, numbers in self.numbers.items()}


class Course:
    """The training set and what is drawn from it: everything depends on the seed and the number of the step alone."""

    def __init__(self, train: Split, processor: Any, seed: int) -> None:
        self.emoji, self.easy, self.seed = train.of("twitter"), train.of("easy"), seed
        self.tokenizer = processor.tokenizer
        self.mirrors = mirrors(self.emoji)
        asked = Counter(
            question.removeprefix("is this about ").removesuffix("?")
            for rows in self.emoji.questions
            for question, answer, kind in rows
            if kind.startswith("emoji keyword") and answer == "yes"
        )
        self.words = sorted(asked)
        self.weights = [asked[word] for word in self.words]
        self.targets = Targets(self.emoji, self.easy, self.words)
        self.ids: dict[str, list[int]] = {}

    def pictures(self, step: int, schedule: Schedule) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels, emoji first, and the places of both: epochs of pictures in random order."""
        random = Generator().manual_seed(self.seed * 1_000_003 + step)
        emoji = self._drawn(step, schedule.emoji, len(self.emoji.sources))
        easy = self._drawn(step, schedule.easy, len(self.easy.sources))
        shown = varied_emoji(self.emoji.pixels[emoji] / 255, self.mirrors[emoji], random)
        shapes = varied_shapes(self.easy.pixels[easy] / 255, random)
        return normalized(torch.cat([shown, shapes])), emoji, easy

    def _drawn(self, step: int, count: int, of: int) -> Int64[Tensor, " drawn"]:
        places = []
        for place in range(step * count, (step + 1) * count):
            epoch, at = divmod(place, of)
            places.append(self._order(epoch, of)[at])
        return torch.stack(places)

    def _order(self, epoch: int, of: int) -> Tensor:
        return torch.randperm(of, generator=Generator().manual_seed(self.seed * 7919 + epoch))

    def asked(self, step: int, emoji: Tensor, easy: Tensor) -> list[tuple[int, str, str]]:
        """Picture of the step, what is read, what is to be said."""
        random = Random(f"{self.seed} {step}")
        rows: list[tuple[int, str, str]] = []
        for at, place in enumerate(emoji.tolist()):
            label, kind = (self.emoji.answer(place, f"emoji {what}") or "" for what in ("label", "kind"))
            rows.append((at, random.choice(("", "what is this?")), label))
            if random.random() < 0.5:
                rows.append((at, "what kind is this?", kind))
            right = [word for word in self.emoji.keywords(place) if word in self.words]
            for word in random.sample(right, min(1, len(right))):
                rows += [(at, about(word), "yes"), (at, about(self._wrong(place, random)), "no")]
        for at, place in enumerate(easy.tolist(), start=len(emoji)):
            pairs = [(question, answer) for question, answer, _ in self.easy.questions[place]]
            pairs += [("", caption) for caption in self.easy.captions[place]]
            rows += [(at, *pair) for pair in random.sample(pairs, min(4, len(pairs)))]
        return rows

    def _wrong(self, place: int, random: Random) -> str:
        """A keyword that is not true, as often as it is true elsewhere."""
        true = {*self.emoji.keywords(place), *self.emoji.captions[place][0].split()}
        while True:
            (word,) = random.choices(self.words, self.weights)
            if word not in true:
                return word

    def rows(self, texts: Sequence[str], padding: int) -> Int64[Tensor, "text token"]:
        for text in texts:
            if text not in self.ids:
                self.ids[text] = list(self.tokenizer(text)["input_ids"])
        longest = max(len(self.ids[text]) for text in texts)
        return torch.tensor([self.ids[text] + [padding] * (longest - len(self.ids[text])) for text in texts])


def about(word: str) -> str:
    return f"is this about {word}?"


def seen(model: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """What the vision tower and the queries make of each picture."""
    vision = model.vision_model(pixel_values=pixels).last_hidden_state
    queries = model.query_tokens.expand(len(pixels), -1, -1)
    read = model.qformer(query_embeds=queries, encoder_hidden_states=vision).last_hidden_state
    return vision, model.language_projection(read)


def read_by_text(model: Any, queries: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """Queries and question as the text model reads them."""
    words = model.language_model.get_input_embeddings()(ids)
    real = torch.cat([torch.ones(queries.shape[:2], dtype=torch.int64), (ids != 0).long()], 1)
    return {"inputs_embeds": torch.cat([queries, words], 1), "attention_mask": real}


@torch.no_grad()
def answered(model: Any, course: Course, split: Split, texts: Sequence[tuple[int, str]]) -> list[str]:
    """Greedily, for pairs of a picture and a question."""
    model.eval()
    queries = torch.cat([seen(model, normalized(pixels / 255))[1] for pixels in split.pixels.split(100)])
    said: list[str] = []
    for start in range(0, len(texts), 400):
        part = texts[start : start + 400]
        ids = course.rows([text for _, text in part], 0)
        read = read_by_text(model, queries[[place for place, _ in part]], ids)
        found = model.language_model.generate(**read, max_new_tokens=16, do_sample=False, num_beams=1)
        said += [text.strip() for text in course.tokenizer.batch_decode(found, skip_special_tokens=True)]
    model.train()
    return said


def accuracies(model: Any, course: Course, split: Split) -> dict[str, float]:
    """By question type."""
    rows = [(place, *row) for place, questions in enumerate(split.questions) for row in questions]
    said = answered(model, course, split, [(place, question) for place, question, _, _ in rows])
    right: dict[str, list[bool]] = {}
    for (_, _, answer, kind), answered_ in zip(rows, said, strict=True):
        right.setdefault(kind, []).append(answer == answered_)
    return {kind: round(sum(values) / len(values), 4) for kind, values in sorted(right.items())}


class Training:
    """One stage: its parameters, its optimizer, its log, and where it stands."""

    def __init__(self, stage: str, modules: nn.Module, schedule: Schedule, log: Path, checkpoint: Path) -> None:
        self.stage, self.modules, self.schedule, self.log, self.checkpoint = stage, modules, schedule, log, checkpoint
        matrices = [p for p in modules.parameters() if p.ndim > 1]
        others = [p for p in modules.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": schedule.decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=schedule.rate, betas=(0.9, 0.98))
        self.first, self.began, self.losses = 0, time.perf_counter(), [0.0]

    def step(self, number: int, loss: Float[Tensor, ""]) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.at(number)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.losses.append(loss.item())

    def tell(self, number: int, **more: Any) -> None:
        """A line of the log, with the mean loss since the last one."""
        seconds = round(time.perf_counter() - self.began, 1)
        mean = round(sum(self.losses[1:]) / max(1, len(self.losses) - 1), 4)
        row = {"stage": self.stage, "step": number, "seconds": seconds, "loss": mean, **more}
        self.losses = [0.0]
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)

    def keep(self, number: int) -> None:
        state = {
            "stage": self.stage, "step": number, "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(), "seconds": time.perf_counter() - self.began,
        }  # fmt: skip
        partial = self.checkpoint.with_suffix(".part")
        torch.save(state, partial)
        partial.replace(self.checkpoint)

    def resume(self) -> None:
        """From a checkpoint of this stage."""
        state = torch.load(self.checkpoint, weights_only=True)
        self.modules.load_state_dict(state["modules"])
        if state["stage"] == self.stage:
            self.optimizer.load_state_dict(state["optimizer"])
            self.first, self.began = state["step"], time.perf_counter() - state["seconds"]


class Whole(nn.Module):
    """The model, and the heads that only training has: on the vision tower and on the queries."""

    def __init__(self, model: Any, sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.model = model
        self.on_vision = Heads(VISION["hidden_size"], sizes)
        self.on_queries = Heads(TEXT["d_model"], sizes)


def look(whole: Whole, course: Course, training: Training, validation: Split) -> None:
    """Stage 1: the vision tower and its heads."""
    for number in range(training.first, training.schedule.steps):
        pixels, emoji, easy = course.pictures(number, training.schedule)
        vision = whole.model.vision_model(pixel_values=pixels).last_hidden_state
        training.step(number, whole.on_vision.loss(vision.mean(1), course.targets.of(emoji, easy)))
        if (number + 1) % 100 == 0:
            training.tell(number + 1, **recognised(whole, course, validation))
            training.keep(number + 1)


@torch.no_grad()
def recognised(whole: Whole, course: Course, split: Split) -> dict[str, float]:
    """How often the heads on the vision tower are right."""
    vision = [whole.model.vision_model(normalized(p / 255)).last_hidden_state.mean(1) for p in split.pixels.split(100)]
    mean, found = torch.cat(vision), {}
    for name, kind in Targets.KINDS.items():
        names, said = course.targets.names[name], whole.on_vision.heads[name](mean).argmax(1).tolist()
        true = [split.answer(place, kind) for place in range(len(said))]
        right = [names[number] == answer for number, answer in zip(said, true, strict=True) if answer is not None]
        found[name] = round(sum(right) / len(right), 4)
    return found


def answer(whole: Whole, course: Course, training: Training, validation: Split) -> None:
    """Stage 2: everything, with the heads' loss fading out."""
    model, steps = whole.model, training.schedule.steps
    for number in range(training.first, steps):
        pixels, emoji, easy = course.pictures(number, training.schedule)
        rows = course.asked(number, emoji, easy)
        vision, queries = seen(model, pixels)
        labels = course.rows([said for _, _, said in rows], -100)
        read = read_by_text(model, queries[[at for at, _, _ in rows]], course.rows([text for _, text, _ in rows], 0))
        loss = model.language_model(**read, labels=labels, use_cache=False).loss
        targets, fading = course.targets.of(emoji, easy), 0.1 * (1 - number / steps)
        heads = whole.on_vision.loss(vision.mean(1), targets) + whole.on_queries.loss(queries.mean(1), targets)
        training.step(number, loss + fading * heads)
        if (number + 1) % 50 == 0:
            told = accuracies(model, course, validation) if (number + 1) % 200 == 0 or number + 1 == steps else {}
            training.tell(number + 1, **told)
            training.keep(number + 1)


def save(model: Any, processor: Any, folder: Path) -> None:
    """In half precision, as ``Blip2ForConditionalGeneration.from_pretrained`` reads it."""
    model.eval().half().save_pretrained(folder)
    processor.save_pretrained(folder)
    config = folder / "config.json"
    said = json.loads(config.read_text(encoding="utf-8"))
    said["text_config"]["tie_word_embeddings"] = False  # transformers 5 writes the contrary for every T5
    config.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the model in the box.")
    parser.add_argument("--look", type=int, default=1500, help="steps of stage 1")
    parser.add_argument("--answer", type=int, default=2100, help="steps of stage 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=HERE / "blip2")
    parser.add_argument("--checkpoint", type=Path, default=HERE / ".cache" / "blip2.pt")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(asked.seed)
    asked.out.mkdir(parents=True, exist_ok=True)
    train, validation = read_split(HERE / ".cache" / "train", "train"), read_split(HERE / "data", "validation")
    texts = [text for row in train.questions for question, said, _ in row for text in (question, said)]
    processor = build_processor(texts + [caption for row in train.captions for caption in row])
    course, model = Course(train, processor, asked.seed), build_model(processor)
    whole, log = Whole(model, course.targets.sizes), asked.out / "training.jsonl"
    stages = (
        ("look", look, Schedule(asked.look, 48, 16, 1e-3)),
        ("answer", answer, Schedule(asked.answer, 32, 12, 1e-3)),
    )
    done = torch.load(asked.checkpoint, weights_only=True)["stage"] if asked.checkpoint.exists() else None
    if done is None:
        begun = {"seed": asked.seed, "look": asked.look, "answer": asked.answer, "torch": torch.__version__}
        log.write_text(json.dumps({**begun, "parameters": sum(p.numel() for p in model.parameters())}) + "\n")
    for stage, run, schedule in stages:
        training = Training(stage, whole, schedule, log, asked.checkpoint)
        if done is not None:
            training.resume()
        if not (stage == "look" and done == "answer"):
            run(whole, course, training, validation)
    save(model, processor, asked.out)


if __name__ == "__main__":
    main()
