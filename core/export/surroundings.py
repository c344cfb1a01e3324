"""Write what lies beside the weights of a saved model: configuration, tokenizer or processor, notes."""

from copy import deepcopy
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.version import Version

from ecoflap.core.contracts.adapter_options import AdapterOptions
from ecoflap.core.contracts.blame import blaming
from ecoflap.core.contracts.conformance import options_of
from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.disk.write_errors import explained
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.sealing.sums import SUMS

ENDINGS = (".json", ".jinja", ".txt", ".model", ".md")
"""Endings of files that lie beside the weights."""


def is_weights(name: str) -> bool:
    """Say whether a file holds weights, by its name or its path in a folder, and not what lies beside them."""
    return PurePosixPath(name).name != SUMS and not name.endswith(ENDINGS)


def save_surroundings(pruned: PrunedModel, folder: Path) -> None:
    """Write what loading a model takes beside its weights, in the family's own format.

    An adapter without ``save_surroundings`` leaves it to transformers, which writes nothing for a model of another
    library.
    """
    options = options_of(AdapterOptions, pruned.adapter)
    if options.save_surroundings is None:
        save_settings(pruned.model, pruned.adapter.processor, folder)
        return
    who = f"the adapter {type(pruned.adapter).__name__}, saving what lies beside the weights,"
    with blaming(who), explained(folder, folder):
        options.save_surroundings(pruned.model, folder)


def save_settings(model: Any, processor: Any, folder: Path) -> None:
    """Write what ``save_pretrained`` of transformers writes beside the weights; the model is as before afterwards."""
    config: Any = deepcopy(getattr(model, "config", None))
    if hasattr(config, "save_pretrained"):
        # Older versions note so that they chose the attention, and on reading choose anew.
        vars(config).pop("_attn_implementation_autoset", None)
        # Only saving a whole model fills these in.
        config.architectures = [type(model).__name__]
        setattr(config, _dtype_key(config), dtype_name(model.dtype))
        config.save_pretrained(folder)
    beside: tuple[Any, ...] = (getattr(model, "generation_config", None), processor)
    for thing in beside:
        if hasattr(thing, "save_pretrained"):
            thing.save_pretrained(folder)


def dtype_argument() -> str:
    """Name the argument of ``from_pretrained`` for the weights' type; transformers before 4.56 has the older name."""
    return "dtype" if Version(version("transformers")).release >= (4, 56) else "torch_dtype"


def without_kernels() -> dict[str, bool]:
    """Give the argument of ``from_pretrained`` that has a model run as it is written.

    Without it transformers 5.25 and later put functions compiled by others, which they fetch from the hub, in the place
    of norms and activations on a GPU: their numbers are others, and their code is not what was asked for.
    """
    return {"use_kernels": False} if Version(version("transformers")).release >= (5, 25) else {}


def _dtype_key(config: Any) -> str:
    """Give the key of the weights' type; its name changed in transformers 4.56, and the older one is an alias since."""
    return "dtype" if hasattr(config, "dtype") else "torch_dtype"
