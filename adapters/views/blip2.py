"""Make views of BLIP-2: what its text model reads of an image, that model, and both; of transformers and of LAVIS."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.views.images import IMAGE_AXES, PIXELS, images_of, images_of_tower, views_of_pair
from ecoflap.adapters.views.texts import view_from_embeddings
from ecoflap.adapters.views.view import BATCH, SAID, TEXT_AXES, Example, view
from ecoflap.core.contracts.records import View

BOTH_AXES = {
    PIXELS: {0: BATCH}, "input_ids": TEXT_AXES, "attention_mask": TEXT_AXES, "decoder_input_ids": {0: BATCH, 1: SAID},
}  # fmt: skip


class Queries(nn.Module):
    """Projects what the queries of a Q-Former hold of an image.

    :param is_normalised: Whether each of them is then scaled to length 1.
    """

    def __init__(
        self, sees: nn.Module, qformer: nn.Module, queries: Tensor, projection: nn.Module, is_normalised: bool
    ) -> None:
        super().__init__()
        self.vision_model, self.qformer, self.query_tokens = sees, qformer, queries
        self.projection, self.is_normalised = projection, is_normalised

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.embedded(self.seen(pixel_values)),)

    def seen(self, pixel_values: Tensor) -> Tensor:
        """Give what the vision tower makes of images."""
        hidden: Tensor = self.vision_model(pixel_values).last_hidden_state
        return hidden

    def embedded(self, image: Tensor) -> Tensor:
        """Have the queries read what the vision tower made, and project them."""
        read: Tensor = self.qformer(
            query_embeds=self.query_tokens.expand(image.shape[0], -1, -1),
            encoder_hidden_states=image,
            encoder_attention_mask=torch.ones(image.shape[:-1], dtype=torch.int64, device=image.device),
            return_dict=True,
        ).last_hidden_state
        # the Q-Former of a model in 16 bits is in float32
        embedded: Tensor = self.projection(read.to(image.dtype))
        return F.normalize(embedded, dim=-1) if self.is_normalised else embedded


class LavisQueries(Queries):
    """Does the same with LAVIS' vision tower, whose last norm is outside it."""

    def __init__(self, model: nn.Module, projection: nn.Module, is_normalised: bool) -> None:
        sees, qformer = (member(model, name, nn.Module) for name in ("visual_encoder", "Qformer.bert"))
        super().__init__(sees, qformer, member(model, "query_tokens", Tensor), projection, is_normalised)
        self.norm = member(model, "ln_vision", nn.Module)

    def seen(self, pixel_values: Tensor) -> Tensor:
        """Give what the vision tower and its norm make of images."""
        hidden: Tensor = self.norm(self.vision_model(pixel_values))
        return hidden


class QueryTexts(nn.Module):
    """Projects what a Q-Former reads off a text without an image, and scales it to length 1.

    :param embeddings: What embeds the text; None where the Q-Former does so itself, as LAVIS' does.
    """

    def __init__(self, embeddings: nn.Module | None, qformer: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.embeddings, self.qformer, self.projection = embeddings, qformer, projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        if self.embeddings is None:
            made = self.qformer(input_ids, attention_mask=attention_mask, return_dict=True)
        else:
            embedded = self.embeddings(input_ids=input_ids)
            made = self.qformer(query_embeds=embedded, query_length=0, attention_mask=attention_mask, return_dict=True)
        first = made.last_hidden_state[:, 0].to(self.projection.weight.dtype)
        return (F.normalize(self.projection(first), dim=-1),)


class BestQueryPair(nn.Module):
    """Compares every image with every text: their similarity is that of the query which is nearest to the text.

    :param temperature: What similarities are divided by; None for a model without one.
    """

    def __init__(self, vision: nn.Module, text: nn.Module, temperature: Tensor | None) -> None:
        super().__init__()
        self.vision, self.text, self.temperature = vision, text, temperature

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        (images,), (texts,) = self.vision(pixel_values), self.text(input_ids, attention_mask)
        similarities = (images @ texts.T).amax(1)
        if self.temperature is not None:
            similarities = similarities / self.temperature
        return similarities, similarities.T, texts, images


class Seeing(nn.Module):
    """Gives what the text model says next of an image and a text."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        read = {"input_ids": input_ids, "attention_mask": attention_mask}
        return (self.model(pixel_values=pixel_values, **read, use_cache=False).logits,)


class SeeingAndSaying(nn.Module):
    """Gives what a text model with an encoder and a decoder says next of an image, a text and what it said so far."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> tuple[Tensor]:
        read = {"input_ids": input_ids, "attention_mask": attention_mask, "decoder_input_ids": decoder_input_ids}
        return (self.model(pixel_values=pixel_values, **read, use_cache=False).logits,)


def views_of_blip2(model: nn.Module, image: list[int], says: bool) -> Iterator[View]:
    """Yield ``vision``, what the text model reads of an image; ``language``, that model; and ``all`` in one graph.

    :param image: The tokens that stand for an image in a text.
    :param says: Whether the text model has a decoder that is given what it said so far.
    """
    seen, text = images_of_tower(model), member(model, "language_model")
    vision = _queries(model, member(model, "language_projection", nn.Module), is_normalised=False)
    count = len(text.get_input_embeddings().weight)

    def both(example: Example) -> dict[str, Tensor]:
        words = example.ids(count, example.batch, example.length, without=image[:1])
        ids = torch.cat([torch.tensor(image).expand(example.batch, -1), words], 1)
        inputs = {**seen(example), "input_ids": ids, "attention_mask": example.mask(*ids.shape)}
        if says:
            inputs["decoder_input_ids"] = example.ids(count, example.batch, example.said, without=image[:1])
        return inputs

    yield view("vision", vision, seen, ("image_embeds",), IMAGE_AXES)
    yield view_from_embeddings(text, says)
    yield view("all", SeeingAndSaying(model) if says else Seeing(model), both, ("logits",), BOTH_AXES)


def views_of_blip2_retrieval(model: nn.Module) -> Iterator[View]:
    """Yield ``vision``, each query's vector of an image; ``text``, that of a text read alone; and ``pair``.

    Vectors are of length 1. A text is without the places of an image that a processor of this model puts before it.
    """
    vision = _queries(model, member(model, "vision_projection", nn.Module), is_normalised=True)
    text = QueryTexts(*(member(model, name, nn.Module) for name in ("embeddings", "qformer", "text_projection")))
    count = len(member(model, "embeddings.word_embeddings.weight"))
    yield from views_of_pair(images_of_tower(model), _texts(count), (vision, text, BestQueryPair(vision, text, None)))


def views_of_lavis(model: nn.Module, kind: str) -> Iterator[View]:
    """Yield the views of LAVIS' models, which are those of the same models of transformers without ``all``.

    LAVIS' own forward takes texts, not tokens.

    :param kind: ``t5``, ``opt`` or ``retrieval``.
    """
    encoder = member(model, "visual_encoder", nn.Module)
    size = find(encoder, "image_size") or member(encoder, "input_resolution")
    images = images_of(encoder, size)
    if kind != "retrieval":
        vision = LavisQueries(model, member(model, f"{kind}_proj", nn.Module), is_normalised=False)
        yield view("vision", vision, images, ("image_embeds",), IMAGE_AXES)
        yield view_from_embeddings(member(model, f"{kind}_model", nn.Module), kind == "t5")
        return
    vision = LavisQueries(model, member(model, "vision_proj", nn.Module), is_normalised=True)
    text = QueryTexts(None, member(model, "Qformer.bert", nn.Module), member(model, "text_proj", nn.Module))
    count = len(member(model, "Qformer.bert.embeddings.word_embeddings.weight"))
    pair = BestQueryPair(vision, text, member(model, "temp", Tensor))
    yield from views_of_pair(images, _texts(count), (vision, text, pair))


def _queries(model: nn.Module, projection: nn.Module, is_normalised: bool) -> Queries:
    sees, qformer = (member(model, name, nn.Module) for name in ("vision_model", "qformer"))
    return Queries(sees, qformer, member(model, "query_tokens", Tensor), projection, is_normalised)


def _texts(count: int) -> Callable[[Example], dict[str, Tensor]]:
    def made(example: Example) -> dict[str, Tensor]:
        mask = example.mask(example.texts, example.length)
        return {"input_ids": example.ids(count, *mask.shape), "attention_mask": mask}

    return made
