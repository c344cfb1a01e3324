"""LLaMA and the decoder-only models laid out like it: one stack of blocks of seven matrices, read from transformers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ecoflap.core.anatomy import Block, Layer, Source, Tower
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.hookspecs import hookimpl
from ecoflap.core.parts import Batch, Sample
from ecoflap.core.source import check_weights, hub_id

# Families whose head is a plain linear layer. Those that scale or cap their logits (Gemma, Granite, Cohere) are not
# here: the loss below would be wrong for them.
FAMILIES = frozenset({
    "llama", "ernie4_5", "helium", "ministral", "mistral", "olmo", "olmo2", "olmo3", "qwen2", "qwen3", "seed_oss",
    "smollm3",
})  # fmt: skip
MATRICES = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
LOGITS_BYTES = 16 * 2**20  # measured on two cores: faster than 8 or 256 MiB, and a sixteenth of the memory


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["LlamaAdapter"]]:
    return {"llama": LlamaAdapter}


class LlamaAdapter:
    """``LlamaForCausalLM`` and models of its layout, from a hub id, a folder, a GGUF file or memory.

    A GGUF file's weights are de-quantised to float32, and cast from there where another type is asked for.
    """

    def __init__(self) -> None:
        self.processor: Any = None

    def matches(self, source: Source) -> bool:
        """By ``model_type``, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None and not _is_laid_out(model):
            return False
        heads = config.get("architectures") or ["ForCausalLM"]
        known = config.get("model_type") in FAMILIES and any(head.endswith("ForCausalLM") for head in heads)
        return known or (model is not None and not config)

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its tokenizer; ``device="meta"`` reads neither weights nor tokenizer."""
        if source.model is not None:
            return source.model.eval()
        with _quiet():
            if device == "meta":
                return _without_weights(source.config, dtype)
            check_weights(source)
            model = _with_weights(source, dtype)
            self.processor = _tokenizer(source)
        return model.to(device)

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        blocks = _parts(model).model.layers
        return [
            Tower("language", tuple(Block(f"model.layers.{i}", block, "language") for i, block in enumerate(blocks)))
        ]

    def layers(self, block: Block) -> Sequence[Layer]:
        """The seven matrices in the order they run."""
        missing = [name for name in MATRICES if not _has_matrix(block.module, name)]
        if missing:
            raise ModelError(f"{block.name} is not a LLaMA block: it has no {', '.join(missing)}.")
        return [Layer(f"{block.name}.{name}.weight", block.module.get_submodule(name)) for name in MATRICES]

    def max_length(self, model: nn.Module) -> int | None:
        return getattr(_parts(model).config, "max_position_embeddings", None)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Token windows side by side, padded on the right to the longest."""
        windows = [sample.tokens for sample in samples if sample.tokens is not None and len(sample.tokens)]
        if len(windows) < len(samples) or not windows:
            raise DataError("this model reads tokens: each sample needs at least one, and a batch at least one sample.")
        shape = len(windows), max(map(len, windows))
        input_ids, attention_mask = torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64)
        for row, window in enumerate(windows):
            input_ids[row, : len(window)] = window
            attention_mask[row, : len(window)] = 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of each real token given those before it, summed in float64."""
        parts = _parts(model)
        device = parts.get_input_embeddings().weight.device
        input_ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        real = (mask[:, :-1] * mask[:, 1:]).bool()
        targets = input_ids[:, 1:][real]
        if not len(targets):
            raise DataError("a batch holds no token to predict: a text needs at least two tokens.")
        seen = None if _ends_in_padding(mask) else mask
        output = parts.model(input_ids=input_ids, attention_mask=seen, use_cache=False)
        return _summed_nll(parts.lm_head, output.last_hidden_state[:, :-1][real], targets) / len(targets)

    def tokens(self, model: nn.Module, batch: Batch, tower: str) -> Int8[Tensor, "batch tokens"]:
        mask: Tensor = batch["attention_mask"]
        return mask.to(torch.int8)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the tokenizer beside it."""
        with _quiet():
            _parts(model).save_pretrained(folder)
            if self.processor is not None:
                self.processor.save_pretrained(folder)


def _parts(model: nn.Module) -> Any:
    """The model untyped: which modules it has, no base class of transformers declares."""
    return model


def _is_laid_out(model: nn.Module) -> bool:
    blocks = getattr(getattr(model, "model", None), "layers", None)
    return (
        isinstance(blocks, nn.ModuleList)
        and isinstance(getattr(model, "lm_head", None), nn.Linear)
        and all(_has_matrix(block, name) for block in blocks for name in MATRICES)
    )


def _has_matrix(block: nn.Module, name: str) -> bool:
    module: Any = block
    for part in name.split("."):
        module = getattr(module, part, None)
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2


def _ends_in_padding(mask: Int64[Tensor, "batch tokens"]) -> bool:
    """Whether padding, if any, comes after all text: a causal model's text then never sees it, so no mask is needed.

    Without a mask attention takes its fast path, and nothing of the size tokens × tokens is made.
    """
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


def _summed_nll(
    head: nn.Linear, hidden: Float[Tensor, "targets hidden"], targets: Int64[Tensor, " targets"]
) -> Float[Tensor, ""]:
    """Logits are made a chunk at a time, and made again in the backward rather than kept."""
    rows = max(1, LOGITS_BYTES // (4 * head.weight.shape[0]))
    total = hidden.new_zeros((), dtype=torch.float64)
    for chunk, wanted in zip(hidden.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            total = total + checkpoint(_chunk_nll, head, chunk, wanted, use_reentrant=False, preserve_rng_state=False)
        else:
            total = total + _chunk_nll(head, chunk, wanted)
    return total


def _chunk_nll(
    head: nn.Module, hidden: Float[Tensor, "rows hidden"], targets: Int64[Tensor, " rows"]
) -> Float[Tensor, ""]:
    # Each token's term is exact enough in float32; it is their sum that would lose a small difference.
    return F.cross_entropy(head(hidden).float(), targets, reduction="none").double().sum()


def _config(config: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(**config)
    except (KeyError, ValueError) as error:
        raise ModelError(f"this version of transformers cannot build the model: {error}") from error


def _without_weights(config: Mapping[str, Any], dtype: torch.dtype | None) -> nn.Module:
    from transformers import AutoModelForCausalLM

    known = _config(config)
    with torch.device("meta"):
        model: nn.Module = AutoModelForCausalLM.from_config(known, **_dtype_argument(dtype or _own_dtype(known)))
    return model.eval()


def _with_weights(source: Source, dtype: torch.dtype | None) -> nn.Module:
    from transformers import AutoModelForCausalLM

    place, arguments = _place(source)
    is_gguf = "gguf_file" in arguments
    wanted = dtype or (torch.float32 if is_gguf else "auto")
    if is_gguf:
        arguments["config"] = _config(source.config)  # reading a GGUF's header takes seconds, and was done
    try:
        read: Any = AutoModelForCausalLM.from_pretrained(
            place, **arguments, **_dtype_argument(wanted), trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, UnpicklingError) as error:
        raise ModelError(f"{source.name} cannot be loaded: {error}") from error
    model: nn.Module = read[0]
    missing = sorted(read[1]["missing_keys"])
    if missing:  # transformers would go on with random numbers in their place
        raise ModelError(f"{source.name} lacks {len(missing)} of the model's weights: {', '.join(missing[:4])}…")
    if is_gguf:
        _forget_quantization(model)
    return model.eval()


def _place(source: Source) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` is called with."""
    if source.path is None:
        repository, revision = hub_id(source)
        return repository, {"revision": revision or "main"}
    if source.path.is_file():
        return str(source.path.parent), {"gguf_file": source.path.name, "local_files_only": True}
    return str(source.path), {"local_files_only": True}


def _dtype_argument(dtype: torch.dtype | str) -> dict[str, Any]:
    """Its name changed in transformers 4.56."""
    import transformers

    major, minor = (int(part) for part in transformers.__version__.split(".")[:2])
    return {"dtype" if (major, minor) >= (4, 56) else "torch_dtype": dtype}


def _own_dtype(config: Any) -> torch.dtype:
    """What the checkpoint is stored in, by its newer name or the older one."""
    return getattr(config, "dtype", None) or getattr(config, "torch_dtype", None) or torch.float32


def _forget_quantization(model: Any) -> None:
    """The weights are plain numbers now; with these left on it a model can't be saved."""
    for owner, names in (
        (model.config, ("quantization_config",)),
        (model, ("hf_quantizer", "is_quantized", "quantization_method")),
    ):
        for name in names:
            owner.__dict__.pop(name, None)


def _tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    place, arguments = _place(source)
    is_folder = source.path is not None and source.path.is_dir()
    if is_folder and not any(name in source.files for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(place, **arguments, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"the tokenizer of {source.name} cannot be read: {error}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' bars and advice off the screen while it loads; its settings are as before afterwards."""
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
