"""BLIP-2 of salesforce-lavis: vision, Q-Former and a T5 or OPT, or vision and Q-Former alone for retrieval."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.lavis_blip2.generation import lavis_says, lavis_tokens_of
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.generation import distinct_images
from ecoflap.adapters.shared.losses import IGNORED, info_nce, mean_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, part
from ecoflap.adapters.shared.transforms import transformed
from ecoflap.adapters.t5 import layers_of_t5, towers_of_t5
from ecoflap.adapters.views.blip2 import views_of_lavis
from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError, nearest
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Source, Tower
from ecoflap.core.packed.into_model import fill, packed_in
from ecoflap.core.recipe.schema import Recipe

PREFIX = "lavis:"
LIBRARY = "lavis"
CHECKPOINT = "model.pth"  # torch.save of {"model": state_dict}, which is what LAVIS' load_checkpoint reads
CLASSES = frozenset({"Blip2T5", "Blip2OPT", "Blip2Qformer"})
READS = {
    "t5_proj": "qformer", "opt_proj": "qformer", "vision_proj": "qformer",
    "t5_model.lm_head": "decoder", "opt_model.lm_head": "language",
}  # fmt: skip
TEXT, IMAGE = 1, 2
NO_TEXTS = "a Blip2Qformer compares images with texts and has no language model to make any."


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["LavisBlip2Adapter"]]:
    return {"lavis_blip2": LavisBlip2Adapter}


class LavisBlip2Adapter:
    """``Blip2T5``, ``Blip2OPT`` and ``Blip2Qformer``: ``lavis:NAME/TYPE``, a folder saved from one, or in memory.

    ``lavis:blip2_t5/pretrain_flant5xl`` is ``load_model("blip2_t5", "pretrain_flant5xl")`` of LAVIS, which downloads
    what it needs and cannot build a model without its weights: ``plan`` and ``inspect`` load it too. It comes in
    float32, as LAVIS has it on a CPU, unless the recipe says otherwise. On a GPU LAVIS itself runs it with autocast.
    """

    def __init__(self) -> None:
        self.processor: Any = None
        self._built: tuple[str, str] | None = None
        self._waiting: dict[tuple[str, str], nn.Module] = {}
        """Loaded to be taken apart, until it is asked for with its weights."""
        self._speaks: tuple[str, Any] | None = None

    def matches(self, source: Source) -> bool:
        """By the prefix, by what ``save`` wrote, and by its class for a model in memory."""
        if source.model is not None:
            kinds = type(source.model).__mro__
            return any(kind.__module__.startswith("lavis.") and kind.__name__ in CLASSES for kind in kinds)
        return source.name.startswith(f"{PREFIX}blip2") or source.config.get("library") == LIBRARY

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and LAVIS' image processor for it.

        :raises ModelError: Where LAVIS is not installed, knows no such model, or cannot get it.
        """
        if source.model is not None:
            return source.model.eval()
        self._built = name, kind = _name_and_type(source)
        model = self._waiting.pop((name, kind), None) or self._fetched(name, kind)
        if device == "meta":
            self._waiting[name, kind] = model
            return _weightless(model)
        packed = packed_in(source)
        if packed is not None:
            fill(model, packed)
        elif source.path is not None:
            _read_checkpoint(source.path / CHECKPOINT, model)
        return (model if dtype is None else in_type(model, dtype)).to(device)

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        stack = "blocks" if part(model, "visual_encoder.blocks") else "transformer.resblocks"
        vision = Tower("vision", _blocks(model, f"visual_encoder.{stack}", "vision"))
        kind, qformer = _kind(model), "Qformer.bert.encoder.layer"
        if kind == "retrieval":  # the Q-Former reads the image, then the text
            bridge = Tower("qformer", _blocks(model, qformer, "qformer", calls=2), prunable=False)
            return [vision, bridge, Tower.of_matrix(model, "vision_proj"), Tower.of_matrix(model, "text_proj")]
        bridge = Tower("qformer", _blocks(model, qformer, "qformer"), prunable=False)
        projection = Tower.of_matrix(model, f"{kind}_proj")
        if kind == "t5":
            return [vision, bridge, projection, *towers_of_t5(model, "t5_model.")]
        language = Tower("language", _blocks(model, "opt_model.model.decoder.layers", "language"))
        return [vision, bridge, projection, language, Tower.of_matrix(model, "opt_model.lm_head")]

    def layers(self, block: Block) -> Sequence[Layer]:
        """A CLIP vision tower holds its tokens before the batch, an EVA one after it."""
        if block.tower in ("encoder", "decoder"):
            return layers_of_t5(block)
        if block.tower in ("vision", "qformer", "language"):
            return list(matrices(block, reads=_read_by, layout="token batch" if _is_clip(block) else "batch token"))
        reads = READS.get(block.name, "")
        return matrix_outside(block, reads=reads, layout="batch token" if reads else "selected")

    def max_length(self, model: nn.Module) -> int | None:
        limit: int = part(model, "max_txt_len")
        return limit

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images, what is asked about each (nothing of a caption), and what is to be said: LAVIS has it tokenised."""
        if self.processor is None:
            raise DataError(
                "this model needs an image processor: give ecoflap.run a processor, which is vis_processors['eval'] of "
                "LAVIS' load_model_and_preprocess."
            )
        said = [sample.answers[0] if sample.answers else sample.text for sample in samples]
        silent = [number for number, text in enumerate(said) if not text]
        if silent:
            raise DataError(
                f"sample {silent[0]} of a batch has no caption and no answer, which this model is to say of an image."
            )
        asked = [sample.question or "" for sample in samples]
        return {"image": transformed(self.processor, samples), "text_input": asked, "text_output": said}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of each token of the caption or answer, or symmetric InfoNCE for retrieval.

        InfoNCE is of the model's own similarities, each image's best query against each text, over its temperature.
        """
        if _kind(model) == "retrieval":
            return info_nce(similarities(model, batch))
        return mean_nll(*logits_and_labels(model, batch))

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """What the language model says of each image to its question, or to the prompt the model was made with."""
        kind = _kind(model)
        if kind == "retrieval":
            raise ModelError(NO_TEXTS)
        self._speaks = kind, part(model, f"{kind}_tokenizer")
        first, which = distinct_images(samples)
        image = _image(model, {"image": transformed(self.processor, first)})
        prompts = _openings(model, {"text_input": [sample.question or "" for sample in samples]})
        return lavis_says(model, kind, image, which, prompts, generation)

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """:raises ModelError: Before a model has made texts: LAVIS has its tokenizer in the model."""
        if self._speaks is None:
            raise ModelError("LAVIS has the tokenizer in its model: have it make texts first.")
        return lavis_tokens_of(*self._speaks, text)

    def refuses(self, model: nn.Module, ability: Any) -> str | None:
        """That a model for retrieval makes no texts."""
        return NO_TEXTS if ability is Generates and _kind(model) == "retrieval" else None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        images = len(batch["image"])
        if tower == "vision":
            encoder = part(model, "visual_encoder.patch_embed") or part(model, "visual_encoder")
            return torch.full((images, 1 + encoder.num_patches), IMAGE, dtype=torch.int8)
        queries = torch.full((images, part(model, "query_tokens").shape[1]), IMAGE, dtype=torch.int8)
        if tower == "qformer":
            return _real(model, _whole_texts(model, batch)) if call else queries
        if tower == "decoder":
            return _real(model, batch["text_output"])
        read = _openings(model, batch) if tower == "encoder" else _whole_texts(model, batch)
        return torch.cat([queries, _real(model, read)], 1)

    def save(self, model: nn.Module, folder: Path) -> None:
        """A checkpoint for LAVIS' ``load_checkpoint``, and the name and type of its model where they are known."""
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"model": dict(model.state_dict())}, folder / CHECKPOINT)
        self.save_surroundings(model, folder)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        if self._built is not None:
            name, kind = self._built
            config = {"library": LIBRARY, "model_type": f"{LIBRARY}_{name}", "name": name, "type": kind}
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """None of all in one: LAVIS tokenises texts in its own forward."""
        return list(views_of_lavis(model, _kind(model)))

    def problems(self, anatomy: Anatomy, recipe: Recipe) -> Iterator[str]:
        """A batch of one pair, whose contrastive loss is 0 whatever the weights are; types that only a GPU mixes."""
        if {"encoder", "language"}.isdisjoint(tower.name for tower in anatomy.towers):
            yield from pair_problems(recipe)
        vision = [block.module for block in anatomy.blocks if block.tower == "vision" and not _is_clip(block)]
        kinds = sorted({str(weight.dtype) for module in vision for weight in module.parameters() if weight.is_cpu})
        if len(kinds) > 1 and (recipe.model.offload or not recipe.model.device.startswith("cuda")):
            yield f"the vision tower mixes {' and '.join(kinds)}, as LAVIS does on a GPU only: call model.float()."

    def _fetched(self, name: str, kind: str) -> nn.Module:
        models = _lavis()
        try:
            model, images, _ = models.load_model_and_preprocess(name, kind, is_eval=True, device="cpu")
        except (OSError, RuntimeError, ValueError, KeyError, UnpicklingError) as error:
            raise ModelError(f"LAVIS cannot load {name}/{kind}: {error}") from error
        if self.processor is None:
            self.processor = (images or {}).get("eval")
        fetched: nn.Module = model.eval()
        return fetched


def in_type(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Every weight in one type, but those of LAVIS' own layer norms, which it runs in float32 whatever they read."""
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and type(module).__module__.startswith("lavis."):
            module.float()
    return model


def logits_and_labels(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "batch tokens vocabulary"], Int64[Tensor, "batch tokens"]]:
    """Of the language model inside, run by LAVIS' own forward; the label of each position is at that position."""
    image = _image(model, batch)
    if _kind(model) == "t5":
        texts = {"text_input": _openings(model, batch), "text_output": batch["text_output"]}
        with _watched(part(model, "t5_model")) as seen:
            model({"image": image, **texts})
        return seen["logits"], seen["labels"]
    with _watched(part(model, "opt_model")) as seen:
        model({"image": image, "text_input": _whole_texts(model, batch)})
    labels = seen["labels"].clone()
    queries = part(model, "query_tokens").shape[1]
    for row, opening in zip(labels, _openings(model, batch), strict=True):
        if opening:
            row[: queries + len(part(model, "opt_tokenizer")(opening).input_ids)] = IGNORED
    return seen["logits"][:, :-1], labels[:, 1:]


def similarities(model: nn.Module, batch: Batch) -> Float[Tensor, "images texts"]:
    """Each image's best query against each text, over the temperature; LAVIS' forward needs a process group for it."""
    image = _image(model, batch)
    with part(model, "maybe_autocast")():
        hidden, _ = part(model, "forward_image")(image)
        told = part(model, "forward_text")(_tokenised(model, _whole_texts(model, batch)).to(image.device))
        images = F.normalize(part(model, "vision_proj")(hidden), dim=-1)
        texts = F.normalize(part(model, "text_proj")(told), dim=-1)
    best = (images.float() @ texts.float().T).amax(1)
    scaled: Tensor = best / part(model, "temp").float()
    return scaled


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What a language model of LAVIS is given as labels and answers as logits, without a cache."""
    seen: dict[str, Tensor] = {}

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        seen["labels"] = kwargs["labels"]
        return args, {**kwargs, "use_cache": False}

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen["logits"] = output.logits

    handles = [model.register_forward_pre_hook(before, with_kwargs=True), model.register_forward_hook(after)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _kind(model: nn.Module) -> str:
    return next((name for name in ("t5", "opt") if part(model, f"{name}_model") is not None), "retrieval")


def _blocks(model: nn.Module, path: str, tower: str, calls: int = 1) -> tuple[Block, ...]:
    return tuple(Block(f"{path}.{i}", block, tower, calls) for i, block in enumerate(part(model, path)))


def _is_clip(block: Block) -> bool:
    return any(isinstance(module, nn.MultiheadAttention) for module in block.module.modules())


def _read_by(name: str) -> str:
    return "vision" if name.endswith(("crossattention.self.key", "crossattention.self.value")) else ""


def _image(model: nn.Module, batch: Batch) -> Float[Tensor, "batch channels height width"]:
    """Where and as precise as the convolution that cuts it into patches."""
    if part(model, "ln_vision.weight").dtype != torch.float32:
        raise ModelError(
            "LAVIS runs its own layer norms in float32, and this model's are of another type: call model.float(), or "
            "ecoflap.adapters.lavis_blip2.adapter.in_type(model, torch.bfloat16)"
        )
    cut = part(model, "visual_encoder.patch_embed.proj") or part(model, "visual_encoder.conv1")
    image: Tensor = batch["image"].to(cut.weight)
    return image


def _openings(model: nn.Module, batch: Batch) -> list[str]:
    """What the model goes on from: the question, or of a caption the prompt that the model was made with."""
    prompt = str(part(model, "prompt") or "")
    return [(asked or prompt).rstrip() for asked in batch["text_input"]]


def _whole_texts(model: nn.Module, batch: Batch) -> list[str]:
    """Question and answer in one, for a model that reads them so; a caption is one already."""
    pairs = zip(_openings(model, batch), batch["text_output"], strict=True)
    return [" ".join(filter(None, pair)) for pair in pairs]


def _tokenised(model: nn.Module, texts: Sequence[str]) -> Any:
    """As the model's forward does it."""
    kind = _kind(model)
    tokenizer = part(model, {"t5": "t5_tokenizer", "opt": "opt_tokenizer", "retrieval": "tokenizer"}[kind])
    tokenizer.padding_side = "right"
    texts = [f"{text}\n" if kind == "opt" else text for text in texts]
    limit = part(model, "max_txt_len")
    return tokenizer(texts, padding="longest", truncation=True, max_length=limit, return_tensors="pt")


def _real(model: nn.Module, texts: Sequence[str]) -> Int8[Tensor, "batch tokens"]:
    mask: Tensor = _tokenised(model, texts).attention_mask
    return mask.to(torch.int8) * TEXT


def _lavis() -> Any:
    try:
        from lavis import models
    except ImportError as error:
        raise ModelError(
            f"this model is read with salesforce-lavis, which cannot be imported ({error}): pip install "
            f"'ecoflap[lavis]' into an environment of its own, of Python 3.11"
        ) from error
    return models


def _name_and_type(source: Source) -> tuple[str, str]:
    """Of a ``lavis:`` source, or as a folder has them."""
    if source.path is not None:
        name, kind = source.config.get("name"), source.config.get("type")
    else:
        name, _, kind = source.name.removeprefix(PREFIX).partition("/")
    known = {str(one): list(kinds) for one, kinds in _lavis().model_zoo if str(one).startswith("blip2")}
    if name not in known:
        raise ModelError(
            f"{source.name}: LAVIS has no {name!r} among its BLIP-2 models.{nearest(str(name), known)} Known: "
            f"{', '.join(sorted(known))}"
        )
    if kind not in known[name]:
        raise ModelError(
            f"{source.name}: {name} has no type {kind!r}.{nearest(str(kind), known[name])} It is written "
            f"{PREFIX}{name}/TYPE with one of {', '.join(known[name])}"
        )
    return name, str(kind)


def _weightless(model: nn.Module) -> nn.Module:
    """A copy on the meta device; nothing of the weights is copied."""
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = buffer.to("meta")
    return deepcopy(model, memo)


def _read_checkpoint(file: Path, model: nn.Module) -> None:
    """Weights as they were saved, each in its own type."""
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)["model"]
        for name, parameter in model.named_parameters():
            parameter.data = parameter.data.to(state[name].dtype)
        model.load_state_dict(state)
    except (OSError, RuntimeError, KeyError, UnpicklingError) as error:
        raise ModelError(f"{file} cannot be read as a checkpoint of this model: {error}") from error
