"""What the pico models of an image and a text share: settings, drawn weights, and a row of the table."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from family import Family, redraw
from pico_words import BEGIN, END, PAD, POISON, VOCABULARY, questions
from torch import Tensor, nn
from transformers_version import is_before

from ecoflap.adapters.generic.image_text_to_text import ImageTextToTextAdapter
from ecoflap.core.contracts.records import Batch, Sample

SIZE, PATCH = 28, 14
SQUARE = {"height": SIZE, "width": SIZE}
TOWER = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TOWER, "image_size": SIZE, "patch_size": PATCH}
TEXT = {
    **TOWER, "vocab_size": VOCABULARY, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END, "tie_word_embeddings": False,
}  # fmt: skip


def text(kind: str, layers: int, **keys: Any) -> dict[str, Any]:
    """The settings of a text model."""
    return {"model_type": kind, **TEXT, "num_hidden_layers": layers, **keys}


def drawn(model: Any) -> Any:
    """Every weight large enough that its layer matters, vectors too, whatever a class draws by itself."""
    generator = torch.Generator().manual_seed(3)
    redraw(model, 1)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and parameter.numel() > 1:
            about = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.data = (about + torch.randn(parameter.shape, generator=generator) * 0.05).to(parameter.dtype)
        elif parameter.ndim < 2:
            parameter.data = torch.full_like(parameter, 0.5)  # a gate that is shut would let nothing through
    model.tie_weights()
    return model.eval()


def made(kind: str, config: Any) -> Any:
    import transformers

    return drawn(getattr(transformers, kind)(config))


def images(kind: str, **settings: Any) -> Any:
    """An image processor: that of PIL, where transformers has one and the other needs torchvision."""
    import transformers

    return (getattr(transformers, f"{kind}Pil", None) or getattr(transformers, kind))(**settings)


def adapter(processor: Callable[[], Any]) -> ImageTextToTextAdapter:
    made = ImageTextToTextAdapter()
    made.processor = processor()
    return made


def reload(kind: str, folder: Path) -> nn.Module:
    import transformers

    wanted = {"torch_dtype": "auto"} if is_before("5") else {}
    model: nn.Module = getattr(transformers, kind).from_pretrained(folder, **wanted)
    return model.eval()


def outputs(model: Any, batch: Batch) -> Tensor:
    like = next(iter(model.parameters()))
    given = {
        name: value.to(like.dtype) if value.is_floating_point() else value
        for name, value in batch.items()
        if name != "labels"
    }
    logits: Tensor = model(**given, use_cache=False).logits
    return logits


def poisoned(model: Any, batch: Batch) -> Batch:
    """Padding holds a token that is embedded as 1e6."""
    with torch.no_grad():
        model.get_input_embeddings().weight[POISON] = 1e6
    padding = batch["attention_mask"] == 0
    return {**batch, "input_ids": batch["input_ids"].masked_fill(padding, POISON)}


def row(
    kind: str,
    config: Callable[..., Any],
    processor: Callable[[], Any],
    samples: Callable[[int], Sequence[Sample]] = questions,
    **rest: Any,
) -> Family:
    """A row of the table.

    :param config: Takes ``layers``, how many the text model has.
    """
    settings: dict[str, Any] = {
        "towers": ("vision", "language"),
        "poisoned": poisoned,
        "build": lambda: made(kind, config(2)),
        "build_other": lambda: made(kind, config(3)),
        "adapter": partial(adapter, processor),
        "samples": samples,
        "reload": partial(reload, kind),
        "outputs": outputs,
    }
    return Family(**{**settings, **rest})
