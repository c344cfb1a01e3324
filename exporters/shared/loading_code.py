"""Write the lines of Python by which a model card's reader loads the model in its folder."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from ecoflap.core.contracts.protocols import PrunedModel
from ecoflap.core.export.surroundings import dtype_argument

LIBRARIES = ("transformers", "open_clip", "timm", "lavis")

_BUILT = "# Nothing here says how the model is built: build it as it was when it was pruned.\n"


def library_of(model: nn.Module) -> str:
    """Name the library whose class the model is of, or is made from; ``torch`` where it is none of those known here."""
    homes = (kind.__module__.partition(".")[0] for kind in type(model).__mro__)
    return next((home for home in homes if home in LIBRARIES), "torch")


def packed_code(pruned: PrunedModel, folder: Path) -> str:
    """Write what loads a packed model, and its processor."""
    if _says_what_it_is(folder):
        code = 'import ecoflap\n\nmodel = ecoflap.load_model(".")\n'
    else:
        code = f'import ecoflap\n\n{_BUILT}model.load_state_dict(ecoflap.load_packed("."))\n'
    return code + _processor_code(pruned.adapter.processor)


def dense_code(pruned: PrunedModel, folder: Path) -> str:
    """Write what loads a dense model with its own library, and its processor."""
    return _dense_model_code(pruned.model, folder) + _processor_code(pruned.adapter.processor)


def _dense_model_code(model: nn.Module, folder: Path) -> str:
    library, kind = library_of(model), type(model).__name__
    if library == "transformers":
        code = f'model = {kind}.from_pretrained(".", {dtype_argument()}="auto").eval()\n'
        return f"from transformers import {kind}\n\n{code}"
    if library == "timm" and _says_what_it_is(folder):
        return 'import timm\n\nmodel = timm.create_model("local-dir:.", pretrained=True).eval()\n'
    if library == "open_clip" and _says_what_it_is(folder):
        return 'import open_clip\n\nmodel = open_clip.create_model("local-dir:.").eval()\n'
    pickled = sorted(path.name for path in folder.glob("*.pth"))
    if pickled:
        return f'{_BUILT}model.load_checkpoint("{pickled[0]}")  # of salesforce-lavis\n'
    file = next((path.name for path in sorted(folder.glob("*.safetensors"))), "model.safetensors")
    return f'from safetensors.torch import load_file\n\n{_BUILT}model.load_state_dict(load_file("{file}"))\n'


def _says_what_it_is(folder: Path) -> bool:
    """Say whether a folder's configuration names an architecture."""
    keys = {"model_type", "architecture", "architectures", "model_cfg"}
    files = (folder / name for name in ("config.json", "open_clip_config.json"))
    return any(keys & json.loads(file.read_text(encoding="utf-8")).keys() for file in files if file.is_file())


def _processor_code(processor: Any) -> str:
    """Write what loads a processor of transformers; nothing for any other."""
    if not hasattr(processor, "save_pretrained") or not type(processor).__module__.startswith("transformers."):
        return ""
    kinds = [one.__name__ for one in type(processor).__mro__]
    if any(name.startswith("PreTrainedTokenizer") for name in kinds):
        auto, name = "AutoTokenizer", "tokenizer"
    else:
        auto = "AutoImageProcessor" if "ImageProcessingMixin" in kinds else "AutoProcessor"
        name = "processor"
    return f'\nfrom transformers import {auto}\n\n{name} = {auto}.from_pretrained(".")\n'
