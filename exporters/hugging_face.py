"""The family's own checkpoint, dense with zeros: its own library loads it, and knows nothing of pruning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ecoflap.core.hookspecs import hookimpl
from ecoflap.core.parts import Adapter, Exporter


@dataclass(frozen=True)
class HuggingFace:
    """What the adapter saves. It is as large as the dense model; the ``safetensors`` exporter's is smaller."""

    def __call__(self, model: nn.Module, adapter: Adapter, folder: Path) -> list[Path]:
        adapter.save(model, folder)
        return sorted(path for path in folder.rglob("*") if path.is_file())


@hookimpl
def ecoflap_register_exporters() -> Mapping[str, Callable[..., Exporter]]:
    return {"hugging_face": HuggingFace}
