"""Read and write what timm has: a model by its name in timm, a hub id or a folder in timm's hub format."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from ecoflap.adapters.shared.stored_types import take_types, types_in
from ecoflap.core.errors import ModelError, nearest
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.hub import asked_once, read_hub_id
from ecoflap.core.model.source import check_weights, weight_files
from ecoflap.core.packed.into_model import fill, packed_in, packed_types, without_weights

PREFIX = "timm:"
UNNAMED = "weights_of"
"""A key of config.json that names the class of a model whose architecture nobody knows by a name."""

_WAY_OUT = "pip install 'ecoflap[clip]'"
_CANNOT = (OSError, RuntimeError, ValueError, TypeError, KeyError, AssertionError, SafetensorError)


def home_of(architecture: str) -> str | None:
    """Give the name of the module of timm that defines an architecture; None for a name that timm does not know."""
    timm = imported()
    name = architecture.split(".")[0]
    return str(timm.models.model_entrypoint(name).__module__) if timm.models.is_model(name) else None


def imported() -> Any:
    """Import timm.

    :raises ModelError: Where it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ModelError(f"this model is timm's, which is not installed: {_WAY_OUT}.") from error
    return timm


def build(place: str, arguments: Mapping[str, Any], *, pretrained: bool, device: str) -> nn.Module:
    """Call ``timm.create_model``.

    :param place: A name, ``hf-hub:ID`` or ``local-dir:FOLDER``.
    :raises ModelError: In place of whatever it raises.
    """
    timm = imported()
    try:
        with torch.device("meta" if device == "meta" else "cpu"):
            model: nn.Module = timm.create_model(place, pretrained=pretrained, **arguments)
    except _CANNOT as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ModelError(
            f"timm {timm.__version__} cannot make {place}: {' '.join(lines[:3])}. If the model was made with arguments "
            f"that timm did not write down, give them: adapter: {{use: eva_vit, arguments: {{...}}}}."
        ) from error
    return model.eval()


def load_named(source: Source, arguments: Mapping[str, Any], device: str) -> nn.Module:
    """Load ``timm:NAME`` with the weights that timm has for it, in float32 as timm builds it."""
    name = source.name.removeprefix(PREFIX)
    if home_of(name) is None:
        known = imported().list_models()
        raise ModelError(f"timm has no model named {name!r}.{nearest(name, known)} See timm.list_models().")
    return build(name, arguments, pretrained=device != "meta", device=device)


def load_stored(source: Source, arguments: Mapping[str, Any], device: str) -> nn.Module:
    """Load a model from timm's hub format, in the types the checkpoint is stored in."""
    if source.path is None:
        repository, revision = read_hub_id(source.name)
        place = f"hf-hub:{repository}@{revision}" if revision else f"hf-hub:{repository}"
    else:
        _require_folders()
        place = f"local-dir:{source.path}"
    if device == "meta":
        with asked_once():
            return build(place, arguments, pretrained=False, device=device)
    packed = packed_in(source)
    if packed is not None:
        return _from_packed(place, arguments, packed)
    check_weights(source)
    with asked_once():
        model = build(place, arguments, pretrained=True, device=device)
    take_types(model, types_in(_stored_file(source)))
    return model


def load_unnamed(source: Source, architecture: str, arguments: Mapping[str, Any], device: str) -> nn.Module:
    """Load weights beside which no architecture is written into the one that the user names."""
    packed = packed_in(source)
    if packed is not None and device != "meta":
        return _from_packed(architecture, arguments, packed)
    model = build(architecture, arguments, pretrained=False, device=device)
    if device == "meta":
        return model
    check_weights(source)
    file = weight_files(source)[0]
    try:
        state = load_file(file)
        model.load_state_dict(state)
    except (RuntimeError, SafetensorError) as error:
        raise ModelError(f"{file} does not fit {architecture} with the arguments {dict(arguments)}: {error}") from error
    take_types(model, {name: tensor.dtype for name, tensor in state.items()})
    return model


def _from_packed(place: str, arguments: Mapping[str, Any], packed: Path) -> nn.Module:
    with without_weights():
        model = build(place, arguments, pretrained=False, device="cpu")
    fill(model, packed)
    take_types(model, packed_types(packed))
    return model


def save(model: Any, folder: Path, architecture: str | None, arguments: Mapping[str, Any]) -> None:
    """Write a model in timm's hub format where its architecture is known; else its weights, and its class's name.

    :param architecture: The model's name in timm; None for the one that timm wrote down in a model it made.
    :param arguments: Those of ``timm.create_model`` that timm did not write down itself.
    :raises ModelError: Where timm cannot write it.
    """
    if not _is_known(model, architecture):
        _save_weights(model, folder)
        _name_class(model, folder)
        return
    with _described(model, architecture):
        try:
            imported().models.save_for_hf(
                model, str(folder), model_args=dict(arguments) or None, safe_serialization=True
            )
        except _CANNOT as error:
            raise ModelError(f"timm cannot save this {class_name(model)}: {error}") from error


def save_surroundings(model: Any, folder: Path, architecture: str | None, arguments: Mapping[str, Any]) -> None:
    """Write what :func:`save` writes beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _is_known(model, architecture):
        _name_class(model, folder)
        return
    from timm.models._hub import save_config_for_hf

    with _described(model, architecture):
        try:
            save_config_for_hf(model, str(folder / "config.json"), model_args=dict(arguments) or None)
        except _CANNOT as error:
            raise ModelError(f"timm cannot describe this {class_name(model)}: {error}") from error


def _is_known(model: Any, architecture: str | None) -> bool:
    own: Mapping[str, Any] = getattr(model, "pretrained_cfg", None) or {}
    return bool(architecture or own.get("architecture"))


def class_name(model: nn.Module) -> str:
    """Give the name of a model's class, with its module."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def transform_of(model: Any) -> Any:
    """Make timm's transform for evaluation, from a PIL image to what the model reads.

    It is None for a model that timm did not make.
    """
    if not getattr(model, "pretrained_cfg", None):
        return None
    data = imported().data
    # What timm writes down of a checkpoint does not follow an img_size that was given when the model was made.
    size = getattr(model.patch_embed, "img_size", None)
    channels = model.pretrained_cfg.get("input_size", (3,))[0]
    known = {"input_size": (channels, *size)} if size else {}
    return data.create_transform(**data.resolve_model_data_config(model, args=known))


def _save_weights(model: nn.Module, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _name_class(model: nn.Module, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({UNNAMED: class_name(model)}), encoding="utf-8")


@contextmanager
def _described(model: Any, architecture: str | None) -> Iterator[None]:
    """For a while, let timm find the architecture where it would have written it down itself."""
    before = model.__dict__.get("pretrained_cfg")
    if architecture is not None:
        known = imported().models.get_pretrained_cfg(architecture)
        described = before or (known.to_dict() if known is not None else {"input_size": (3, 224, 224)})
        model.pretrained_cfg = {**described, "architecture": architecture.split(".")[0]}
    try:
        yield
    finally:
        if before is not None:
            model.pretrained_cfg = before
        else:
            model.__dict__.pop("pretrained_cfg", None)


def _require_folders() -> None:
    timm = imported()
    if Version(timm.__version__) < Version("1.0.17"):
        raise ModelError(f"timm {timm.__version__} reads no folders: timm 1.0.17 or newer does.")


def _stored_file(source: Source) -> Path | None:
    """Find the safetensors file that timm reads; None where it reads another format."""
    if source.path is not None:
        files = [file for file in weight_files(source) if file.suffix == ".safetensors"]
        return next((file for file in files if file.name == "model.safetensors"), files[0] if files else None)
    from huggingface_hub import try_to_load_from_cache

    repository, revision = read_hub_id(source.name)
    found = try_to_load_from_cache(repository, "model.safetensors", revision=revision)
    return Path(found) if isinstance(found, str) else None
