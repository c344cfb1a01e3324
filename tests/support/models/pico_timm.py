"""timm's Eva and VisionTransformer at toy size, as timm itself makes them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from family import Family, redraw
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ecoflap.adapters.eva_vit import EvaVitAdapter
from ecoflap.core.contracts.records import Batch, Sample

SMALL: dict[str, Any] = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 4}
CLASSES = 5


def pictures(count: int, size: int = 20, classes: int | None = None) -> Sequence[Sample]:
    """Noise in RGB, with labels where the number of classes is given."""
    from PIL import Image

    generator = torch.Generator().manual_seed(count)
    pixels = torch.randint(256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    return [
        Sample(image=Image.fromarray(image.numpy()), label=number % classes if classes else None)
        for number, image in enumerate(pixels)
    ]


def build(name: str, seed: int = 0, **arguments: Any) -> nn.Module:
    import timm

    model = redraw(timm.create_model(name, pretrained=False, **{**SMALL, **arguments}), seed)
    return redraw_biases(model, seed + 1)


def redraw_biases(model: nn.Module, seed: int) -> nn.Module:
    """So that none is zero, which would hide one that is not saved, and none is drawn anew."""
    drawn = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith(("bias", "class_embedding")):
            parameter.data = (torch.randn(parameter.shape, generator=drawn) * 0.02).to(parameter.dtype)
    return model


def fused(**arguments: int) -> nn.Module:
    """As EVA-ViT-g: one matrix for q, k and v that is applied with biases kept apart; features only."""
    return build("eva_giant_patch14_224", num_classes=0, mlp_ratio=2.0, **arguments)


def split(**arguments: int) -> nn.Module:
    """As EVA-02 base: q, k, v apart, SwiGLU, rotary positions and norms inside."""
    return build("eva02_base_patch14_448", num_classes=0, mlp_ratio=2.0, **arguments)


def classifying(**arguments: int) -> nn.Module:
    """A plain ViT with a head."""
    return build("vit_base_patch16_224", num_classes=CLASSES, mlp_ratio=2.0, **arguments)


def adapter_for(make: Callable[[], nn.Module]) -> EvaVitAdapter:
    from ecoflap.adapters.hubs.timm import transform_of

    adapter = EvaVitAdapter()
    adapter.processor = transform_of(make())
    return adapter


def reload(folder: Path) -> nn.Module:
    import timm

    return as_stored(timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), folder / "model.safetensors")


def as_stored(model: nn.Module, file: Path) -> nn.Module:
    """timm and open_clip read every file as float32."""
    from safetensors.torch import load_file

    kinds = {tensor.dtype for tensor in load_file(file).values() if tensor.is_floating_point()}
    return model.to(kinds.pop()) if len(kinds) == 1 else model


def outputs(model: nn.Module, batch: Batch) -> Tensor:
    stem = next(model.parameters())
    return model(batch["pixel_values"].to(stem.dtype))


def classes_loss(model: nn.Module, batch: Batch) -> Tensor:
    return cross_entropy(outputs(model, batch), batch["labels"])


def _family(make: Callable[..., nn.Module], classes: int | None = None) -> Family:
    return Family(
        build=make,
        build_other=partial(classifying, depth=2) if make is not classifying else fused,
        larger=lambda: (EvaVitAdapter(), make(img_size=24)),
        adapter=partial(adapter_for, make),
        samples=partial(pictures, classes=classes),
        towers=("vision",),
        outside=("head",) if classes else (),
        reload=reload,
        outputs=outputs,
        own_loss=classes_loss if classes else None,
        is_compared=classes is not None,
    )


FAMILIES: dict[str, Family] = {
    "timm_eva": _family(fused),
    "timm_eva02": _family(split),
    "timm_vit": _family(classifying, CLASSES),
}
