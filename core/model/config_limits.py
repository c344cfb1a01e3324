"""Refuse a configuration that asks for more than any model has, before a library makes a billion of a thing."""

from collections.abc import Iterator, Mapping
from math import isinf, isnan
from pathlib import Path
from typing import Any

from ecoflap.core.disk.json_files import doubled_keys, json_value, read_bytes
from ecoflap.core.disk.reading import unread
from ecoflap.core.errors import ModelError, cut
from ecoflap.core.model.own_code import refuse_kernels

LARGEST = 20_000_000
"""Bytes of a configuration; one with the names of 21,841 classes has about two million."""

MOST: Mapping[str, int] = {
    **dict.fromkeys(("layer", "block", "depth", "stage", "level", "group", "codebook", "tower"), 10_000),
    **dict.fromkeys(("layers", "blocks", "depths", "stages", "levels", "groups", "codebooks", "towers"), 10_000),
    **dict.fromkeys(("expert", "experts", "head", "heads", "labels", "classes"), 100_000),
}
"""By the last word of a key: how many of it a model is taken to have at most. Libraries make a module or a name for
each, also without weights."""

MOST_OF: Mapping[str, int] = {
    **dict.fromkeys(("image_size", "patch_size", "num_channels", "in_channels"), 4_096),
    **dict.fromkeys(("spatial_merge_size", "temporal_patch_size", "downsample_factor", "pooling_kernel_size"), 64),
    **dict.fromkeys(
        ("image_seq_length", "image_seq_len", "mm_tokens_per_image", "query_length", "num_query_tokens"), 65_536
    ),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embed_dim"), 131_072),
    **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "qk_rope_head_dim", "qk_nope_head_dim"), 16_384),
    **dict.fromkeys(("intermediate_size", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim"), 524_288),
    "vocab_size": 10_000_000,
}
"""The same by the whole key, of what an example is made by that a model is watched with, and of how wide it is then
inside: that takes memory and time without any weight."""


_UNLIMITED = "_limit"
"""Ends keys whose numbers may be infinite: Mamba-2 is published with ``"time_step_limit": [0.0, Infinity]``."""


def read_config(file: Path) -> Mapping[str, Any]:
    """Read a model's configuration.

    :raises ModelError: Where it cannot be read, is none, is too large, asks for too much, or for code.
    """
    try:
        raw = read_bytes(file, LARGEST)
        content = json_value(raw)
        twice = doubled_keys(raw)
    except OSError as error:
        raise ModelError(unread(error, file)) from error
    except ValueError as error:
        raise ModelError(f"{file} is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} is not a model's configuration: it holds no object.")
    if twice:
        raise ModelError(f"{file} has {', '.join(map(repr, twice))} twice, and says nowhere which counts. Remove one.")
    check_counts(content, str(file))
    _check_numbers(content, str(file))
    _check_names(content, str(file))
    refuse_kernels(content, str(file))
    return content


def check_counts(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration with a count that no model has.

    :param where: What it is called in the message.
    :raises ModelError: With every such count.
    """
    problems = [
        f"{where}: {key} is {_shown(value)}, and no model has more than {most:,}. The file is damaged."
        for key, value, most in _too_many(config, "")
    ]
    if problems:
        raise ModelError(*problems)


def _check_numbers(config: Mapping[str, Any], where: str) -> None:
    """Refuse numbers by which a model would be built, and would answer nothing but NaN.

    :raises ModelError: With each of them.
    """
    problems = [f"{where}: {problem}. The file is damaged." for problem in _impossible(config, "")]
    if problems:
        raise ModelError(*problems)


def _impossible(value: Any, path: str) -> Iterator[str]:
    """Say of each number that none can be, by its dotted key, what is meant there."""
    if isinstance(value, Mapping):
        window = value.get("sliding_window")
        if isinstance(window, int | float) and window < 0 and value.get("use_sliding_window") is not False:
            where = _below(path, "sliding_window")
            yield f"{where} is {_shown(window)}, and a window has no tokens then; null is for none"
        for key, inside in value.items():
            yield from _impossible(inside, _below(path, key))
    elif isinstance(value, list):
        for inside in value:
            yield from _impossible(inside, path)
    elif isinstance(value, float) and isnan(value):
        yield f"{path} is NaN, and a number is meant"
    elif isinstance(value, float) and isinf(value) and not path.endswith(_UNLIMITED):
        yield f"{path} is {value}, and a finite number is meant"


def _below(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)


def _check_names(config: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration whose names of the model are none, for much goes by them before a library reads it.

    :raises ModelError: With each of them.
    """
    problems = [
        f"{where}: {key} is {cut(repr(config[key]))}, and a text is meant. The file is damaged."
        for key in ("model_type", "architecture")
        if not isinstance(config.get(key), str | None)
    ]
    named = config.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        problems.append(
            f"{where}: architectures is {cut(repr(named))}, and a list of names is meant. The file is damaged."
        )
    if problems:
        raise ModelError(*problems)


def _too_many(value: Any, path: str) -> Iterator[tuple[str, int | float, int]]:
    """Yield each count that is too large, with its dotted key and the limit."""
    if isinstance(value, Mapping):
        for key, inside in value.items():
            yield from _too_many(inside, _below(path, key))
    elif isinstance(value, list):
        for inside in value:
            yield from _too_many(inside, path)
    elif isinstance(value, int | float):
        key = path.rpartition(".")[2].lower()
        most = MOST_OF.get(key) or MOST.get(key.rpartition("_")[2])
        if most is not None and value > most:
            yield path, value, most


def _shown(value: int | float) -> str:
    text = str(value)
    return text if len(text) <= 20 else f"{text[:17]}…"
