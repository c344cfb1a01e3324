"""Find where a model comes from: a package, a folder, a GGUF file, a hub id or memory. No weight is read for it."""

import re
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from fnmatch import fnmatch
from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec
from itertools import chain
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from ecoflap.core.disk.json_files import json_value, read_bytes
from ecoflap.core.disk.paths import PathError, absolute
from ecoflap.core.disk.reading import unread
from ecoflap.core.disk.safetensors_header import why_not_whole
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.errors import ModelError, cut, nearest
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.config_limits import check_counts, read_config
from ecoflap.core.model.gguf_header import check_gguf_header, header_read_once
from ecoflap.core.model.hub import cached, first_on_hub, is_reachable, parts_of_hub_id, why_unreachable
from ecoflap.core.model.packages import models_below, package_folder
from ecoflap.core.model.split_ggufs import joined_gguf, split_ggufs
from ecoflap.core.sealing.sealed import flat
from ecoflap.core.sealing.sums import check_listed

WEIGHTS = ("*.safetensors", "*pytorch_model*.bin", "*.gguf", "*.pth", "*.pt")
"""Names of files with weights. Those of the first kind that a folder holds are the model's."""

_OF_TRAINING = ("optimizer", "scheduler", "scaler", "rng_state")
"""What names of files begin with that a training leaves beside a model, and are no weights."""

SETTINGS = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")
"""Names of the other files that a model and its processor are loaded from."""

OPEN_CLIP = "open_clip_config.json"
"""open_clip's hub format has this for a config.json. It becomes ``config["open_clip"]``."""

CONFIGS = ("config.json", OPEN_CLIP)
"""Names under which the hub has a model's configuration; the first that is there counts."""

_INDEX = (".safetensors.index.json", ".bin.index.json")
"""Endings of files that say which weight is in which shard."""

ADAPTER = "adapter_config.json"
"""What peft writes beside what it has trained, which is no model by itself."""
_WHOLE = ("model.safetensors", "pytorch_model.bin")
"""Files that transformers looks for, in this order, each before the index of its shards. Others it does not read."""

_SCHEME = re.compile(r"[a-z_]{2,}:.+")  # two letters at least: one is a drive of Windows


def open_source(name: str, folder: Path, config: Path | None = None) -> Source:
    """Find a model and read its configuration, and nothing else of it.

    :param name: ``package:NAME`` or ``package:NAME/inner/path`` for an installed package's files, a folder with a
        config.json, an open_clip_config.json or one GGUF file, a GGUF file, or a hub id ``org/name`` or
        ``org/name@revision``. A name with another prefix, such as ``timm:``, is left for an adapter to recognise.
    :param folder: What a relative path is relative to.
    :param config: A ``config.json``, or a folder with one, that is read in place of the hub's, which is then not asked.
    :raises ModelError: Where there is no such model, several, or one whose configuration cannot be read.
    """
    if name.startswith("package:"):
        return _in_package(name)
    try:
        path = absolute(name, folder)
    except PathError as error:
        raise ModelError(f"model {error}.") from error
    if path.is_dir():
        return _in_folder(name, path)
    if path.is_file():
        return _in_file(name, path)
    if parts_of_hub_id(name) is not None:
        return _on_hub(name, path) if config is None else with_config(name, config)
    if _SCHEME.fullmatch(name):
        return Source(name)
    raise ModelError(f"model {cut(name)!r} is not there: {path} does not exist, and a hub id is written org/name.")


def in_memory(model: nn.Module) -> Source:
    """Make the source of a model that the caller holds already."""
    config: Any = getattr(model, "config", None)
    return Source(type(model).__name__, config=config.to_dict() if hasattr(config, "to_dict") else {}, model=model)


def is_on_hub(source: Source) -> bool:
    """Tell whether the hub has to be asked for a model."""
    return source.path is None and source.model is None and parts_of_hub_id(source.name) is not None


def snapshot(source: Source) -> Path | None:
    """Give the folder of the hub's cache with what was read of a hub id; its name is the commit. None of others."""
    return cached(source.name, CONFIGS) if is_on_hub(source) else None


def weight_files(source: Source) -> list[Path]:
    """List the files with the model's weights, all of one format; none for a hub id or a model in memory."""
    if source.path is None:
        return []
    if source.path.is_file():
        return [source.path]
    names = [name for name in source.files if not Path(name).name.startswith(_OF_TRAINING)]
    kinds = ([source.path / name for name in names if fnmatch(name, pattern)] for pattern in WEIGHTS)
    return next((files for files in kinds if files), [])


def files_read(source: Source) -> list[Path]:
    """List the files that a model is read from: those that transformers looks for, or else all with weights.

    Others beside them may be what they like, such as pointers to files that were never fetched.
    """
    found = _looked_for(source)
    if source.path is None or found is None:
        return weight_files(source)
    return [source.path / name for name in (_named_in(source.path / found) if _index(source) else [found])]


def _looked_for(source: Source) -> str | None:
    """Give the name of the file by which transformers reads a folder, weights or an index; None where it has none."""
    names = (name for whole in _WHOLE for name in (whole, f"{whole}.index.json") if name in source.files)
    return None if source.path is None or source.path.is_file() else next(names, None)


def _index(source: Source) -> str:
    """Give the name of the index by which a folder is read; empty where there is none."""
    found = _looked_for(source)
    return found if found is not None and found.endswith(_INDEX) else ""


def check_weights(source: Source) -> None:
    """Refuse a folder that has a configuration only, or not all files of its weights, or some of them cut off.

    :raises ModelError: With every file that is missing or not whole, or with the names of files that would be weights.
    """
    if source.path is None:
        return
    index, files = _index(source), files_read(source)
    if not files:
        raise ModelError(f"no weights in {source.path}: expected {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}.")
    problems = []
    if missing := [file.name for file in files if not file.is_file()]:
        problems.append(
            f"{source.path} lacks {len(missing)} of the {len(files)} files that {index} names: {', '.join(missing)}. "
            f"Fetch or write what is missing."
        )
    there = (file for file in files if file.suffix == ".safetensors" and file.is_file())
    problems += filter(None, map(why_not_whole, there))
    if problems:
        raise ModelError(*problems)


def weight_bytes(source: Source) -> int | None:
    """Give the bytes of a model's weights as they are stored; None where only the hub knows."""
    if source.model is not None:
        return sum(parameter.nbytes for parameter in source.model.parameters())
    return sum(file.stat().st_size for file in weight_files(source)) if source.path is not None else None


def fingerprint(source: Source, load: Callable[[], nn.Module]) -> dict[str, str]:
    """Give what has to be the same for a run to go on: the SHA-256 of each file that is loaded, or the hub's commit.

    A model in memory is hashed as a whole: names, types and bytes of its state dict. So is one whose files only its own
    library knows, as behind ``timm:``.

    :param load: Reads the model.
    :raises FormatError: Where a file is other than a ``SHA256SUMS`` beside it says, as beside what a run wrote.
    """
    if is_on_hub(source):
        return {"commit": (snapshot(source) or _config_on_hub(source.name).parent).name}
    if source.path is None:
        return {"state_dict": _state_digest(load() if source.model is None else source.model)}
    found = {name: sha256_of(file) for name, file in files_hashed(source).items()}
    if source.path.is_dir():
        check_listed(source.path, lambda: found)
    return found


def files_hashed(source: Source) -> dict[str, Path]:
    """Give the files that :func:`fingerprint` hashes, by the names that it has for them; none of a model of the hub."""
    if source.path is None or is_on_hub(source):
        return {}
    if source.path.is_file():
        return {source.path.name: source.path}
    beside = [source.path / name for name in source.files if is_setting(name)]
    files = sorted({*_files_with_weights(source), *beside})
    return {file.relative_to(source.path).as_posix(): file for file in files}


def are_other_weights(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Say whether two fingerprints are of models in different files of weights, whatever these are called.

    Nothing is known of two of different kinds, such as a hub's commit beside files.
    """
    kinds = [one.keys() & {"commit", "state_dict"} for one in (one, other)]
    weights = [{digest for name, digest in one.items() if not is_setting(name)} for one in (one, other)]
    return kinds[0] == kinds[1] and weights[0] != weights[1]


def _files_with_weights(source: Source) -> list[Path]:
    """List the files with the model's weights, with those that an index names wherever below its folder they are."""
    if source.path is None or source.path.is_file():
        return weight_files(source)
    indices = [source.path / name for name in source.files if name.endswith(_INDEX)]
    named = (source.path / name for index in indices for name in _named_in(index))
    return sorted({*weight_files(source), *(file for file in named if file.is_file())})


def _named_in(index: Path) -> list[str]:
    """List the files that the index of a checkpoint names.

    :raises ModelError: Where it leads out of the folder, to what nobody would hash nor copy with it.
    """
    try:
        named = json_value(read_bytes(index)).get("weight_map", {})
        names = sorted({name for name in named.values() if isinstance(name, str)})
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{index} is no index of a checkpoint: {error}.") from error
    for name in names:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise ModelError(f"{index}: it names {name}, outside its folder. Put the file in the folder.")
    return names


def is_setting(name: str) -> bool:
    """Say whether a model or its processor is loaded from a file, beside the weights, by its name."""
    return any(fnmatch(name, pattern) for pattern in SETTINGS)


def _state_digest(model: nn.Module) -> str:
    digest = sha256()
    for name, value in sorted(model.state_dict().items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            # numpy knows no bfloat16, so the bytes are taken before it sees the type
            digest.update(flat(value).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _in_package(name: str) -> Source:
    package, _, inner = name.removeprefix("package:").partition("/")
    root = package_folder(package)
    start = root / inner
    if inner and start.is_file():
        return _in_file(name, start)
    split = split_ggufs(root)
    if start.name in split:
        return _in_package_at(name, package, root, start, split)
    if not start.is_dir():
        raise ModelError(f"package {package!r} has no {inner!r}: {start} does not exist.")
    found = [*sorted(models_below(start)), *(root / one for one in split)]
    if len(found) == 1:
        return _in_package_at(name, package, root, found[0], split)
    inside = ", ".join(f"package:{package}/{model.relative_to(root).as_posix()}" for model in found)
    if found:
        raise ModelError(f"{name} holds {len(found)} models: name one of {inside}.")
    raise ModelError(f"no model in {start}: expected a folder with a config.json, or a *.gguf file.")


def _in_package_at(name: str, package: str, root: Path, model: Path, split: Mapping[str, str]) -> Source:
    """Open the one model of a package: a folder, a GGUF file, or one that is in parts."""
    if model.name in split:
        return _in_file(name, joined_gguf(package, root, model.name, split[model.name]))
    return _in_file(name, model) if model.suffix == ".gguf" else _in_folder(name, model)


def _in_folder(name: str, folder: Path) -> Source:
    files = _files_in(folder)
    source = Source(name, path=folder, files=files)
    _files_with_weights(source)  # refuses an index that leads elsewhere
    check_listed(folder, lambda: {name: sha256_of(folder / name) for name in files if is_setting(name)})
    ggufs = [file for file in files if file.endswith(".gguf")]
    only_gguf = [file.suffix for file in weight_files(source)] == [".gguf"]
    if "config.json" in files and not only_gguf:
        return replace(source, config=read_config(folder / "config.json"))
    if OPEN_CLIP in files:
        return replace(source, config={"open_clip": read_config(folder / OPEN_CLIP)})
    if len(ggufs) == 1:
        return _in_file(name, folder / ggufs[0])
    if ggufs:
        raise ModelError(f"{folder} holds {len(ggufs)} GGUF files: name one of {', '.join(ggufs)}.")
    inside = folder / "model"  # where a run keeps the model that it pruned
    instead = f" There is one in it: name {inside}." if (inside / "config.json").is_file() else _of_an_adapter(folder)
    raise ModelError(f"no model in {folder}: expected a config.json, or one *.gguf file.{instead}")


def _of_an_adapter(folder: Path) -> str:
    """Say that a folder holds what was trained beside a model, such as a LoRA; nothing where it does not."""
    file = folder / ADAPTER
    if not file.is_file():
        return ""
    base = read_config(file).get("base_model_name_or_path")
    trained = f" of {cut(base)}" if isinstance(base, str) and base else ""
    return (
        f" {ADAPTER} says that it is a PEFT adapter{trained}, such as a LoRA: merge it into that model by peft's "
        f"merge_and_unload(), save it with save_pretrained, and name that folder."
    )


def _in_file(name: str, file: Path) -> Source:
    if file.suffix != ".gguf":
        recipe = " If it is a recipe, ecoflap plan shows it." if file.suffix in {".yaml", ".yml"} else ""
        raise ModelError(
            f"{file} is not a GGUF file; for other formats name the folder that holds config.json.{recipe}"
        )
    beside = _files_in(file.parent)
    config = deepcopy(_gguf_config(file, file.stat().st_mtime_ns))
    return Source(name, path=file, config=config, files=beside)


def _files_in(folder: Path) -> tuple[str, ...]:
    try:
        return tuple(sorted(path.name for path in folder.iterdir() if path.is_file()))
    except OSError as error:
        raise ModelError(unread(error, folder)) from error


@lru_cache(maxsize=4)
def _gguf_config(file: Path, changed: int) -> Mapping[str, Any]:
    """Read a GGUF file's header. The result is kept, for it takes seconds, and all runs of a sweep ask for it.

    :param changed: When the file was last written: one that has changed is read again.
    """
    missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelError(f"{file.name} needs {' and '.join(missing)} to be read: pip install 'ecoflap[gguf]'.")
    check_gguf_header(file)
    from transformers import AutoConfig

    try:
        with header_read_once():
            config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name, local_files_only=True)
    except Exception as error:  # of a damaged header it raises whatever its reader stumbles over
        raise ModelError(f"{file} cannot be read as GGUF: {_first_line(error)}.") from error
    read = dict(config.to_dict())
    check_counts(read, str(file))
    return read


def with_config(name: str, config: Path) -> Source:
    """Make the source of a hub id by a configuration that lies here.

    :param config: A ``config.json`` or ``open_clip_config.json``, or a folder with one.
    :raises ModelError: Where there is none.
    """
    beside = [config / file for file in CONFIGS] if config.is_dir() else [config]
    file = next((file for file in beside if file.is_file()), None)
    if file is None and config.is_dir():
        raise ModelError(f"model.config: the folder {config} holds neither config.json nor {OPEN_CLIP}.")
    if file is None:
        near = nearest(config.name, [other.name for other in config.parent.iterdir()] if config.parent.is_dir() else [])
        raise ModelError(f"model.config: {config} does not exist.{near} A config.json, or a folder with one, is meant.")
    return _configured(name, file)


def _on_hub(name: str, path: Path) -> Source:
    return _configured(name, _config_on_hub(name, path))


def _configured(name: str, file: Path) -> Source:
    config = read_config(file)
    return Source(name, config={"open_clip": config} if file.name == OPEN_CLIP else config)


def _config_on_hub(name: str, path: Path | None = None) -> Path:
    """Give a hub id's configuration, read now or before.

    :param path: The folder that the name might have been, for messages.
    """
    try:
        return first_on_hub(name, CONFIGS)
    except (OSError, ValueError) as error:
        folder = f"neither a folder ({path} does not exist) nor" if path is not None else "not"
        plan = f"to plan without it, name its config.json: model: {{source: {name}, config: FOLDER}}"
        if not is_reachable():
            raise ModelError(
                f"model {name!r} is {folder} in the hub's cache, and {why_unreachable()}: check the network, or "
                f"download it elsewhere and name its folder; {plan}."
            ) from error
        raise ModelError(
            f"model {name!r} is {folder} reachable on the hub ({_first_line(error)}). Check its spelling and revision, "
            f"log in with `hf auth login` if it is gated, or download it and name its folder; {plan}."
        ) from error


def _first_line(error: Exception) -> str:
    lines = chain(str(error).splitlines(), [type(error).__name__])
    return next(line.strip().rstrip(".") for line in lines if line.strip())
