"""Adapt the BLIP that compares images with texts: a vision transformer, and a text encoder that can read it, too."""

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.blip.parts import ENCODER, Words, has_towers, layers_of, seen, seen_once, vision_tower
from ecoflap.adapters.hubs.transformers_adapter import TransformersAdapter
from ecoflap.adapters.shared.contrastive import pair_problems
from ecoflap.adapters.shared.embeddings import unit_vectors
from ecoflap.adapters.shared.images import image_tokens, pixels_of
from ecoflap.adapters.shared.losses import info_nce
from ecoflap.adapters.shared.matrices import matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import padded_rows, text_tokens
from ecoflap.adapters.views.blip import views_of_blip_retrieval
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Block, Layer, Tower

KIND = "BlipForImageTextRetrieval"
PASSES = 2  # the encoder reads all texts alone, and then pairs of an image and a text
PROJECTIONS, MATCH = ("vision_proj", "text_proj"), "itm_head"
PAIRED = "vision in pairs"
"""What cross-attention reads: the vision tower's tokens, once in a true pair and once in a false one."""


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["BlipRetrievalAdapter"]]:
    return {"blip_retrieval": BlipRetrievalAdapter}


class BlipRetrievalAdapter(TransformersAdapter):
    """Adapts ``BlipForImageTextRetrieval``, from a hub id, a folder or memory.

    The loss is the sum of BLIP's two for retrieval. *Contrast*: the symmetric InfoNCE of the cosines of all images and
    texts in a batch; the class has no temperature. *Match*: the cross entropy of the matching head's "no" and "yes" on
    true and false pairs, where a third of the weight is with the true ones, as in BLIP. It draws false pairs by their
    similarity, which would make another function of the weights at every step; here the text of a false pair is that of
    the sample which follows. Statistics are of true pairs alone.

    Li et al., BLIP, ICML 2022, https://arxiv.org/abs/2201.12086.
    """

    _kind, _processor_kind = KIND, "AutoProcessor"
    _has_doubles = True

    def towers(self, model: nn.Module) -> Sequence[Tower]:
        """Give vision and its projection, then text, which runs twice, with its projection and the matching head."""
        vision, text = (Tower.of_matrix(model, name) for name in PROJECTIONS)
        encoder = tower_at(model, ENCODER, "text", calls=PASSES)
        return [vision_tower(model), encoder, vision, text, Tower.of_matrix(model, MATCH)]

    def layers(self, block: Block) -> Sequence[Layer]:
        """Give the layers of a block; cross-attention reads what :meth:`tokens` says of the images in pairs."""
        if block.tower in PROJECTIONS:
            return matrix_outside(block)
        return matrix_outside(block, layout="batch token") if block.tower == MATCH else layers_of(block, reads=PAIRED)

    def max_length(self, model: nn.Module) -> int | None:
        """Give how many tokens a text may have, with the one that begins it and the one that ends it."""
        return Words.of(model).longest

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images, and their texts padded on the right."""
        silent = [number for number, sample in enumerate(samples) if sample.text is None]
        if silent:
            raise DataError(
                f"this model compares images with texts: sample {silent[0]} of a batch has no text. Calibrate it on "
                f"images with their texts, such as image_text."
            )
        pixels = pixels_of(self.processor, samples)
        input_ids, mask = self._ids(model, [str(sample.text) for sample in samples])
        return {"pixel_values": pixels, "input_ids": input_ids, "attention_mask": mask}

    def loss(self, model: nn.Module, batch: Batch) -> Float[Tensor, ""]:
        """Compute contrast plus match over the batch.

        :raises DataError: For one pair alone, of which no false one can be made.
        """
        images = seen(model, batch["pixel_values"])
        ids, mask = (batch[name].to(images.device) for name in ("input_ids", "attention_mask"))
        texts, pairs = _read(model, ids, mask), _read(model, *_with_false(ids, mask, images))
        cosines = _image_vectors(model, images) @ _text_vectors(model, texts).T
        matched = _match_loss(member(model, MATCH)(pairs), len(images))
        return info_nce(cosines) + matched

    def embed_images(self, model: nn.Module, samples: Sequence[Sample]) -> Float[Tensor, "images features"]:
        """Give each image's vector, of length one."""
        return _image_vectors(model, seen_once(model, self.processor, samples))

    def embed_texts(self, model: nn.Module, texts: Sequence[str]) -> Float[Tensor, "texts features"]:
        """Give each text's vector, of length one."""
        device = member(model, "text_proj.weight", nn.Parameter).device
        ids, mask = self._ids(model, texts)
        return _text_vectors(model, _read(model, ids.to(device), mask.to(device)))

    def similarity(
        self, model: nn.Module, images: Float[Tensor, "images features"], texts: Float[Tensor, "texts features"]
    ) -> Float[Tensor, "images texts"]:
        """Give the cosines."""
        return images @ texts.T

    def match(self, model: nn.Module, sample: Sample, texts: Sequence[str]) -> Float[Tensor, " texts"]:
        """Say how well each text fits one image: the matching head's logit for "yes"."""
        images = seen(model, pixels_of(self.processor, [sample]))
        ids, mask = (tensor.to(images.device) for tensor in self._ids(model, texts))
        read = _read(model, ids, mask, images.expand(len(texts), -1, -1))
        logits: Tensor = member(model, MATCH)(read).float()
        return logits[:, 1]

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all of an image is real, what of a text is padding, and that no part of a false pair counts.

        :param tower: The images in pairs, and the matching head, which reads one vector of each pair, have names too.
        """
        if tower == "text":
            return _only_true(text_tokens(batch)) if call else text_tokens(batch)
        if tower == MATCH:
            return _only_true(torch.ones(len(batch["input_ids"]), 1, dtype=torch.int8))
        image = image_tokens(member(model, "vision_model.embeddings"), batch["pixel_values"])
        return _only_true(image) if tower == PAIRED else image

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``text``, ``pair``, which compares them, and ``match``, which looks at both together."""
        return list(views_of_blip_retrieval(model))

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Refuse batches of one pair."""
        yield from pair_problems(context.recipe)

    @staticmethod
    def _is_read(model_type: str, name: str | None) -> bool:
        return model_type == "blip" and name == KIND

    @staticmethod
    def _is_laid_out(model: nn.Module) -> bool:
        heads = all(find(model, name, nn.Linear) is not None for name in (*PROJECTIONS, MATCH))
        return heads and has_towers(model, encoder=True, decoder=False)

    def _ids(
        self, model: nn.Module, texts: Sequence[str]
    ) -> tuple[Int64[Tensor, "texts tokens"], Int64[Tensor, "texts tokens"]]:
        """Give the tokens of texts and their mask."""
        words = Words.of(model)
        return padded_rows([words.read(self.processor, text) for text in texts], words.pad)


def _image_vectors(
    model: nn.Module, images: Float[Tensor, "images patches hidden"]
) -> Float[Tensor, "images features"]:
    return unit_vectors(member(model, "vision_proj")(images[:, 0]))


def _text_vectors(model: nn.Module, texts: Float[Tensor, "texts width"]) -> Float[Tensor, "texts features"]:
    return unit_vectors(member(model, "text_proj")(texts))


def _read(
    model: nn.Module,
    ids: Int64[Tensor, "texts tokens"],
    mask: Int64[Tensor, "texts tokens"],
    images: Float[Tensor, "texts patches hidden"] | None = None,
) -> Float[Tensor, "texts width"]:
    """Give what the encoder makes of the first token of each text, alone or with an image."""
    read = member(model, "text_encoder")(input_ids=ids, attention_mask=mask, encoder_hidden_states=images)
    first: Tensor = read.last_hidden_state[:, 0]
    return first


def _with_false(*tensors: Tensor) -> Iterator[Tensor]:
    """Yield token ids, mask and images of true pairs, then of the same images each with the text that follows its own.

    Of one pair alone no false one is made.
    """
    ids, mask, images = tensors
    for tensor in (ids, mask):
        yield torch.cat([tensor, tensor.roll(-1, 0)]) if len(images) > 1 else tensor
    yield torch.cat([images, images]) if len(images) > 1 else images


def _match_loss(logits: Float[Tensor, "pairs 2"], true: int) -> Float[Tensor, ""]:
    """Compute the cross entropy of pairs, of which the first so many are true; false ones weigh twice as much."""
    is_true = torch.arange(len(logits), device=logits.device) < true
    terms = F.cross_entropy(logits.float(), is_true.long(), reduction="none").double()
    weights = torch.where(is_true, 1.0, 2.0).double()
    return (terms * weights).sum() / weights.sum()


def _only_true(kinds: Int8[Tensor, "batch tokens"]) -> Int8[Tensor, "pairs tokens"]:
    """Say of true pairs what they are, and of false ones that they do not count."""
    return torch.cat([kinds, torch.zeros_like(kinds)]) if len(kinds) > 1 else kinds
