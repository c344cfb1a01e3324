"""Adapt the BLIP-2 that compares images with texts: a vision transformer, and a Q-Former that reads it and texts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.blip2_vision import has_both, layers_that_see, tokens_that_see, towers_that_see
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import unit_vectors
from ecoflap.adapters.shared.images import cast_for_vision, pixels_of
from ecoflap.adapters.shared.losses import info_nce
from ecoflap.adapters.shared.matrices import matrix_outside
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.saved_config import say_type
from ecoflap.adapters.shared.texts import check_tokens, text_tokens, texts_of
from ecoflap.adapters.views.blip2 import views_of_blip2_retrieval
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Block, Layer, Tower

KIND = "Blip2ForImageTextRetrieval"
PASSES = 2  # the Q-Former first reads the image through its queries, and then the text, without looking at an image
PROJECTIONS = ("vision_projection", "text_projection")


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["Blip2RetrievalAdapter"]]:
    return {"blip2_retrieval": Blip2RetrievalAdapter}


class Blip2RetrievalAdapter(TransformersAdapter):
    """Adapts ``Blip2ForImageTextRetrieval``, from a hub id, a folder or memory.

    The loss is the symmetric InfoNCE of the model's contrastive similarities: of each text with the query of an image
    that is nearest to it, as cosines. The model has no temperature. Its matching head takes no part in that, so it is
    no matrix that can be pruned. In float16 transformers keeps the Q-Former in float32, and so does this.
    """

    _kind, _processor_kind = KIND, "AutoProcessor"
    _has_doubles = True

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give the vision transformer, the Q-Former, which runs twice, and what projects images and texts."""
        return [*towers_that_see(model, PASSES), *(Tower.of_matrix(model, name) for name in PROJECTIONS)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block.

        A Q-Former block's cross-attention and its second feed-forward run in the first pass, its first one in the
        other.
        """
        if block.tower == "vision_projection":
            return matrix_outside(block, reads="qformer", layout="batch token")
        if block.tower == "text_projection":
            return matrix_outside(block)
        return layers_that_see(block)

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many positions the Q-Former has for a text."""
        return member(model, "config.qformer_config.max_position_embeddings", int)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images, and their texts padded on the right."""
        return {"pixel_values": pixels_of(self.processor, samples), **self._texts(model, samples)}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute symmetric InfoNCE over the batch, each of whose pairs is compared with all others."""
        device = _query_tokens(model).device
        inputs = {name: batch[name].to(device) for name in ("pixel_values", "input_ids", "attention_mask")}
        with _texts_alone(member(model, "config")):
            return info_nce(model(**inputs, use_image_text_matching_head=False).logits_per_image)

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images queries features"]:
        """Give the vectors of each image's queries, of length one."""
        seen = self._seen(model, samples)
        queries = _query_tokens(model).expand(len(seen), -1, -1)
        read = member(model, "qformer")(query_embeds=queries, **_encoded(seen)).last_hidden_state
        project = member(model, "vision_projection", nn.Linear)
        return unit_vectors(project(read.to(project.weight.dtype)))

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Give each text's vector, of length one."""
        ids, mask = self._ids(model, texts)
        words = member(model, "embeddings")(input_ids=ids)
        read = member(model, "qformer")(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state
        project = member(model, "text_projection", nn.Linear)
        return unit_vectors(project(read[:, 0].to(project.weight.dtype)))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images queries features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """Give the cosine of each text with that query of each image that is nearest to it."""
        return reduce(torch.maximum, (query @ texts.T for query in images.unbind(1)))

    def match(self, model: nn.Module, sample: Sample, texts: Sequence[str]) -> Float[Tensor, " texts"]:
        """Say how well each text fits one image by the matching head, which looks at both together.

        It is the head's logit for "yes", as a mean over queries; its other output is that for "no".
        """
        ids, mask = self._ids(model, texts)
        seen = self._seen(model, [sample]).expand(len(ids), -1, -1)
        queries = _query_tokens(model).expand(len(ids), -1, -1)
        count = queries.shape[1]
        words = member(model, "embeddings")(input_ids=ids, query_embeds=queries)
        both = torch.cat([mask.new_ones(len(ids), count), mask], 1)
        read = member(model, "qformer")(
            query_embeds=words, query_length=count, attention_mask=both, **_encoded(seen)
        ).last_hidden_state
        head = member(model, "itm_head", nn.Linear)
        logits: Tensor = head(read[:, :count].to(head.weight.dtype)).float()
        return logits.mean(1)[:, 1]

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all is of the image, but for the Q-Former's second call, which is of the text."""
        return text_tokens(batch) if tower == "qformer" and call else tokens_that_see(model, batch, tower)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``text``, and ``pair``, which compares them."""
        return list(views_of_blip2_retrieval(model))

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Refuse batches of one pair."""
        yield from pair_problems(context.recipe)

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type == "blip-2" and name == KIND

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        return has_both(model) and all(find(model, name, nn.Linear) is not None for name in PROJECTIONS)

    def _correct(self, model: nn.Module, folder: Path) -> None:
        say_type(folder, member(model, "vision_projection", nn.Linear).weight.dtype)

    def _seen(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images tokens hidden"]:
        """Give what the vision transformer makes of images."""
        pixels = cast_for_vision(model, pixels_of(self.processor, samples))
        seen: Tensor = member(model, "vision_model")(pixel_values=pixels).last_hidden_state
        return seen

    def _ids(
        self, model: nn.Module, texts: Sequence[str]
    ) -> tuple[Int64[Tensor, "texts tokens"], Int64[Tensor, "texts tokens"]]:
        """Give the tokens of texts and their mask, where the model is."""
        device = _query_tokens(model).device
        batch = self._texts(model, [Sample(text=text) for text in texts])
        return batch["input_ids"].to(device), batch["attention_mask"].to(device)

    def _texts(self, model: nn.Module, samples: Sequence[Sample]) -> dict[str, Tensor]:
        texts = texts_of(self.processor, samples)
        if not texts:
            raise DataError(
                "this model compares images with texts, and there are none: calibrate it on images with their texts, "
                "and with a processor that has a tokenizer."
            )
        count = member(model, "embeddings.word_embeddings", nn.Embedding).num_embeddings
        check_tokens(model, texts["input_ids"], count, self.processor.tokenizer)
        return texts


def _query_tokens(model: nn.Module) -> nn.Parameter:
    return member(model, "query_tokens", nn.Parameter)


def _encoded(seen: Float[Tensor, "images tokens hidden"]) -> dict[str, Tensor]:
    """Give what the Q-Former is given of images, all of whose tokens are real."""
    return {
        "encoder_hidden_states": seen,
        "encoder_attention_mask": torch.ones(seen.shape[:2], dtype=torch.int64, device=seen.device),
    }


@contextmanager
def _texts_alone(config: Any) -> Iterator[None]:
    """For a while, have the model read texts whole.

    The family's own processor begins each text with the places of its image, and a text here has none. Where the
    configuration names an image token, some versions of transformers drop as many tokens from the beginning of a text.
    """
    token, config.image_token_index = config.image_token_index, None
    try:
        yield
    finally:
        config.image_token_index = token
