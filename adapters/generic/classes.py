"""Look up which classes of transformers are made for what, and what they read."""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any

from ecoflap.core.model.anatomy import Source

SEEING = "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES"
"""The table of classes that read an image and a text, and of some that read a text alone."""
OTHERS = frozenset({"audio", "video", "time"})
"""What samples do not hold, as transformers names what a model reads."""
SOUNDS = frozenset({"input_features", "audio_values"})
"""Arguments by which a model is given sound, beside text."""


def names_in(mapping: str) -> Mapping[str, str]:
    """Give a table of transformers: the name of a class by the type of model.

    :param mapping: Its name: ``MODEL_FOR_CAUSAL_LM_MAPPING_NAMES``. One that this version lacks is empty.
    """
    from transformers.models.auto import modeling_auto

    found: Any = getattr(modeling_auto, mapping, {})
    return {kind: name for kind, name in found.items() if isinstance(name, str)}


def processor_for(model_type: str) -> str | None:
    """Name the class of processor that transformers has for a type of model; None where it has none."""
    from transformers.models.auto import processing_auto

    found: Any = getattr(processing_auto, "PROCESSOR_MAPPING_NAMES", {}).get(model_type)
    return found if isinstance(found, str) else None


def types_of_processor(name: str) -> frozenset[str]:
    """Give the types of models that transformers has a class of processor for; none for a class that it does not know.

    :param name: The class's.
    """
    from transformers.models.auto import processing_auto

    known: Any = getattr(processing_auto, "PROCESSOR_MAPPING_NAMES", {})
    return frozenset(kind for kind, found in known.items() if found == name)


def class_named(source: Source, otherwise: str) -> str:
    """Give the name of the class that a configuration names, where transformers has it.

    :param otherwise: Given where it names none, or one that transformers does not have.
    """
    import transformers

    names = source.config.get("architectures") or []
    return next((name for name in names if hasattr(transformers, name)), otherwise)


def reads_others(name: str) -> tuple[str, ...]:
    """Say what a class reads, where that is sound or videos, and no images with them; else nothing.

    Versions of transformers before 5 do not say it; there the arguments of its forward tell sound from the rest.
    """
    import transformers

    made = getattr(transformers, name, None)
    found: Any = getattr(made, "input_modalities", ())
    read = (found,) if isinstance(found, str) else tuple(found)
    if made is not None and not read and SOUNDS & signature(made.forward).parameters.keys():
        read = ("audio", "text")
    return read if OTHERS & {*read} and "image" not in read else ()


def reads_text_alone(name: str) -> bool:
    """Say whether a class takes a text and no image, as Mistral 4, which transformers lists with those that do."""
    import transformers

    made = getattr(transformers, name, None) if name.endswith("ForCausalLM") else None
    taken = () if made is None else signature(made.forward).parameters
    return made is not None and not any(word in one for one in taken for word in ("pixel", "image", "patches"))


def sees_alone(name: str) -> bool:
    """Say whether a class is given pixels, and no text but what its decoder goes on from, as TrOCR and Donut are."""
    import transformers

    made = getattr(transformers, name, None)
    taken = {} if made is None else signature(made.forward).parameters
    return {"pixel_values", "decoder_input_ids"} <= {*taken} and "input_ids" not in taken


def made_for(source: Source) -> str | None:
    """Say what the class of a model is made for, and what it reads; None where transformers has none of that name."""
    name = type(source.model).__name__ if source.model is not None else class_named(source, "")
    tasks, read = [*_tasks(name)], reads_others(name)
    said = [f"transformers has {name} for {', '.join(tasks)}."] if tasks else []
    said += [f"It reads {' and '.join(read)}, and samples hold images and texts."] if read else []
    return " ".join(said) or None


def _tasks(name: str) -> Iterator[str]:
    """Yield the tasks for whose table of classes transformers lists one: ``object detection``."""
    from transformers.models.auto import modeling_auto

    before, after = "MODEL_FOR_", "_MAPPING_NAMES"
    for table in sorted(vars(modeling_auto)):
        if table.startswith(before) and table.endswith(after) and name in names_in(table).values():
            yield table.removeprefix(before).removesuffix(after).lower().replace("_", " ")
