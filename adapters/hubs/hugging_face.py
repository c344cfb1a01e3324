"""Read and write models of transformers, with tokenizer or processor: from a hub id, a folder or a GGUF file."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, suppress
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ecoflap.adapters.hubs.absent_tokenizer import why_unreadable, why_without_words
from ecoflap.adapters.hubs.checked_weights import integer_problems, refuse_other_weights, refuse_quantised
from ecoflap.adapters.hubs.kept_in_float32 import is_kept_in_float32
from ecoflap.adapters.hubs.left_on_disk import arguments_for, map_weights, places_told
from ecoflap.core.contracts.blame import sentence_of
from ecoflap.core.disk.json_files import read_json
from ecoflap.core.errors import ModelError, RunError, cut, nearest, one_line
from ecoflap.core.export.surroundings import dtype_argument, save_settings, without_kernels
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.gguf_header import header_read_once
from ecoflap.core.model.hub import is_reachable, read_hub_id
from ecoflap.core.model.own_code import not_run
from ecoflap.core.model.source import check_weights, snapshot
from ecoflap.core.packed.into_model import fill, packed_in, packed_types, without_weights

TEXT_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "tekken.json",
              "spiece.model")  # fmt: skip
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")
SHARD_SIZE = "5GB"
_FILE_NAME = re.compile(r"\w[\w .-]*")
_REAL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def load_transformers_model(
    kind: str, source: Source, dtype: torch.dtype | None, device: str, *, has_pooler: bool | None = True
) -> nn.Module:
    """Load a model in eval mode; ``device="meta"`` builds it from its configuration, without weights.

    A folder that the ``safetensors`` exporter wrote is read too.

    :param kind: The name of a class of transformers: ``AutoModelForCausalLM``, ``T5ForConditionalGeneration``.
    :param dtype: The type of its weights; None keeps the checkpoint's.
    :param has_pooler: None where some checkpoints of the class have one and some have not, which shows on loading.
    :raises ModelError: Where it cannot be read, is quantised, or its weights are not those of its configuration.
    """
    refuse_quantised(source)
    with quiet():
        if device == "meta":
            with torch.device("meta"):
                return _built(kind, source, dtype)
        packed = packed_in(source)
        if packed is not None:
            return _from_packed(kind, source, packed, dtype, has_pooler).to(device)
        check_weights(source)
        return _with_weights(kind, source, dtype, has_pooler).to(device)


def load_processor(kind: str, source: Source) -> Any:
    """Load a tokenizer, image processor or processor; give None where a folder has none of its files.

    :param kind: The name of a class of transformers: ``AutoTokenizer``, ``AutoImageProcessor``, ``AutoProcessor``.
    :raises ModelError: Where there is one that cannot be read.
    """
    place, arguments = _place(source)
    files = TEXT_FILES if kind == "AutoTokenizer" else IMAGE_FILES
    is_folder = source.path is not None and source.path.is_dir()
    if is_folder and not any(name in source.files for name in files):
        return None
    try:
        with quiet(), _reading(arguments):
            read = _class(kind).from_pretrained(place, **arguments, trust_remote_code=False)
    except Exception as error:  # of a damaged file it raises whatever its reader does
        brought = not_run(_processor_config(source), "It")
        reason = "" if brought else f" {why_unreadable(source) or one_line(error)}"
        raise ModelError(f"the tokenizer or processor of {source.name} cannot be read:{reason}{brought}") from error
    tokenizer = getattr(read, "tokenizer", read)
    if (without := why_without_words(source, tokenizer)) is not None:
        raise ModelError(f"the tokenizer of {source.name} has no words: {without}")
    _refuse_template_names(source, tokenizer)
    _forget_place(tokenizer)
    return read


def _reading(arguments: Mapping[str, Any]) -> AbstractContextManager[None]:
    """Stand around a call of ``from_pretrained`` with these arguments: a GGUF's header is read once for all of them."""
    return header_read_once() if "gguf_file" in arguments else nullcontext()


def _refuse_template_names(source: Source, tokenizer: Any) -> None:
    """Refuse chat templates whose names lead elsewhere: each is saved in a file of its name."""
    templates = getattr(tokenizer, "chat_template", None)
    wrong = [name for name in templates if not _FILE_NAME.fullmatch(name)] if isinstance(templates, dict) else []
    if wrong:
        raise ModelError(
            f"the tokenizer of {source.name} names a chat template {cut(wrong[0])!r}, which is no name of a file. "
            f"Write it in letters, digits, - and _"
        )


def save_model(model: Any, processor: Any, folder: Path) -> None:
    """Write a model as transformers does, in several files above 5 GB, with its tokenizer or processor beside it."""
    how: dict[str, Any] = {"safe_serialization": True, "max_shard_size": SHARD_SIZE}
    with quiet():
        try:
            model.save_pretrained(folder, **how)
        except RuntimeError as error:
            if "share memory" not in str(error):
                raise
            # transformers before 4.30 leaves it to its caller to name tied weights once
            model.save_pretrained(folder, state_dict=_without_aliases(model.state_dict()), **how)
        if processor is not None:
            processor.save_pretrained(folder)


def save_weights(model: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Write some of a model's weights under the names that they have in its files, such as experts one by one.

    :param weights: By their names in the model.
    """
    with quiet(), TemporaryDirectory(dir=folder.parent) as beside:
        model.save_pretrained(beside, state_dict=dict(weights), safe_serialization=True, max_shard_size=SHARD_SIZE)
        for file in Path(beside).glob("*.safetensors"):
            file.rename(folder / file.name)


def save_surroundings(model: nn.Module, processor: Any, folder: Path) -> None:
    """Write what :func:`save_model` writes beside the weights."""
    with quiet():
        save_settings(model, processor, folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and advice off the screen, and leave its settings as they were."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the bar of its GGUF reader listens to no setting
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _class(kind: str) -> Any:
    import transformers

    try:
        return getattr(transformers, kind)
    except AttributeError as error:
        raise ModelError(f"transformers {transformers.__version__} has no {kind}; a newer one is needed") from error


def _config(source: Source) -> Any:
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig

    config = source.config
    if "model_type" not in config:
        raise ModelError(f"{_where(source)}: no model_type, so it is no model of transformers")
    kind = str(config["model_type"])
    if kind not in CONFIG_MAPPING:
        known = f"transformers {transformers.__version__} knows no model of type {kind!r}"
        raise ModelError(f"{_where(source)}: {known}.{nearest(kind, CONFIG_MAPPING.keys())}{not_run(config)}")
    try:
        return AutoConfig.for_model(**_with_floats(config))
    except Exception as error:  # a class of settings raises whatever it likes where one does not fit it
        raise _cannot_build(source, error) from error


def _where(source: Source) -> str:
    """Say where the settings of a model are."""
    is_folder = source.path is not None and "config.json" in source.files and source.path.is_dir()
    return f"{source.path}/config.json" if is_folder else source.name


def _cannot_build(source: Source, error: Exception) -> ModelError:
    import transformers

    return ModelError(
        f"{_where(source)}: transformers {transformers.__version__} cannot build the model: {sentence_of(error)} Mend "
        f"the setting that this is about; where all are as their author wrote them, another version of transformers "
        f"is needed.{not_run(source.config)}"
    )


def _with_floats(value: Any) -> Any:
    """Give settings with numbers that JSON lacks as such; transformers writes ``{"__float__": "Infinity"}``."""
    if isinstance(value, list):
        return [_with_floats(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    if [*value] == ["__float__"]:
        return float(value["__float__"])
    return {name: _with_floats(one) for name, one in value.items()}


def _built(kind: str, source: Source, dtype: torch.dtype | None, **arguments: Any) -> nn.Module:
    known = _config(source)
    with _refusing_other_kinds(kind, known, source):
        made = _class(kind)
        build: Callable[..., nn.Module] = made.from_config if kind.startswith("Auto") else made._from_config
        return build(known, **{dtype_argument(): dtype or _own_dtype(known)}, **arguments).eval()


@contextmanager
def _refusing_other_kinds(kind: str, config: Any, source: Source) -> Iterator[None]:
    """Refuse a configuration that is none of a class, or cannot be built, which a class may only find out on building.

    Versions before 5 look at the values of a configuration first where they need them.
    """
    problem = f"no {kind} can be made of a model of type {config.model_type!r}"
    if not (_is_own(kind, config) or _is_given(kind, config)):
        raise ModelError(problem)
    try:
        yield
    except Exception as error:  # a model's class raises whatever it likes
        if "Unrecognized configuration class" in str(error):
            raise ModelError(problem) from error
        raise _cannot_build(source, error) from error


def _is_own(kind: str, config: Any) -> bool:
    """Say whether a configuration is of a class's own type, as far as the class has one."""
    wanted = getattr(_class(kind), "config_class", None)
    return wanted is None or isinstance(config, wanted)


def _is_given(kind: str, config: Any) -> bool:
    """Say whether transformers gives a class to a type of model that has a configuration of its own, as InternLM 3.

    The type of a whole with parts is in such a table with the class of one part, which does not read it.
    """
    from transformers.models.auto import modeling_auto

    if _class(kind).config_class in getattr(config, "sub_configs", {}).values():
        return False
    tables = [table for name, table in vars(modeling_auto).items() if name.endswith("_MAPPING_NAMES")]
    return any(table.get(config.model_type) == kind for table in tables)


def _has_others_class(kind: str, source: Source) -> bool:
    """Say whether a class is another type's, which would read the configuration as of its own, and so other weights."""
    from transformers import CONFIG_MAPPING

    if source.config.get("model_type") not in CONFIG_MAPPING:
        return False
    config = _config(source)
    return not _is_own(kind, config) and _is_given(kind, config)


def _from_packed(
    kind: str, source: Source, packed: Path, dtype: torch.dtype | None, has_pooler: bool | None
) -> nn.Module:
    with without_weights():
        model = _built(kind, source, dtype)
        if has_pooler is None and _has_pooler(model.state_dict()) and not _has_pooler(packed_types(packed)):
            model = _built(kind, source, dtype, add_pooling_layer=False)
    fill(model, packed, lambda name, stored: _wanted_type(model, name, stored, dtype))
    if "generation_config.json" in source.files:
        model.generation_config = _class("GenerationConfig").from_pretrained(str(packed))
    _forget_loading(model)
    return model


def _has_pooler(names: Iterable[str]) -> bool:
    return any(name.startswith("pooler.") for name in names)


def _wanted_type(model: Any, name: str, stored: torch.dtype, dtype: torch.dtype | None) -> torch.dtype:
    """Give the type that ``from_pretrained`` casts a weight to: that asked for, or float32 where its class says so."""
    if dtype is None or stored not in _REAL:
        return stored
    return torch.float32 if is_kept_in_float32(model, name, dtype) else dtype


def _with_weights(kind: str, source: Source, dtype: torch.dtype | None, has_pooler: bool | None) -> nn.Module:
    place, arguments = _place(source)
    if has_pooler is False:
        arguments["add_pooling_layer"] = False
    is_gguf = "gguf_file" in arguments
    wanted = dtype or (torch.float32 if is_gguf else "auto")
    if is_gguf or _has_others_class(kind, source):
        arguments["config"] = _config(source)
    arguments |= {dtype_argument(): wanted, **without_kernels()}
    if source.mapped is not None:
        arguments |= arguments_for(source.mapped)
    try:
        with places_told(source.mapped) as places, _reading(arguments):
            read: Any = _class(kind).from_pretrained(
                place, **arguments, trust_remote_code=False, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except RunError:  # what it writes into the scratch folder could not be written
        raise
    except Exception as error:  # of a damaged file it raises whatever its reader stumbles over
        brought = not_run(source.config) if "trust_remote_code" in str(error) else ""
        why = _integers_or(source, f"{source.name} cannot be loaded:{brought or f' {error}'}")
        raise ModelError(*why) from error
    model: nn.Module = read[0]
    missing = read[1]["missing_keys"]
    if missing and has_pooler is None and all(name.startswith("pooler.") for name in missing):
        return _with_weights(kind, source, dtype, has_pooler=False)
    # of other shapes are refused here, by name
    refuse_other_weights(source, model, read[1], _of_other_classes(source))
    if source.mapped is not None:
        map_weights(model, places, source.mapped, _own_dtype(model.config))
    if is_gguf:
        _forget_quantization(model)
    _forget_loading(model)
    return model.eval()


def _processor_config(source: Source) -> dict[str, Any]:
    """Give what a tokenizer's or processor's file says that names code to be run; nothing where none does."""
    folder = snapshot(source) if source.path is None else source.path
    if folder is not None and folder.is_dir():
        for name in ("tokenizer_config.json", *IMAGE_FILES):
            with suppress(RunError):  # of one that is not there, or is no JSON
                if "auto_map" in (found := read_json(folder / name)):
                    return found
    return {}


def _integers_or(source: Source, problem: str) -> list[str]:
    """Say that a checkpoint holds integers, at which versions before 5 stumble, or else what there is to say."""
    try:
        return list(integer_problems(source)) or [problem]
    except (OSError, SafetensorError):  # its file is what cannot be read
        return [problem]


def _of_other_classes(source: Source) -> Iterator[nn.Module]:
    """Build what else the configuration describes, without weights: the body, pre-training's model, and its own class.

    A checkpoint may hold a head or a pooler that the class which is read has no place for.
    """
    for kind in dict.fromkeys(("AutoModel", "AutoModelForPreTraining", *(source.config.get("architectures") or ()))):
        try:
            with torch.device("meta"):
                other = _built(kind, source, None)
        except (ModelError, ValueError, AttributeError, TypeError):  # it has no such class
            continue
        yield other


def _place(source: Source) -> tuple[str, dict[str, Any]]:
    """Give what ``from_pretrained`` is called with."""
    if source.path is None:
        repository, revision = read_hub_id(source.name)
        opened = snapshot(source)  # the commit that was planned with, though a branch may have moved since
        commit = opened.name if opened else revision or "main"
        return repository, {"revision": commit, "local_files_only": not is_reachable()}
    if source.path.is_file():
        return str(source.path.parent), {"gguf_file": source.path.name, "local_files_only": True}
    return str(source.path), {"local_files_only": True}


def _own_dtype(config: Any) -> torch.dtype:
    """Give the type that the checkpoint is stored in, by the newer name of the setting or the older one."""
    return getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32


def _without_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keep each weight under the first of its names only."""
    first: dict[tuple[int, torch.Size], str] = {}
    places = {name: (tensor.data_ptr(), tensor.shape) for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if first.setdefault(places[name], name) == name}


def _forget_loading(model: Any) -> None:
    """Remove what older versions would write into ``config.json``: where a model came from, and what was left open."""
    model.config._name_or_path = ""
    vars(model.config).pop("_attn_implementation_autoset", None)
    if vars(model.config).get("torch_dtype") == "auto":
        model.config.torch_dtype = model.dtype


def _forget_place(tokenizer: Any) -> None:
    """Remove where a tokenizer came from: older versions write it down, and the same one saved twice would differ."""
    kept: dict[str, Any] = getattr(tokenizer, "init_kwargs", {})
    for name in ("name_or_path", "special_tokens_map_file"):
        kept.pop(name, None)


def _forget_quantization(model: Any) -> None:
    """Remove what says that the weights are quantised: they no longer are, and with it a model cannot be saved."""
    for owner, names in (
        (model.config, ("quantization_config",)),
        (model, ("hf_quantizer", "is_quantized", "quantization_method")),
    ):
        for name in names:
            owner.__dict__.pop(name, None)
