"""Have transformers' ``generate`` compile the step by which a model says one token.

What lies between a token's products, in Python and in small steps of torch's, is a fifth of its time in a model of a
billion weights, and more than half of it in one of a hundred million. transformers compiles that step itself where it
is asked to, with keys and values in a memory of fixed length; the prompt is read as before.
"""

import os
import shutil
import sys
from typing import Any

from torch import nn

from ecoflap.core.errors import ModelError

_ON_EVERY_DEVICE = "_compile_all_devices"
"""What transformers asks of a configuration before it compiles on a CPU; it has no public name for it."""


def compile_generation(model: nn.Module, length: int = 512) -> None:
    """Have ``generate`` say each token but the first by compiled code.

    Tokens are those of before but where two are nearly equal: sums are rounded in another order. The first call of
    ``generate`` compiles, which takes half a minute or more, and needs a C++ compiler; one with another number of texts
    at once compiles anew. It is for a decoder, or a decoder with images, as transformers has it: a
    model of transformers with its weights packed or dense, in place: its ``generation_config`` is changed, and what is
    saved asks for keys and values of fixed length, too, but for nothing to be compiled.

    :param length: How many positions have room, prompt and answer together. Keys and values of so many are held, and
        looked at for each token; a longer text is compiled for anew.
    :raises ModelError: Where transformers cannot do it for this model, or there is no compiler.
    """
    if length < 1:
        raise ModelError(f"length is {length}; it counts positions, and is at least 1")
    settings = getattr(model, "generation_config", None)
    if settings is None or not hasattr(model, "generate"):
        raise ModelError(f"{type(model).__name__} says no texts by transformers' generate, so nothing is compiled")
    if not getattr(model, "_can_compile_fullgraph", False):
        raise ModelError(
            f"transformers compiles no {type(model).__name__}: its class does not say that it can be. generate runs it "
            f"as it is"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} reads by an encoder, and what it has read has another length for each prompt, for "
            f"which its steps would be compiled anew. generate runs it as it is"
        )
    if not hasattr(settings, "max_cache_len"):  # without it each length is compiled for anew
        raise ModelError("this transformers compiles one length at a time: pip install -U 'transformers>=5.24'")
    _require_compiler()
    settings.compile_config = _compile_config()
    settings.cache_implementation, settings.max_cache_len = "static", length


def _compile_config() -> Any:
    from transformers import CompileConfig

    config = CompileConfig(fullgraph=False, dynamic=False, mode="default")
    setattr(config, _ON_EVERY_DEVICE, True)
    return config


def _require_compiler() -> None:
    """Refuse where there is none of the compilers that torch looks for: its own error comes in the first generate."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if sys.platform != "win32" and shutil.which(name) is None:
        raise ModelError(f"torch compiles by {name}, and there is none: install it, or name another one in $CXX")
