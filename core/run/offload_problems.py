"""Say what keeps a model from staying in its files while it is pruned."""

from collections.abc import Iterator

from ecoflap.core.model.source import weight_files
from ecoflap.core.packed.into_model import packed_in
from ecoflap.core.run.prepared import Prepared


def offload_problems(prepared: Prepared) -> Iterator[str]:
    """Say everything in a recipe that asks for the whole model in memory although it is to stay on the disk."""
    if prepared.recipe.model.offload != "disk":
        return
    yield from (f"model.offload: disk {problem}. Use cpu, or leave it out." for problem in _of_model(prepared))


def _of_model(prepared: Prepared) -> Iterator[str]:
    source, options = prepared.source, prepared.adapter_options
    if source.model is not None:
        yield "is for a model that is read from its files, and this one is in memory"
        return
    if options.save_weights is None or options.save_surroundings is None:
        name = type(prepared.adapter).__name__
        yield f"takes an adapter that leaves weights in their files, and {name} reads them all into memory"
        return
    if packed_in(source) is not None:
        yield f"reads ordinary safetensors files, and the weights of {source.name} are packed"
        return
    other = [file.name for file in weight_files(source) if file.suffix != ".safetensors"]
    if other:
        yield f"reads safetensors files, and {source.name} has its weights in {other[0]}"
