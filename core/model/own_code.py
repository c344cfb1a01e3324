"""Name the code that comes with a model and is not run here: what ``auto_map`` of its configuration points at."""

from collections.abc import Iterator, Mapping
from typing import Any

from ecoflap.core.errors import ModelError


def own_code(config: Mapping[str, Any]) -> list[str]:
    """List the files of code that a configuration asks to be run, with the classes in them.

    A file of another repository is written ``org/name--file``, as the configuration has it.
    """
    classes: dict[str, list[str]] = {}
    for path in _paths(config.get("auto_map")):
        module, _, name = path.rpartition(".")
        classes.setdefault(f"{module}.py", []).append(name)
    return [f"{file} ({', '.join(dict.fromkeys(names))})" for file, names in classes.items()]


def refuse_kernels(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that has transformers fetch code from the hub to compute attention or experts with.

    :param where: What the configuration is called in the message.
    :raises ModelError: With every such key.
    """
    problems = [
        f"{where}: {key} names code of the hub, {kernel}, which is not run here. Remove the key."
        for key, kernel in _kernels(config, "")
    ]
    if problems:
        raise ModelError(*problems)


def _kernels(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each kernel of the hub, with its dotted key; one of transformers' own has no slash."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _kernels(inside, f"{path}.{key}" if path else str(key))
    elif isinstance(value, str) and "/" in value and any("_implementation" in step for step in path.split(".")):
        yield path, value


def not_run(config: Mapping[str, Any], what: str = "The model") -> str:
    """Say that code of a model's own is not run, and how to go on for whoever trusts it; nothing where it has none.

    The text begins with a blank, for it follows another sentence.

    :param what: What brings the code: the model, or its tokenizer.
    """
    code = own_code(config)
    if not code:
        return ""
    return (
        f" {what} brings code of its own, which is not run here: {', '.join(code)}. If you trust it, load the model "
        f"yourself, with trust_remote_code=True, and give it to ecoflap.run(recipe, model=…, processor=…)."
    )


def _paths(auto_map: Any) -> Iterator[str]:
    """Yield each dotted path of an ``auto_map``; a tokenizer's is a list, in which one may be missing."""
    found = auto_map.values() if isinstance(auto_map, Mapping) else ()
    for value in found:
        yield from (path for path in (value if isinstance(value, list) else [value]) if isinstance(path, str))
