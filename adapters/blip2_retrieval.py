"""BLIP-2 that tells which text belongs to which image: a vision transformer, and a Q-Former that reads it and texts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.blip2 import layers_that_see, tokens_that_see, towers_that_see
from ecoflap.adapters.hubs.hugging_face import IMAGE_FILES, load_model, load_processor, save_model, save_surroundings
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import unit_vectors
from ecoflap.adapters.shared.images import patch_convolution, pixels_of
from ecoflap.adapters.shared.losses import info_nce
from ecoflap.adapters.shared.matrices import matrix_outside, part
from ecoflap.adapters.shared.saved_config import say_type
from ecoflap.adapters.shared.texts import texts_of
from ecoflap.adapters.views.blip2 import views_of_blip2_retrieval
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Anatomy, Block, Layer, Source, Tower
from ecoflap.core.recipe.schema import Recipe

KIND = "Blip2ForImageTextRetrieval"
PASSES = 2  # the Q-Former first reads the image through its queries, and then the text, without looking at an image


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["Blip2RetrievalAdapter"]]:
    return {"blip2_retrieval": Blip2RetrievalAdapter}


class Blip2RetrievalAdapter:
    """``Blip2ForImageTextRetrieval``, from a hub id, a folder or memory.

    The loss is the symmetric InfoNCE of the model's contrastive similarities: of each text with the query of an image
    that is nearest to it, as cosines. The model has no temperature. Its matching head takes no part in that, so it is
    no matrix that can be pruned.
    """

    def __init__(self) -> None:
        self.processor: Any = None

    def matches(self, source: Source) -> bool:
        """By ``model_type`` and ``architectures``, and by its structure for a model in memory."""
        config, model = source.config, source.model
        if model is not None:
            return config.get("model_type") in ("blip-2", None) and _is_laid_out(model)
        return config.get("model_type") == "blip-2" and KIND in (config.get("architectures") or ())

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """The model in eval mode, and its processor; ``device="meta"`` reads neither weights nor processor.

        In float16 transformers keeps the Q-Former in float32, and so does this.
        """
        if source.model is not None:
            return source.model.eval()
        model = load_model(KIND, source, dtype, device)
        if device != "meta":
            self.processor = load_processor("AutoProcessor", source, IMAGE_FILES)
        return model

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        outside = [Tower.of_matrix(model, name) for name in ("vision_projection", "text_projection")]
        return [*towers_that_see(model, PASSES), *outside]

    def layers(self, block: Block) -> Sequence[Layer]:
        """A Q-Former block's cross-attention and its second feed-forward run in the first pass, its first one in the
        other.
        """
        if block.tower == "vision_projection":
            return matrix_outside(block, reads="qformer", layout="batch token")
        if block.tower == "text_projection":
            return matrix_outside(block)
        return layers_that_see(block)

    def max_length(self, model: nn.Module) -> int | None:
        length: int = part(model, "config").qformer_config.max_position_embeddings
        return length

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """Images, and their texts padded on the right."""
        return {"pixel_values": pixels_of(self.processor, samples), **self._texts(samples)}

    def _texts(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        texts = texts_of(self.processor, samples)
        if not texts:
            raise DataError(
                "this model compares images with texts, and there are none: calibrate it on images with their texts, "
                "and with a processor that has a tokenizer."
            )
        return texts

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Symmetric InfoNCE of the batch, each of whose pairs is compared with all others."""
        device = part(model, "query_tokens").device
        inputs = {name: batch[name].to(device) for name in ("pixel_values", "input_ids", "attention_mask")}
        with _texts_alone(part(model, "config")):
            return info_nce(model(**inputs, use_image_text_matching_head=False).logits_per_image)

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images queries features"]:
        """Each query's vector, of length one."""
        seen = self._seen(model, samples)
        queries = part(model, "query_tokens").expand(len(seen), -1, -1)
        read = part(model, "qformer")(query_embeds=queries, **_encoded(seen)).last_hidden_state
        project = part(model, "vision_projection")
        return unit_vectors(project(read.to(project.weight.dtype)))

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """As vectors of length one."""
        ids, mask = self._ids(model, texts)
        words = part(model, "embeddings")(input_ids=ids)
        read = part(model, "qformer")(query_embeds=words, query_length=0, attention_mask=mask).last_hidden_state
        project = part(model, "text_projection")
        return unit_vectors(project(read[:, 0].to(project.weight.dtype)))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images queries features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """The cosine of a text with the query that is nearest to it."""
        return reduce(torch.maximum, (query @ texts.T for query in images.unbind(1)))

    def match(self, model: nn.Module, sample: Sample, texts: Sequence[str]) -> Float[Tensor, " texts"]:
        """How well each text fits one image by the matching head, which looks at both together: its logit for "yes".

        It is the mean over queries; the head's other output is that for "no".
        """
        ids, mask = self._ids(model, texts)
        seen = self._seen(model, [sample]).expand(len(ids), -1, -1)
        queries = part(model, "query_tokens").expand(len(ids), -1, -1)
        count = queries.shape[1]
        words = part(model, "embeddings")(input_ids=ids, query_embeds=queries)
        both = torch.cat([mask.new_ones(len(ids), count), mask], 1)
        read = part(model, "qformer")(
            query_embeds=words, query_length=count, attention_mask=both, **_encoded(seen)
        ).last_hidden_state
        head = part(model, "itm_head")
        logits: Tensor = head(read[:, :count].to(head.weight.dtype)).float()
        return logits.mean(1)[:, 1]

    def _seen(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images tokens hidden"]:
        """What the vision tower makes of images."""
        patches = patch_convolution(part(model, "vision_model.embeddings")).weight
        pixels = pixels_of(self.processor, samples).to(patches)
        seen: Tensor = part(model, "vision_model")(pixel_values=pixels).last_hidden_state
        return seen

    def _ids(
        self, model: nn.Module, texts: Sequence[str]
    ) -> tuple[Int64[Tensor, "texts tokens"], Int64[Tensor, "texts tokens"]]:
        device = part(model, "query_tokens").device
        batch = self._texts([Sample(text=text) for text in texts])
        return batch["input_ids"].to(device), batch["attention_mask"].to(device)

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """The Q-Former's first call is of its queries, the second of the text."""
        if tower == "qformer" and call:
            mask: Tensor = batch["attention_mask"]
            return mask.to(torch.int8)
        return tokens_that_see(model, batch, tower)

    def save(self, model: nn.Module, folder: Path) -> None:
        """As transformers writes it, with the processor beside it."""
        save_model(model, self.processor, folder)
        say_type(folder, part(model, "vision_projection.weight").dtype)

    def save_surroundings(self, model: nn.Module, folder: Path) -> None:
        """The same without the weights."""
        save_surroundings(model, self.processor, folder)
        say_type(folder, part(model, "vision_projection.weight").dtype)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        return list(views_of_blip2_retrieval(model))

    def problems(self, anatomy: Anatomy, recipe: Recipe) -> Iterator[str]:
        """A calibration with a batch of one pair."""
        yield from pair_problems(recipe)


def _encoded(seen: Float[Tensor, "images tokens hidden"]) -> dict[str, Tensor]:
    """As the Q-Former reads images, all of whose tokens are real."""
    return {
        "encoder_hidden_states": seen,
        "encoder_attention_mask": torch.ones(seen.shape[:2], dtype=torch.int64, device=seen.device),
    }


@contextmanager
def _texts_alone(config: Any) -> Iterator[None]:
    """For a while texts are read whole.

    Their processor begins each with the places of its image. Some versions of transformers drop as many tokens again
    where there is an image token, and others read them.
    """
    token, config.image_token_index = config.image_token_index, None
    try:
        yield
    finally:
        config.image_token_index = token


def _is_laid_out(model: nn.Module) -> bool:
    stacks = (part(model, name) for name in ("vision_model.encoder.layers", "qformer.encoder.layer"))
    heads = (part(model, name) for name in ("vision_projection", "text_projection"))
    return all(isinstance(stack, nn.ModuleList) for stack in stacks) and all(isinstance(h, nn.Linear) for h in heads)
