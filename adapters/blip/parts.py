"""Hold what the three BLIP models share: towers, what a text tower reads of an image, and texts as numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

from jaxtyping import Float, Int64
from torch import Tensor, nn

from ecoflap.adapters.shared.generation import distinct_images
from ecoflap.adapters.shared.images import cast_for_vision, pixels_of
from ecoflap.adapters.shared.losses import mean_nll
from ecoflap.adapters.shared.matrices import matrices, matrix_outside, tower_at
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.view import square
from ecoflap.core.contracts.records import Sample
from ecoflap.core.errors import DataError
from ecoflap.core.model.anatomy import Block, Layer, Tower

VISION, ENCODER, DECODER = (
    "vision_model.encoder.layers",
    "text_encoder.encoder.layer",
    "text_decoder.bert.encoder.layer",
)
TRANSFORM, HEAD = "text_decoder.cls.predictions.transform.dense", "text_decoder.cls.predictions.decoder"
ACROSS = ("crossattention.self.key", "crossattention.self.value")


@dataclass(frozen=True)
class Words:
    """Says how a model reads and says texts, by the configuration of its text towers.

    :param begin: The token that a decoder begins with, in the place of the one that its tokenizer puts there.
    :param end: The token that ends a text.
    :param pad: The token that pads one.
    :param count: How many tokens there are.
    :param longest: How many tokens a text may have.
    """

    begin: int
    end: int
    pad: int
    count: int
    longest: int

    @classmethod
    def of(cls, model: nn.Module) -> "Words":
        """Read a model's configuration."""
        names = ("bos_token_id", "sep_token_id", "pad_token_id", "vocab_size", "max_position_embeddings")
        return cls(*(member(model, f"config.text_config.{name}", int) for name in names))

    def read(self, processor: Any, text: str) -> list[int]:
        """Give a text's tokens, with those that the tokenizer puts around it.

        :raises DataError: Where there is no tokenizer, or one of another model, or the text is too long.
        """
        ids = list(tokenizer_of(processor)(text)["input_ids"])
        if ids[-1:] != [self.end] or max(ids) >= self.count:
            raise DataError(
                f"the tokenizer does not fit the model: it makes {ids[:6]}… of {text[:40]!r}, and by the model's "
                f"configuration a text ends with {self.end} (sep_token_id) and tokens are below {self.count}. Put the "
                f"tokenizer that belongs to the model beside its config.json."
            )
        if len(ids) > self.longest:
            raise DataError(f"a text has {len(ids)} tokens, and the model reads {self.longest}: shorten {text[:40]!r}…")
        return ids

    def said(self, processor: Any, text: str) -> list[int]:
        """Give a text's tokens as the decoder is to say them."""
        return [self.begin, *self.read(processor, text)[1:]]


def tokenizer_of(processor: Any) -> Any:
    """Give a processor's tokenizer.

    :raises DataError: Where there is none.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        raise DataError(
            "this model needs a tokenizer beside its image processor: put both beside its config.json, or give "
            "ecoflap.run a BlipProcessor."
        )
    return tokenizer


def vision_tower(model: nn.Module) -> Tower:
    """Give the vision transformer."""
    return tower_at(model, VISION, "vision")


def decoder_towers(model: nn.Module) -> list[Tower]:
    """Give the decoder, and the two matrices that make logits of what it gives."""
    outside = (Tower.of_matrix(model, name) for name in (TRANSFORM, HEAD))
    return [tower_at(model, DECODER, "decoder"), *outside]


def layers_of(block: Block, reads: str) -> list[Layer]:
    """Give the layers of a block of any tower, or the one of a matrix after the decoder.

    :param reads: What the cross-attention of this block reads.
    """
    if block.name in (TRANSFORM, HEAD):
        return matrix_outside(block, reads="decoder", layout="batch token")
    return list(matrices(block, reads=lambda name: reads if name in ACROSS else ""))


def has_towers(model: nn.Module, *, encoder: bool, decoder: bool) -> bool:
    """Say whether a model has a vision tower, and of the text towers just these."""
    there = [find(model, path, nn.ModuleList) is not None for path in (VISION, ENCODER, DECODER)]
    return there == [True, encoder, decoder]


def seen(
    model: nn.Module, pixel_values: Float[Tensor, "images channels height width"]
) -> Float[Tensor, "images patches hidden"]:
    """Give what the vision tower makes of images.

    :raises DataError: Where they are of another size than its positions are for. Smaller ones it would take without a
        word, and put their patches where others belong.
    """
    found, wanted = tuple(pixel_values.shape[-2:]), square(member(model, "vision_model.embeddings.image_size"))
    if found != wanted:
        raise DataError(
            f"the model takes images of {wanted[0]}×{wanted[1]}, and its processor makes {found[0]}×{found[1]}: set "
            f"size in preprocessor_config.json."
        )
    hidden: Tensor = member(model, "vision_model")(cast_for_vision(model, pixel_values)).last_hidden_state
    return hidden


def seen_once(model: nn.Module, processor: Any, samples: Sequence[Sample]) -> Float[Tensor, "images patches hidden"]:
    """Give what the vision tower makes of each sample's image; one that several samples share is seen once."""
    first, which = distinct_images(samples)
    made = seen(model, pixels_of(processor, first))
    return made[which.to(made.device)]


def loss_of_said(
    decoder: nn.Module,
    said: tuple[Int64[Tensor, "batch said"], Int64[Tensor, "batch said"], Int64[Tensor, "batch said"]],
    read: Float[Tensor, "batch read hidden"],
    mask: Int64[Tensor, "batch read"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the cross entropy of each token that is to be said, smoothed as the model's class has it.

    :param said: Tokens, their mask, and the tokens as labels. What ends a text is said and never read.
    :param read: What the cross-attention reads.
    :param mask: 1 where that is no padding.
    """
    ids, real, labels = (tensor.to(read.device) for tensor in said)
    logits = decoder(
        input_ids=ids[:, :-1],
        attention_mask=real[:, :-1],
        encoder_hidden_states=read,
        encoder_attention_mask=mask,
        use_cache=False,
    ).logits
    return mean_nll(logits, labels[:, 1:], float(member(decoder, "label_smoothing")))


def mask_across(decoder: nn.Module) -> None:
    """Have a decoder's cross-attention leave out the padding of what it reads, as it is asked to.

    Newer transformers (5.24) hand the mask to each block and not to its attention, so that an answer would depend on
    what else is in the batch. A hook stays with the model, because blocks run again in a backward. Of a question
    without padding, answers are those of the model as it was.
    """
    for module in decoder.modules():
        attention, across = find(module, "crossattention"), find(module, "crossattention.self", nn.Module)
        if across is None or "encoder_attention_mask" in signature(type(attention).forward).parameters:
            continue
        if _mask_read not in across._forward_pre_hooks.values():
            across.register_forward_pre_hook(_mask_read, with_kwargs=True)


def _mask_read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Give cross-attention the mask of its block as that of what it reads."""
    return args, {"encoder_attention_mask": kwargs.get("attention_mask"), **kwargs}
