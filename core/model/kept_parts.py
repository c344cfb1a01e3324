"""Classify by name the matrices that are kept on purpose: connectors, heads, embeddings and routers."""

import re

from torch import nn

CONNECTOR, HEAD, EMBEDDING, ROUTER = "connector", "head", "embedding", "router of experts"
_ROUTERS = re.compile(r"router|gating", re.IGNORECASE)
_GATES = ("gate", "router", "shared_expert_gate", "wg")
_CONNECTORS = re.compile(r"project|(^|_)proj$|merger|connector|aligner|resampler|perceiver", re.IGNORECASE)
_OUTSIDE = {
    EMBEDDING: re.compile(r"embed|token|latent|quer(y|ies)$|(^|_)pos(ition)?s?(_|$)", re.IGNORECASE),
    CONNECTOR: _CONNECTORS,
    HEAD: re.compile(r"head|classif|pool|score|predict|output|^cls$", re.IGNORECASE),
}


def is_router(model: nn.Module, name: str) -> bool:
    """Say whether a parameter decides which experts read a token: by its module's name and class, or the class around.

    :param name: The parameter's.
    """
    path = name.rpartition(".")[0]
    kinds = [type(model.get_submodule(one)).__name__ for one in (path, path.rpartition(".")[0])]
    return path.rpartition(".")[2] in _GATES or any(map(_ROUTERS.search, kinds))


def is_connector(path: str) -> bool:
    """Say whether a module, or one that it is in, leads from one tower to another."""
    return any(map(_CONNECTORS.search, path.split(".")))


def kept_outside(model: nn.Module, name: str) -> str | None:
    """Say what a parameter outside the blocks is, by the names on the way to it; None where they do not tell.

    :param name: The parameter's.
    """
    if is_router(model, name):
        return ROUTER
    parts = name.removesuffix(".weight").split(".")
    return next((kind for kind, words in _OUTSIDE.items() if any(map(words.search, parts))), None)
