"""Train the CLIP that ships in examples/box/clip: small, from scratch, on the emoji of one drawing style.

    python examples/box/make_data.py
    python examples/box/train_clip.py

Less than an hour on one free CPU thread. A killed training goes on from its checkpoint in ``.cache/clip``: all that is
random follows from the seed and the step. Validation is looked at and chooses nothing; the last step is what ships.

The loss is CLIP's symmetric InfoNCE (Radford et al., ICML 2021). There is one picture of each emoji, so it is moved,
bent and recoloured anew each time, and loses a share of its patches (Li et al., FLIP, CVPR 2023).
"""

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

HERE = Path(__file__).parent
TRAIN, DATA, WORK, SHIPPED = HERE / ".cache/train", HERE / "data", HERE / ".cache/clip", HERE / "clip"
SEED = 0
CYCLES, WARM_UP, WHOLE = (2000, 3200), 50, 250  # the last so many steps of a cycle see whole images
BATCH, KEPT = 96, 0.5  # the share of the patches that a training image keeps
MUON_RATE, ADAM_RATE, DECAY, BETAS = 3e-3, 2e-3, 0.1, (0.9, 0.98)
SIZE, PATCH, LENGTH, VOCABULARY, WIDTH = 64, 8, 32, 2048, 128
VISION_LAYERS, TEXT_LAYERS, HEADS = 4, 2, 4
FIRST_SCALE, LARGEST_SCALE = 3.0, 4.6052  # natural logarithms; 100 is the most that CLIP allows itself
LOG_EVERY, WATCH_EVERY = 25, 200
TEMPLATES = ("{}", "an emoji of {}", "a picture of {}", "a drawing of {}", "{}, an emoji")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
COLOURS = frozenset(
    ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white", "pink", "grey", "light", "medium",
     "dark")
)  # fmt: skip
SIDES = frozenset(
    ("left", "right", "clockwise", "counterclockwise", "letter", "number", "button", "keycap", "clock", "input", "sign",
     "facing", "moon", "thirty", "mark")
)  # fmt: skip
SIDED = frozenset(
    ("country flag", "subdivision flag", "arrow", "keycap", "alphanum", "math", "punctuation", "currency", "av symbol",
     "zodiac", "time", "music", "religion", "other symbol", "writing")
)  # fmt: skip


@dataclass(frozen=True)
class Concept:
    """What training knows of an emoji beside its picture."""

    label: str
    tags: tuple[str, ...]
    kind: str
    seen: bool = True  # whether pictures of its concept are in the training set

    @property
    def words(self) -> frozenset[str]:
        return frozenset(re.findall(r"[a-z]+", " ".join((self.label, *self.tags))))

    @property
    def keeps_colours(self) -> bool:
        """Whether another colour would make another thing of it."""
        return bool(self.words & COLOURS) or self.kind.endswith("flag")

    @property
    def keeps_sides(self) -> bool:
        """Whether its mirror image would be another thing."""
        return bool(self.words & SIDES) or self.kind in SIDED


def tokenizer(texts: Sequence[str]) -> Any:
    """CLIP's own kind, bytes and their merges, learnt from the training captions: no text is unknown to it."""
    from tokenizers import pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*letters, *(letter + "</w>" for letter in letters)]
    # as special tokens they have fixed numbers, by which ties are broken; else these would follow a random hash
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=known, end_of_word_suffix="</w>", show_progress=False
    )
    empty = CLIPTokenizer().backend_tokenizer
    empty.train_from_iterator(texts, trainer)
    merges = [tuple(pair) for pair in json.loads(empty.to_str())["model"]["merges"]][: VOCABULARY - len(known) - 2]
    known += dict.fromkeys(one + other for one, other in merges)
    numbers = {word: number for number, word in enumerate([*known, BEGIN, END])}
    return CLIPTokenizer(vocab=numbers, merges=merges, model_max_length=LENGTH)


def image_processor() -> Any:
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def new_model(tokens: Any) -> Any:
    from transformers import CLIPConfig, CLIPModel

    tower = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": HEADS, "projection_dim": WIDTH
    }  # fmt: skip
    text = {
        **tower, "num_hidden_layers": TEXT_LAYERS, "vocab_size": len(tokens), "max_position_embeddings": LENGTH,
        "bos_token_id": tokens.bos_token_id, "eos_token_id": tokens.eos_token_id, "pad_token_id": tokens.pad_token_id,
    }  # fmt: skip
    vision = {**tower, "num_hidden_layers": VISION_LAYERS, "image_size": SIZE, "patch_size": PATCH}
    torch.manual_seed(SEED)
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH, logit_scale_init_value=FIRST_SCALE)
    )


def caption(concept: Concept, random: Random) -> str:
    """Its label in a template, some of its tags, or both."""
    tags = random.sample(concept.tags, min(len(concept.tags), random.randint(1, 4)))
    kind = random.random()
    if tags and kind < 0.25:
        return ", ".join(tags)
    label = random.choice(TEMPLATES).format(concept.label)
    return f"{label}: {', '.join(tags)}" if tags and kind < 0.5 else label


def augment(pixels: Tensor, recolour: Tensor, mirror: Tensor, generator: torch.Generator) -> Tensor:
    """Random views, as values of 0 to 1: moved, bent, recoloured, shaded, blurred. What lies outside is white.

    :param pixels: uint8 [batch, 3, height, width].
    :param recolour: Of each image, whether its hue may change freely.
    :param mirror: Of each image, whether it may be mirrored.
    """
    ink = 1 - pixels.float() / 255  # 0 is white: the linear changes below leave the background as it is
    ink = F.grid_sample(ink, _places(len(ink), mirror, generator), padding_mode="zeros", align_corners=False)
    ink = torch.einsum("nij,njhw->nihw", _colours(len(ink), recolour, generator), ink).clamp(1e-4, 1)
    ink = ink ** _uniform((len(ink), 1, 1, 1), 0.65, 1.5, generator)
    shade = F.interpolate(_uniform((len(ink), 1, 3, 3), 0.75, 1.25, generator), ink.shape[-2:], mode="bicubic")
    return 1 - _blurred(ink * shade, generator).clamp(0, 1)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def _places(count: int, mirror: Tensor, generator: torch.Generator) -> Tensor:
    """Where each pixel comes from: an affine map, and a smooth displacement of up to some pixels."""
    angle = _uniform((count,), -1, 1, generator) ** 3 * 0.5
    size = _uniform((count,), 0.8, 1.3, generator)
    aspect = _uniform((count,), 0.85, 1.18, generator)
    shear = _uniform((count,), -0.12, 0.12, generator)
    turned = mirror & (torch.rand(count, generator=generator) < 0.5)
    side = 1 - 2 * turned.float()
    cos, sin = angle.cos() * size, angle.sin() * size
    rows = torch.stack([cos * aspect * side, shear - sin, sin * side, cos / aspect], -1).reshape(count, 2, 2)
    shift = _uniform((count, 2, 1), -0.14, 0.14, generator)
    grid = F.affine_grid(torch.cat([rows, shift], -1), [count, 3, SIZE, SIZE], align_corners=False)
    bend = 0.05 * torch.randn((count, 2, 5, 5), generator=generator)
    return grid + F.interpolate(bend, (SIZE, SIZE), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)


def _colours(count: int, recolour: Tensor, generator: torch.Generator) -> Tensor:
    """A 3 × 3 matrix for each image: a turn of the hue, a saturation (now and then none), a gain of each channel."""
    luma = torch.tensor([0.299, 0.587, 0.114])
    basis = torch.stack([luma, torch.tensor([0.596, -0.274, -0.322]), torch.tensor([0.211, -0.523, 0.312])])
    free = recolour & (torch.rand(count, generator=generator) < 0.25)
    turn = _uniform((count,), -0.25, 0.25, generator) + free * _uniform((count,), -3.1, 3.1, generator)
    grey = recolour & (torch.rand(count, generator=generator) < 0.1)
    strength = _uniform((count,), 0.5, 1.4, generator) * ~grey
    cos, sin, one = turn.cos() * strength, turn.sin() * strength, torch.ones(count)
    nil = torch.zeros(count)
    inner = torch.stack([one, nil, nil, nil, cos, -sin, nil, sin, cos], -1).reshape(count, 3, 3)
    gain = _uniform((count, 3, 1), 0.85, 1.15, generator) * _uniform((count, 1, 1), 0.75, 1.2, generator)
    return gain * (torch.linalg.inv(basis) @ inner @ basis)


def _blurred(ink: Tensor, generator: torch.Generator) -> Tensor:
    """A third of the images is blurred and a third sharpened, each by a random amount."""
    kernel = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    weight = (kernel[:, None] * kernel).expand(3, 1, 5, 5)
    soft = F.conv2d(ink, weight, padding=2, groups=3)
    amount = _uniform((len(ink), 1, 1, 1), -1, 1, generator)
    amount = torch.where(amount.abs() < 1 / 3, 0, amount)
    return ink + amount * (soft - ink)


def image_features(clip: Any, pixels: Tensor, kept: float, generator: torch.Generator) -> Tensor:
    """As ``get_image_features``, of a random share of each image's patches (Li et al., FLIP, CVPR 2023)."""
    tower = clip.vision_model
    hidden = tower.embeddings(pixels)
    if kept < 1:
        patches = hidden.shape[1] - 1
        chosen = torch.rand(len(pixels), patches, generator=generator).argsort(1)[:, : int(kept * patches)] + 1
        chosen = torch.cat([torch.zeros(len(pixels), 1, dtype=torch.long), chosen], 1)
        hidden = hidden.gather(1, chosen[..., None].expand(-1, -1, hidden.shape[-1]))
    hidden = tower.encoder(inputs_embeds=tower.pre_layrnorm(hidden)).last_hidden_state[:, 0]
    return F.normalize(clip.visual_projection(tower.post_layernorm(hidden)), dim=-1)


def loss(clip: Any, images: Tensor, texts: Tensor, same: Tensor) -> Tensor:
    """Symmetric InfoNCE; a pair whose text is also another's is no negative of it.

    :param same: [batch, batch], whether two texts are equal.
    """
    scale = clip.logit_scale.clamp(max=LARGEST_SCALE).exp()
    wrong = same & ~torch.eye(len(same), dtype=torch.bool)
    logits = (scale * images @ texts.T).masked_fill(wrong, -1e4)
    targets = torch.arange(len(logits))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def place(step: int) -> tuple[int, int]:
    """Which step of its cycle it is, and of how many."""
    for steps in CYCLES:
        if step < steps:
            return step, steps
        step -= steps
    raise ValueError("the training is over")


def rate(step: int) -> float:
    """Of the full rate: in each cycle a linear warm-up, then half a cosine to zero (Loshchilov & Hutter, ICLR 2017)."""
    at, steps = place(step)
    if at < WARM_UP:
        return (at + 1) / WARM_UP
    return 0.5 * (1 + math.cos(math.pi * (at - WARM_UP) / (steps - WARM_UP)))


def batch_of(step: int, count: int) -> list[int]:
    """Which concepts: each once an epoch, in an order of its own; never one twice in a batch."""
    epoch, place = divmod(step, count // BATCH)
    order = list(range(count))
    Random(f"{SEED} order {epoch}").shuffle(order)
    return order[place * BATCH : (place + 1) * BATCH]


def pictures(folder: Path, split: str, source: str) -> tuple[Tensor, list[Concept]]:
    """Of make_data.py's files: pixels as uint8 [count, 3, height, width], and what each picture shows."""
    import numpy as np

    from ecoflap.adapting import read_image

    captions = json.loads((folder / f"{split}_captions.json").read_text())
    said: dict[int, list[str]] = {}
    for row in captions["annotations"]:
        said.setdefault(row["image_id"], []).append(row["caption"])
    answers = json.loads((folder / f"{split}_annotations.json").read_text())["annotations"]
    kinds = {row["image_id"]: row for row in answers if "emoji kind" in row["question_type"]}
    images = [image for image in captions["images"] if image["source"] == source]
    read = [np.asarray(read_image(folder / "images" / image["file_name"])) for image in images]
    about = [concept(said[image["id"]], kinds[image["id"]]) for image in images]
    return torch.from_numpy(np.stack(read)).permute(0, 3, 1, 2).contiguous(), about


def concept(captions: Sequence[str], kind: Mapping[str, str]) -> Concept:
    """Of its label and keywords, and of the question which kind it is."""
    tags = tuple(captions[1].split(", ")) if len(captions) > 1 else ()
    return Concept(captions[0], tags, kind["multiple_choice_answer"], not kind["question_type"].endswith("unseen"))


def optimizers(clip: Any) -> tuple[torch.optim.Optimizer, ...]:
    """Muon (Jordan et al., 2024) for the matrices in the towers, AdamW for embeddings, norms and biases."""
    named = dict(clip.named_parameters())
    matrices = {name for name, value in named.items() if value.ndim == 2 and "embedding" not in name}
    muon = torch.optim.Muon(
        [named[name] for name in named if name in matrices], lr=MUON_RATE, weight_decay=DECAY,
        adjust_lr_fn="match_rms_adamw",
    )  # fmt: skip
    rest = [named[name] for name in named if name not in matrices]
    return muon, torch.optim.AdamW(rest, lr=ADAM_RATE, betas=BETAS, weight_decay=0.0)


def text_features(clip: Any, tokens: Any, texts: Sequence[str]) -> Tensor:
    """Normalised, [texts, features]."""
    input_ids = tokens(list(texts), padding=True, truncation=True, return_tensors="pt").input_ids
    return F.normalize(clip.get_text_features(input_ids).pooler_output, dim=-1)


def one_loss(clip: Any, tokens: Any, seen: tuple[Tensor, list[Concept]], step: int) -> Tensor:
    """Of the batch that belongs to a step, drawn and augmented as that step has it."""
    pixels, concepts = seen
    chosen, generator, random = (
        batch_of(step, len(concepts)),
        torch.Generator().manual_seed(step),
        Random(f"{SEED} {step}"),
    )
    shown = [concepts[index] for index in chosen]
    recolour, mirror = (
        torch.tensor([not getattr(one, keeps) for one in shown]) for keeps in ("keeps_colours", "keeps_sides")
    )
    texts = [caption(one, random) for one in shown]
    same = torch.tensor([[one == other for other in texts] for one in texts])
    views = augment(pixels[chosen], recolour, mirror, generator)
    at, steps = place(step)
    images = image_features(clip, 2 * views - 1, KEPT if at < steps - WHOLE else 1, generator)
    return loss(clip, images, text_features(clip, tokens, texts), same)


@torch.no_grad()
def watched(clip: Any, tokens: Any, labels: Sequence[str], shown: tuple[Tensor, list[Concept]]) -> float:
    """Share of the images whose nearest label is their own."""
    pixels, concepts = shown
    images = image_features(clip, pixels.float() / 127.5 - 1, 1, torch.Generator())
    texts = torch.cat([text_features(clip, tokens, labels[at : at + 256]) for at in range(0, len(labels), 256)])
    found = (images @ texts.T).argmax(1).tolist()
    return sum(labels[at] == one.label for at, one in zip(found, concepts, strict=True)) / len(concepts)


def keep(file: Path, clip: Any, both: Sequence[torch.optim.Optimizer], step: int) -> None:
    """A checkpoint: weights, the optimizers' states and the number of steps done."""
    tensors = {f"model {name}": value for name, value in clip.state_dict().items()}
    for place, one in enumerate(both):
        for number, state in one.state_dict()["state"].items():
            tensors |= {f"{place} {number} {name}": value for name, value in state.items()}
    save_file(tensors, file.with_suffix(".new"), {"step": str(step)})
    file.with_suffix(".new").replace(file)


def resumed(file: Path, clip: Any, both: Sequence[torch.optim.Optimizer]) -> int:
    """The number of steps done, with all states as they were; 0 without a checkpoint."""
    if not file.exists():
        return 0
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        step = int(stored.metadata()["step"])
    clip.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model ")})
    for place, one in enumerate(both):
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"{place} "):
                state.setdefault(int(name.split()[1]), {})[name.split()[2]] = value
        one.load_state_dict({"state": state, "param_groups": one.state_dict()["param_groups"]})
    return step


def advance(clip: Any, both: Sequence[torch.optim.Optimizer], value: Tensor, step: int) -> None:
    """One step of both optimizers down the gradient of ``value``."""
    clip.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
    for one, full in zip(both, (MUON_RATE, ADAM_RATE), strict=True):
        one.param_groups[0]["lr"] = full * rate(step)
        one.step()


def cut(log: Path, step: int) -> dict[str, float]:
    """Take from the log what a killed training wrote after its checkpoint; the last row that stays."""
    lines = log.read_text().splitlines() if log.exists() else []
    rows = [row for row in map(json.loads, lines) if row["step"] <= step]
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows[-1] if rows else {"seconds": 0, "cpu_seconds": 0}


def save(clip: Any, tokens: Any, log: Path) -> None:
    """The folder that ships: weights in 16 bit, tokenizer, image processor and the log."""
    from transformers import CLIPProcessor

    SHIPPED.mkdir(exist_ok=True)
    clip.half().save_pretrained(SHIPPED)
    CLIPProcessor(image_processor=image_processor(), tokenizer=tokens).save_pretrained(SHIPPED)
    (SHIPPED / "train.jsonl").write_bytes(log.read_bytes())


def main() -> None:
    torch.set_num_threads(1)
    seen = pictures(TRAIN, "train", "twitter")
    watch = {style: pictures(DATA, "validation", style) for style in ("google", "twitter")}
    labels = {"google": [one.label for one in seen[1]], "twitter": [one.label for one in watch["twitter"][1]]}
    tokens = tokenizer([text for one in seen[1] for text in (*(t.format(one.label) for t in TEMPLATES), *one.tags)])
    clip = new_model(tokens)
    both = optimizers(clip)
    WORK.mkdir(parents=True, exist_ok=True)
    checkpoint, log = WORK / "checkpoint.safetensors", WORK / "train.jsonl"
    first, total, clocks = (
        resumed(checkpoint, clip, both),
        0.0,
        {"seconds": time.time, "cpu_seconds": time.process_time},
    )
    before = cut(log, first)
    started = {name: clock() - before[name] for name, clock in clocks.items()}
    for step in range(first, sum(CYCLES)):
        value = one_loss(clip, tokens, seen, step)
        advance(clip, both, value, step)
        total += float(value.detach()) / LOG_EVERY
        if (step + 1) % LOG_EVERY:
            continue
        row = {"step": step + 1, "loss": round(total, 4), "scale": round(clip.logit_scale.exp().item(), 2)}
        row |= {name: round(clock() - started[name]) for name, clock in clocks.items()}
        if (step + 1) % WATCH_EVERY == 0:
            row |= {f"{style}_top1": round(watched(clip, tokens, labels[style], watch[style]), 4) for style in watch}
            keep(checkpoint, clip, both, step + 1)
        with log.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        print(row, flush=True)
        total = 0.0
    save(clip, tokens, log)


if __name__ == "__main__":
    main()
