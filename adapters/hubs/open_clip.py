"""Read and write what open_clip has: an architecture with a tag, a hub id or a folder in its hub format."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from ecoflap.adapters.shared.stored_types import take_types, types_in
from ecoflap.core.errors import ModelError, cut, nearest
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.config_limits import read_config
from ecoflap.core.model.hub import first_on_hub
from ecoflap.core.model.shapes import first_difference, shapes_of
from ecoflap.core.model.source import OPEN_CLIP
from ecoflap.core.packed.into_model import fill, packed_in, packed_types, without_weights

PREFIX = "open_clip:"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model", "tokenizer.model")
PREPROCESSING = ("mean", "std", "interpolation", "resize_mode")
_CANNOT = (OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError, AttributeError,
           SafetensorError)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """Holds the two things that open_clip has in place of a processor.

    :param transform: Makes a tensor of a PIL image.
    :param tokenizer: Makes token ids ``[texts, context_length]`` of a list of texts.
    """

    transform: Any
    tokenizer: Any


def imported() -> Any:
    """Import open_clip.

    :raises ModelError: Where it is not installed.
    """
    try:
        import open_clip
    except ImportError as error:
        raise ModelError("this model is open_clip's, which is not installed: pip install 'ecoflap[clip]'.") from error
    return open_clip


def config_of(source: Source) -> dict[str, Any]:
    """Give ``{"model_cfg": …, "preprocess_cfg": …}`` of a model, without reading a weight.

    :raises ModelError: Where a folder or repository is not in open_clip's hub format.
    """
    if source.name.startswith(PREFIX):
        return _named_config(*_name_and_tag(source))
    stored = source.config.get("open_clip")
    if stored is None and source.path is not None and OPEN_CLIP in source.files:  # beside another format's config.json
        stored = read_config(source.path / OPEN_CLIP)
    if stored is None:
        raise ModelError(f"{source.name} has no {OPEN_CLIP}, so it is not in open_clip's hub format.")
    _refuse_shapes(stored)
    return deepcopy(dict(stored))


def _refuse_shapes(stored: Mapping[str, Any]) -> None:
    """Refuse a configuration in which what holds settings is something else.

    :raises ModelError: With each of these keys.
    """
    model = stored.get("model_cfg", {})  # that it lacks one is said where an architecture can be asked for
    inside = model if isinstance(model, Mapping) else {}
    found = {"model_cfg": model, "preprocess_cfg": stored.get("preprocess_cfg") or {}}
    found |= {f"model_cfg.{key}": inside.get(key) for key in ("vision_cfg", "text_cfg")} if inside else {}
    problems = [
        f"{OPEN_CLIP}: {key} is {cut(repr(value))}, and a mapping is meant. The file is damaged."
        for key, value in found.items()
        if not isinstance(value, Mapping)
    ]
    if problems:
        raise ModelError(*problems)


def named(architecture: str) -> dict[str, Any]:
    """Give the configuration that open_clip knows by a name.

    :raises ModelError: Where it knows none.
    """
    open_clip = imported()
    found: dict[str, Any] | None = open_clip.get_model_config(architecture.replace("/", "-"))
    if found is None:
        known = open_clip.list_models()
        raise ModelError(
            f"open_clip has no architecture named {architecture!r}.{nearest(architecture, known)} See "
            f"open_clip.list_models()."
        )
    return found


def build(model_cfg: Mapping[str, Any], half: torch.dtype | None, device: str) -> nn.Module:
    """Build a model with weights drawn at random, or without weights on ``meta``.

    :param half: Of weights that are kept in 16 bits while norms are in float32, as open_clip's ``precision="bf16"``
        keeps them; such a model has norms of another class. None for every other.
    :raises ModelError: Where open_clip cannot build it.
    """
    refuse_kinds(model_cfg)
    open_clip = imported()
    arguments = deepcopy(dict(model_cfg))
    kind = open_clip.CustomTextCLIP if arguments.pop("custom_text", False) else open_clip.CLIP
    arguments["vision_cfg"].pop("timm_model_pretrained", None)  # the weights come later
    try:
        with torch.device("meta" if device == "meta" else "cpu"):
            model: nn.Module = kind(**arguments, cast_dtype=half)
    except _CANNOT as error:
        raise ModelError(f"open_clip {open_clip.__version__} cannot build this model: {error}") from error
    return model.eval()


def refuse_kinds(model_cfg: Mapping[str, Any]) -> None:
    """Refuse the kinds of model that are not covered, before anything of them is built or fetched."""
    vision, text = model_cfg["vision_cfg"], model_cfg["text_cfg"]
    if "multimodal_cfg" in model_cfg:
        raise ModelError("CoCa, which has a third tower that writes captions, is not covered.")
    if text.get("hf_model_name"):
        raise ModelError(f"a text tower of transformers ({text['hf_model_name']}, HFTextEncoder) is not covered.")
    if isinstance(vision.get("layers"), list | tuple):
        raise ModelError("a ModifiedResNet, whose layers are convolutions, is not covered.")


def load(source: Source, device: str, architecture: str | None) -> tuple[nn.Module, dict[str, Any]]:
    """Load a model in the types of its checkpoint, and give its configuration; ``meta`` reads and fetches no weights.

    :param architecture: That of a folder which holds weights without their configuration.
    :raises ModelError: Where it cannot be loaded.
    """
    config = config_of(source)
    if architecture is not None and "model_cfg" not in config:
        config["model_cfg"] = named(architecture)
    if "model_cfg" not in config:
        raise ModelError(
            f"{source.name} holds weights of open_clip without their configuration: write adapter: {{use: open_clip, "
            f"architecture: NAME}} with the architecture's name in open_clip, such as ViT-B-16."
        )
    if device == "meta":
        model = build(config["model_cfg"], None, device)
        _set_preprocessing(model, config.get("preprocess_cfg") or {})
        return model, config
    packed = packed_in(source)
    if packed is not None:
        model = _from_packed(config["model_cfg"], packed)
        _set_preprocessing(model, config.get("preprocess_cfg") or {})
        return model, config
    file = _weights_of(source)
    types = types_in(file) if file.suffix == ".safetensors" else {}
    model = build(config["model_cfg"], _half_of(types), device)
    try:
        imported().load_checkpoint(model, str(file))
    except _CANNOT as error:
        raise ModelError(f"{file} cannot be loaded: {error}") from error
    take_types(model, types)
    _set_preprocessing(model, config.get("preprocess_cfg") or {})
    return model, config


def _from_packed(model_cfg: Mapping[str, Any], packed: Path) -> nn.Module:
    types = packed_types(packed)
    with without_weights():
        model = build(model_cfg, _half_of(types), "cpu")
    fill(model, packed)
    take_types(model, types)
    return model


def save(model: nn.Module, tokenizer: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Write a model in open_clip's hub format; a configuration without ``model_cfg`` is written as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / WEIGHTS[0], metadata={"format": "pt"})
    save_surroundings(tokenizer, config, folder)


def save_surroundings(tokenizer: Any, config: Mapping[str, Any], folder: Path) -> None:
    """Write what :func:`save` writes beside the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / OPEN_CLIP).write_text(json.dumps(config, indent=2), encoding="utf-8")
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(str(folder))


def as_it_is(model_cfg: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Give an architecture's configuration with what a model in memory was made with otherwise.

    :raises ModelError: Where the model is of another architecture.
    """
    open_clip = imported()
    found = deepcopy(dict(model_cfg))
    found["custom_text"] = isinstance(model, open_clip.CustomTextCLIP)
    found["vision_cfg"]["image_size"] = list(model.visual.image_size)
    found["text_cfg"]["context_length"] = int(getattr(model, "text", model).context_length)
    found["quick_gelu"] = any(type(module).__name__ == "QuickGELU" for module in model.modules())
    if model.logit_bias is not None:
        found.setdefault("init_logit_bias", 0.0)
    wanted = build(found, None, "meta").state_dict()
    different = first_difference(shapes_of(model.state_dict().items()), shapes_of(wanted.items()))
    if different is not None:
        raise ModelError(
            f"architecture: this model is of another one: {different.name} is {different.one} in the model and "
            f"{different.other} in the architecture, and {different.count - 1} more differ."
        )
    return found


def preprocessing_of(model: Any) -> dict[str, Any]:
    """Say how open_clip prepares images for a model; empty where the model does not say."""
    known: Mapping[str, Any] = getattr(model.visual, "preprocess_cfg", None) or {}
    return {name: known[name] for name in PREPROCESSING if name in known}


def transform_of(model: Any) -> Any:
    """Make open_clip's transform for evaluation, from a PIL image to what the model reads.

    It is None for a model that does not say how its images are prepared.
    """
    from open_clip.transform import PreprocessCfg, image_transform_v2

    if not getattr(model.visual, "preprocess_cfg", None):
        return None
    return image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)


def tokenizer_of(source: Source, text_cfg: Mapping[str, Any]) -> Any:
    """Load the tokenizer that the configuration names, from the model's folder where that has it; by default CLIP's.

    :raises ModelError: Where it cannot be read.
    """
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    options: dict[str, Any] = dict(text_cfg.get("tokenizer_kwargs") or {})
    options.pop("trust_remote_code", None)  # open_clip hands these on to transformers, whoever wrote them
    options["context_length"] = text_cfg.get("context_length", 77)
    named_tokenizer = text_cfg.get("hf_tokenizer_name")
    if not named_tokenizer:
        return SimpleTokenizer(**options)
    if text_cfg.get("tokenizer_mode"):
        options["tokenizer_mode"] = text_cfg["tokenizer_mode"]
    beside = source.path is not None and any(name in source.files for name in TOKENIZER_FILES)
    place = str(source.path) if beside else named_tokenizer
    try:
        return HFTokenizer(place, trust_remote_code=False, **options)
    except _CANNOT as error:
        raise ModelError(f"the tokenizer of {source.name} ({place}) cannot be read: {error}") from error


def _name_and_tag(source: Source) -> tuple[str, str]:
    name, _, tag = source.name.removeprefix(PREFIX).rpartition("/")
    if name:
        return name, tag
    tags = imported().list_pretrained_tags_by_model(tag)
    named(tag)
    raise ModelError(
        f"{source.name} names no weights: write {PREFIX}{tag}/TAG. Tags of {tag}: {', '.join(tags) or 'none'}."
    )


def _named_config(name: str, tag: str) -> dict[str, Any]:
    open_clip = imported()
    model_cfg = named(name)
    known = open_clip.get_pretrained_cfg(name.replace("/", "-"), tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
        raise ModelError(
            f"open_clip has no weights {tag!r} of {name}.{nearest(tag, tags)} Its tags: {', '.join(tags) or 'none'}."
        )
    if known.get("quick_gelu"):  # open_clip only warns of weights that were trained with the other activation
        model_cfg["quick_gelu"] = True
    preprocessing = {key: known[key] for key in PREPROCESSING if key in known}
    return {"model_cfg": model_cfg, "preprocess_cfg": preprocessing}


def _weights_of(source: Source) -> Path:
    open_clip = imported()
    if source.name.startswith(PREFIX):
        name, tag = _name_and_tag(source)
        try:
            return Path(open_clip.download_pretrained(open_clip.get_pretrained_cfg(name.replace("/", "-"), tag)))
        except _CANNOT as error:
            raise ModelError(f"the weights of {source.name} cannot be fetched: {error}") from error
    if source.path is None:
        return _fetched(source)
    known = [source.path / name for name in WEIGHTS if name in source.files]
    others = [source.path / name for name in source.files if name.endswith((".safetensors", ".bin"))]
    if not (known or others):
        raise ModelError(f"no weights in {source.path}: expected {' or '.join(WEIGHTS)}.")
    return (known or others)[0]


def _fetched(source: Source) -> Path:
    try:
        return first_on_hub(source.name, WEIGHTS)
    except (OSError, ValueError) as error:
        raise ModelError(f"{source.name} has none of {', '.join(WEIGHTS)}: {error}") from error


def _half_of(types: Mapping[str, torch.dtype]) -> torch.dtype | None:
    """Give the type of 16 bits that weights are kept in beside norms in float32; None where they are not."""
    if not types:
        return None
    usual = max(types.values(), key=list(types.values()).count)
    norms = [kind for name, kind in types.items() if name.endswith("ln_final.weight")]
    return usual if usual in (torch.float16, torch.bfloat16) and torch.float32 in norms else None


def _set_preprocessing(model: Any, stored: Mapping[str, Any]) -> None:
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    config = merge_preprocess_dict(asdict(PreprocessCfg()), dict(stored))
    imported().set_model_preprocess_cfg(model, {**config, "size": model.visual.image_size})
