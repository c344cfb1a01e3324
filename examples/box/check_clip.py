"""Measure the CLIP in examples/box/clip on emoji it was not trained on: dense, beside its baselines, and pruned.

    python examples/box/check_clip.py              # on validation
    python examples/box/check_clip.py --test       # on test, dense alone

The figures are computed here, and not by ecoflap's evaluators, so that they can be held against them. Baselines know
of each label what the model was trained on, its one picture by Twitter, and take the label of the nearest one. They
need the training set that make_data.py makes; what is pruned is looked at on what ships.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from train_clip import DATA, HERE, SHIPPED, TEMPLATES, TRAIN, Concept, pictures

CUTOFFS = (1, 5, 10)
SPARSITIES = (0.4, 0.5, 0.6, 0.7)
Shown = tuple[Tensor, list[Concept]]


def loaded(folder: Path) -> tuple[Any, Any]:
    """Model in 32 bit, and processor, as anybody loads them."""
    from transformers import AutoProcessor, CLIPModel

    return CLIPModel.from_pretrained(folder, dtype=torch.float32).eval(), AutoProcessor.from_pretrained(folder)


@torch.no_grad()
def of_images(clip: Any, processor: Any, pixels: Tensor) -> Tensor:
    """Normalised features; the processor is held to what training did in its place."""
    from PIL import Image

    images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]
    read = processor(images=images, return_tensors="pt").pixel_values
    torch.testing.assert_close(read, pixels.float() / 127.5 - 1, atol=1e-6, rtol=0)
    return F.normalize(clip.get_image_features(read).pooler_output, dim=-1)


@torch.no_grad()
def of_texts(clip: Any, processor: Any, texts: Sequence[str]) -> Tensor:
    """Normalised features."""
    parts = [processor(text=list(texts[at : at + 256]), return_tensors="pt", padding=True, truncation=True)
             for at in range(0, len(texts), 256)]  # fmt: skip
    return F.normalize(torch.cat([clip.get_text_features(**part).pooler_output for part in parts]), dim=-1)


def recall(similarities: Tensor, own: Tensor) -> dict[int, float]:
    """Share of the rows with one of their own columns among the k most similar; of equals the own comes last.

    :param own: bool [rows, columns].
    """
    best = similarities.masked_fill(~own, -torch.inf).max(1, keepdim=True).values
    before = ((similarities >= best) & ~own).sum(1)
    return {k: float((before < k).double().mean()) for k in CUTOFFS}


def retrieval(
    clip: Any, processor: Any, shown: Shown, captions: Callable[[Concept], tuple[str, ...]]
) -> dict[str, float]:
    """TR@k of images among all captions, IR@k of captions among all images. An equal text is an own caption too."""
    pixels, concepts = shown
    said = [captions(concept) for concept in concepts]
    texts = list(dict.fromkeys(text for own in said for text in own))
    own = torch.tensor([[text in mine for text in texts] for mine in said])
    similarities = of_images(clip, processor, pixels) @ of_texts(clip, processor, texts).T
    sides = {"TR": recall(similarities, own), "IR": recall(similarities.T, own.T)}
    return {f"{side}@{k}": value for side, found in sides.items() for k, value in found.items()}


def zero_shot(clip: Any, processor: Any, shown: Shown, labels: Sequence[str]) -> dict[str, float]:
    """Top-1 and top-5 among all labels that were trained on, each the mean of its sentences."""
    pixels, concepts = shown
    sentences = of_texts(clip, processor, [template.format(label) for label in labels for template in TEMPLATES])
    classes = F.normalize(sentences.unflatten(0, (len(labels), len(TEMPLATES))).mean(1), dim=-1)
    return top(of_images(clip, processor, pixels) @ classes.T, concepts, labels)


def top(similarities: Tensor, concepts: Sequence[Concept], labels: Sequence[str]) -> dict[str, float]:
    own = torch.tensor([[label == concept.label for label in labels] for concept in concepts])
    found = recall(similarities, own)
    return {"top-1": found[1], "top-5": found[5]}


def raw(pixels: Tensor) -> Tensor:
    return pixels.float().flatten(1) / 255


def centred(pixels: Tensor) -> Tensor:
    """16 × 16 means less their mean, of length one: the best of the baselines that were tried on validation."""
    small = F.avg_pool2d(pixels.float(), 4).flatten(1)
    return F.normalize(small - small.mean(1, keepdim=True), dim=1)


def histogram(pixels: Tensor) -> Tensor:
    """Square roots of the counts of 6 × 6 × 6 colours."""
    red, green, blue = (pixels.long() * 6 // 256).unbind(1)
    colours = ((red * 6 + green) * 6 + blue).flatten(1)
    return torch.stack([torch.bincount(one, minlength=216).float().sqrt() for one in colours])


BASELINES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "nearest pixels": raw,
    "nearest 16 × 16, centred": centred,
    "nearest colour histogram": histogram,
}


def baseline(features: Callable[[Tensor], Tensor], shown: Shown, trained: Shown) -> dict[str, float]:
    """A label is as similar to an image as its training picture is. TR and IR are of the labels shown, top-k of all."""
    pixels, concepts = shown
    labels = [concept.label for concept in trained[1]]
    near = -torch.cdist(features(pixels), features(trained[0]))
    columns = near[:, [labels.index(concept.label) for concept in concepts]]
    own = torch.eye(len(concepts), dtype=torch.bool)
    sides = {"TR": recall(columns, own), "IR": recall(columns.T, own)}
    found = {f"{side}@{k}": value for side, each in sides.items() for k, value in each.items()}
    return {**found, **top(near, concepts, labels)}


def label_alone(concept: Concept) -> tuple[str, ...]:
    return (concept.label,)


def both_captions(concept: Concept) -> tuple[str, ...]:
    return (concept.label, ", ".join(concept.tags)) if concept.tags else (concept.label,)


def parts_of(split: str) -> dict[str, Shown]:
    """What there is in a split: by drawing style, and by whether the concept was seen in the other one."""
    found = {}
    for style in ("google", "twitter"):
        pixels, concepts = pictures(DATA, split, style)
        for seen in (True, False):
            chosen = [number for number, concept in enumerate(concepts) if concept.seen is seen]
            if chosen:
                name = f"{style}, {'seen' if seen else 'unseen'} concepts"
                found[name] = pixels[chosen], [concepts[number] for number in chosen]
    return found


def tell(name: str, count: int, found: Mapping[str, float]) -> None:
    print(f"{name:44} n={count:4}  " + "  ".join(f"{key} {value:.3f}" for key, value in found.items()), flush=True)


def dense(folder: Path, split: str) -> None:
    """The model and its baselines on each part of a split, and retrieval from all parts together."""
    clip, processor = loaded(folder)
    trained = pictures(TRAIN, "train", "twitter")
    labels = [concept.label for concept in trained[1]]
    parts = parts_of(split)
    for name, shown in parts.items():
        count = len(shown[1])
        tell(f"{name}: label", count, retrieval(clip, processor, shown, label_alone))
        tell(f"{name}: label and keywords", count, retrieval(clip, processor, shown, both_captions))
        if shown[1][0].seen:
            tell(f"{name}: among {len(labels)} labels", count, zero_shot(clip, processor, shown, labels))
            for kind, features in BASELINES.items():
                tell(f"{name}: {kind}", count, baseline(features, shown, trained))
    together = torch.cat([shown[0] for shown in parts.values()]), [one for shown in parts.values() for one in shown[1]]
    tell("all: label and keywords", len(together[1]), retrieval(clip, processor, together, both_captions))


def pruned(folder: Path, sparsity: float, work: Path) -> Path:
    """Wanda, one sparsity for all layers, calibrated on the pictures by Twitter that ship."""
    import ecoflap

    recipe = {
        "version": 1,
        "model": {"source": str(folder), "dtype": "float32"},
        "calibration": {"use": "image_text", "path": str(calibration(work)), "samples": None, "batch_size": 32},
        "sparsity": sparsity,
        "prune": "wanda",
    }
    target = work / f"{sparsity}"
    ecoflap.run(recipe, folder=target)
    return target / "model"


def calibration(work: Path) -> Path:
    """An index of the emoji alone: easy-VQA's shapes are nothing that this model knows."""
    known = json.loads((DATA / "calibration_captions.json").read_text())
    images = {row["id"]: row for row in known["images"] if row["source"] == "twitter"}
    said = {row["image_id"]: row["caption"] for row in reversed(known["annotations"])}
    rows = [{"image": str(DATA / "images" / row["file_name"]), "text": said[key]} for key, row in images.items()]
    index = work / "calibration.jsonl"
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return index


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=SHIPPED)
    parser.add_argument("--test", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dense(given.folder, "test" if given.test else "validation")
    if given.test:
        return
    labels = (HERE / "data/classes.txt").read_text().splitlines()
    name, shown = next(iter(parts_of("validation").items()))
    with tempfile.TemporaryDirectory() as work:
        for sparsity in (0.0, *SPARSITIES):
            folder = pruned(given.folder, sparsity, Path(work)) if sparsity else given.folder
            clip, processor = loaded(folder)
            found = {**retrieval(clip, processor, shown, label_alone), **zero_shot(clip, processor, shown, labels)}
            tell(f"{name}: {sparsity:.0%} pruned", len(shown[1]), found)


if __name__ == "__main__":
    main()
