"""Adapt BLIP-2 of salesforce-lavis: vision, Q-Former and a T5 or OPT, or vision and Q-Former alone for retrieval."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.lavis import LavisAdapter
from ecoflap.adapters.lavis_blip2.generation import lavis_says, lavis_tokens_of
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.generation import distinct_images
from ecoflap.adapters.shared.losses import IGNORED, info_nce, mean_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.t5_stack import layers_of_t5, towers_of_t5
from ecoflap.adapters.views.blip2 import views_of_lavis
from ecoflap.core.contracts.abilities import Generates, Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import IMAGE, Batch, Sample, View
from ecoflap.core.errors import DataError, ModelError
from ecoflap.core.model.anatomy import Block, Layer, Tower

READS = {
    "t5_proj": "qformer", "opt_proj": "qformer", "vision_proj": "qformer",
    "t5_model.lm_head": "decoder", "opt_model.lm_head": "language",
}  # fmt: skip
NO_TEXTS = "a Blip2Qformer compares images with texts and has no language model to make any."


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["LavisBlip2Adapter"]]:
    return {"lavis_blip2": LavisBlip2Adapter}


class LavisBlip2Adapter(LavisAdapter):
    """Adapts ``Blip2T5``, ``Blip2OPT`` and ``Blip2Qformer``: ``lavis:NAME/TYPE``, a saved folder, or in memory.

    ``lavis:blip2_t5/pretrain_flant5xl`` is ``load_model("blip2_t5", "pretrain_flant5xl")`` of LAVIS, which downloads
    what it needs and cannot build a model without its weights: ``plan`` and ``inspect`` load it too. A run that planned
    by it prunes that very model: until then it waits in ``Source.loaded``. On a GPU LAVIS itself runs it with autocast.
    """

    _classes = frozenset({"Blip2T5", "Blip2OPT", "Blip2Qformer"})
    _family, _called = "blip2", "BLIP-2"

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the vision transformer, the Q-Former, and either projections alone or one with the language model."""
        kind = _kind(model)
        stack = "blocks" if find(model, "visual_encoder.blocks") else "transformer.resblocks"
        passes = 2 if kind == "retrieval" else 1  # there the Q-Former reads the image, then the text
        vision = tower_at(model, f"visual_encoder.{stack}", "vision")
        bridge = tower_at(model, "Qformer.bert.encoder.layer", "qformer", calls=passes, prunable=False)
        if kind == "retrieval":
            return [vision, bridge, *(Tower.of_matrix(model, name) for name in ("vision_proj", "text_proj"))]
        projection = Tower.of_matrix(model, f"{kind}_proj")
        if kind == "t5":
            return [vision, bridge, projection, *towers_of_t5(model, "t5_model.")]
        language = tower_at(model, "opt_model.model.decoder.layers", "language")
        return [vision, bridge, projection, language, Tower.of_matrix(model, "opt_model.lm_head")]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; a CLIP vision tower holds its tokens before the batch, an EVA one after it."""
        if block.tower in ("encoder", "decoder"):
            return layers_of_t5(block)
        if block.tower in ("vision", "qformer", "language"):
            return list(matrices(block, reads=_read_by, layout="token batch" if _is_clip(block) else "batch token"))
        reads = READS.get(block.name, "")
        return matrix_outside(block, reads=reads, layout="batch token" if reads else "selected")

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many tokens LAVIS cuts a text to."""
        return member(model, "max_txt_len", int)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images, what is asked about each (nothing of a caption), and what is to be said: LAVIS tokenises it."""
        pixels = self._pixels(samples)
        said = [sample.answers[0] if sample.answers else sample.text for sample in samples]
        silent = [number for number, text in enumerate(said) if not text]
        if silent:
            raise DataError(
                f"sample {silent[0]} of a batch has no caption and no answer, which this model is to say of an image."
            )
        asked = [sample.question or "" for sample in samples]
        return {"image": pixels, "text_input": asked, "text_output": said}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute the mean negative log-likelihood of each token of the caption or answer, or InfoNCE for retrieval.

        InfoNCE is symmetric, and of the model's own similarities: those of each image's best query with each text, over
        its temperature.
        """
        if _kind(model) == "retrieval":
            return info_nce(similarities(model, batch))
        return mean_nll(*logits_and_labels(model, batch))

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the language model answer each question on an image, or go on from the prompt it was made with."""
        kind = _kind(model)
        if kind == "retrieval":
            raise ModelError(NO_TEXTS)
        first, which = distinct_images(samples)
        image = _image(model, {"image": self._pixels(first)})
        prompts = _openings(model, {"text_input": [sample.question or "" for sample in samples]})
        return lavis_says(model, kind, image, which, prompts, generation)

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text by the tokenizer that LAVIS has in the model.

        :raises ModelError: For a model that makes no texts.
        """
        kind = _kind(model)
        if kind == "retrieval":
            raise ModelError(NO_TEXTS)
        return lavis_tokens_of(kind, member(model, f"{kind}_tokenizer"), text)

    def refuses(self, model: nn.Module, ability: type[Any]) -> str | None:
        """Refuse texts of a model for retrieval, which makes none."""
        return NO_TEXTS if ability is Generates and _kind(model) == "retrieval" else None

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say what is image, what is text and what is padding; a text model reads an image's queries, then its text."""
        images = len(batch["image"])
        if tower == "vision":
            encoder = find(model, "visual_encoder.patch_embed") or member(model, "visual_encoder")
            return torch.full((images, 1 + encoder.num_patches), IMAGE, dtype=torch.int8)
        queries = torch.full((images, _queries(model)), IMAGE, dtype=torch.int8)
        if tower == "qformer":
            return _real(model, _whole_texts(model, batch)) if call else queries
        if tower == "decoder":
            return _real(model, batch["text_output"])
        read = _openings(model, batch) if tower == "encoder" else _whole_texts(model, batch)
        return torch.cat([queries, _real(model, read)], 1)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision`` and ``language``, or ``vision``, ``text`` and ``pair``.

        There is none of all in one, because LAVIS tokenises texts in its own forward.
        """
        return list(views_of_lavis(model, _kind(model)))

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Refuse a contrastive loss of one pair, and types that only a GPU mixes."""
        if _kind(context.model) == "retrieval":
            yield from pair_problems(context.recipe)
        blocks, where = context.anatomy.blocks, context.recipe.model
        vision = [block.module for block in blocks if block.tower == "vision" and not _is_clip(block)]
        kinds = sorted({str(weight.dtype) for module in vision for weight in module.parameters() if weight.is_cpu})
        if len(kinds) > 1 and (where.offload or not where.device.startswith("cuda")):
            yield f"the vision tower mixes {' and '.join(kinds)}, as LAVIS does on a GPU only: call model.float()."


def logits_and_labels(
    model: nn.Module, batch: Batch
) -> tuple[Float[Tensor, "batch tokens vocabulary"], Int64[Tensor, "batch tokens"]]:
    """Run LAVIS' own forward, and give what its language model answered.

    :return: The logits, and the label that those of each position are to predict.
    """
    image = _image(model, batch)
    if _kind(model) == "t5":
        texts = {"text_input": _openings(model, batch), "text_output": batch["text_output"]}
        with _watched(member(model, "t5_model", nn.Module)) as seen:
            model({"image": image, **texts})
        return seen["logits"], seen["labels"]
    with _watched(member(model, "opt_model", nn.Module)) as seen:
        model({"image": image, "text_input": _whole_texts(model, batch)})
    labels = seen["labels"].clone()
    queries = _queries(model)
    for row, opening in zip(labels, _openings(model, batch), strict=True):
        if opening:
            row[: queries + len(member(model, "opt_tokenizer")(opening).input_ids)] = IGNORED
    return seen["logits"][:, :-1], labels[:, 1:]


def similarities(model: nn.Module, batch: Batch) -> Float[Tensor, "images texts"]:
    """Give the similarity of each image's best query with each text, over the temperature.

    LAVIS' own forward would need a process group for it.
    """
    image = _image(model, batch)
    with member(model, "maybe_autocast")():
        hidden, _ = member(model, "forward_image")(image)
        read = member(model, "forward_text")(_tokenised(model, _whole_texts(model, batch)).to(image.device))
        images = F.normalize(member(model, "vision_proj")(hidden), dim=-1)
        texts = F.normalize(member(model, "text_proj")(read), dim=-1)
    best = (images.float() @ texts.float().T).amax(1)
    return best / member(model, "temp", Tensor).float()


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Catch the labels that a language model of LAVIS is given and the logits it answers, and have it make no cache."""
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
    """Tell which of LAVIS' classes a model is: ``t5``, ``opt`` or ``retrieval``."""
    return next((name for name in ("t5", "opt") if find(model, f"{name}_model") is not None), "retrieval")


def _queries(model: nn.Module) -> int:
    return member(model, "query_tokens", nn.Parameter).shape[1]


def _is_clip(block: Block) -> bool:
    return any(isinstance(module, nn.MultiheadAttention) for module in block.module.modules())


def _read_by(name: str) -> str:
    return "vision" if name.endswith(("crossattention.self.key", "crossattention.self.value")) else ""


def _image(model: nn.Module, batch: Batch) -> Float[Tensor, "batch channels height width"]:
    """Give a batch's images on the device and in the type of the convolution that cuts them into patches."""
    if member(model, "ln_vision.weight", Tensor).dtype != torch.float32:
        raise ModelError(
            "LAVIS runs its own layer norms in float32, and this model's are of another type: call model.float()."
        )
    cut = find(model, "visual_encoder.patch_embed.proj") or member(model, "visual_encoder.conv1")
    image: Tensor = batch["image"].to(cut.weight)
    return image


def _openings(model: nn.Module, batch: Batch) -> list[str]:
    """Give what the model goes on from: the question, or for a caption the prompt that the model was made with."""
    prompt = str(find(model, "prompt") or "")
    return [(asked or prompt).rstrip() for asked in batch["text_input"]]


def _whole_texts(model: nn.Module, batch: Batch) -> list[str]:
    """Join question and answer, for a model that reads them as one text; a caption is one already."""
    pairs = zip(_openings(model, batch), batch["text_output"], strict=True)
    return [" ".join(filter(None, pair)) for pair in pairs]


def _tokenised(model: nn.Module, texts: Sequence[str]) -> Any:
    """Tokenise texts as the model's own forward does."""
    kind = _kind(model)
    tokenizer = member(model, {"t5": "t5_tokenizer", "opt": "opt_tokenizer", "retrieval": "tokenizer"}[kind])
    tokenizer.padding_side = "right"
    texts = [f"{text}\n" if kind == "opt" else text for text in texts]
    limit = member(model, "max_txt_len", int)
    return tokenizer(texts, padding="longest", truncation=True, max_length=limit, return_tensors="pt")


def _real(model: nn.Module, texts: Sequence[str]) -> Int8[Tensor, "batch tokens"]:
    """Say what of texts is text (1) and what is padding (0)."""
    mask: Tensor = _tokenised(model, texts).attention_mask
    return mask.to(torch.int8)
