"""Pico vision transformers of transformers, one of every type the adapter knows, with a classifier and without."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from family import Family
from pico_clip import PATCH, SIZE, TOWER, as_saved, drawn, pictures
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ecoflap.adapters.vit import VitAdapter
from ecoflap.core.contracts.records import Batch, Sample

MODELS = "transformers.models"  # where a version has a folder for each type it knows
CLASSES = 5
BASE, CLASSIFIER = "AutoModel", "AutoModelForImageClassification"
TEACHER = "DeiTForImageClassificationWithTeacher"


def build(family: str = "vit", kind: str = BASE, **keys: Any) -> Any:
    import transformers

    settings = {**TOWER, "image_size": SIZE, "patch_size": PATCH, "num_labels": CLASSES, **keys}
    if family.startswith("dinov2") or family == "pixio":
        del settings["intermediate_size"]
        settings["mlp_ratio"] = 2
    config = transformers.AutoConfig.for_model(family, **settings)
    made: Any = getattr(transformers, kind)
    return drawn(made.from_config(config) if kind.startswith("Auto") else made(config))


def image_processor() -> Any:
    from transformers import ViTImageProcessor

    return ViTImageProcessor(size={"height": SIZE, "width": SIZE})


def adapter() -> VitAdapter:
    made = VitAdapter()
    made.processor = image_processor()
    return made


def labelled(count: int) -> Sequence[Sample]:
    return [Sample(image=sample.image, label=number % CLASSES) for number, sample in enumerate(pictures(count))]


def reload(kind: str, folder: Path) -> nn.Module:
    import transformers

    return as_saved(getattr(transformers, kind), folder)


def outputs(model: Any, batch: Batch) -> Tensor | tuple[Tensor, ...]:
    pixels = batch["pixel_values"].to(next(model.parameters()).dtype)
    return tuple(value for value in model(pixel_values=pixels).to_tuple() if isinstance(value, Tensor))


def teachers_loss(model: Any, batch: Batch) -> Tensor:
    """The cross entropy of the mean of both classifiers' logits; the class for training has no loss of its own."""
    return cross_entropy(model(pixel_values=batch["pixel_values"]).logits, batch["labels"])


def row(family: str, kind: str = BASE, outside: tuple[str, ...] = (), **keys: Any) -> Family:
    return Family(
        build=partial(build, family, kind, **keys),
        build_other=partial(build, "dinov2" if family == "vit" else "vit", CLASSIFIER, num_hidden_layers=3),
        adapter=adapter,
        samples=pictures if kind == BASE else labelled,
        towers=("vision",),
        outside=outside,
        reload=partial(reload, kind),
        outputs=outputs,
        own_loss=teachers_loss if kind == TEACHER else None,
        is_compared=kind != BASE,
    )


FAMILIES: dict[str, Family] = {
    "vit": row("vit", outside=("pooler.dense",)),
    "vit_classifier": row("vit", CLASSIFIER, ("classifier",)),
    "deit_teacher": row("deit", TEACHER, ("cls_classifier", "distillation_classifier")),
    "dinov2": row("dinov2", use_swiglu_ffn=True),
    "dinov2_classifier": row("dinov2", CLASSIFIER, ("classifier",)),
    "dinov3": row("dinov3_vit", num_register_tokens=2, use_gated_mlp=True),
}
FAMILIES = {name: family for name, family in FAMILIES.items() if name != "dinov3" or find_spec(f"{MODELS}.dinov3_vit")}
