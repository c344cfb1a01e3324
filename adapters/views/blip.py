"""Make views of BLIP: what its vision tower sees, the text towers that read it, and the whole in one graph."""

from collections.abc import Callable, Iterator
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ecoflap.adapters.shared.members import member
from ecoflap.adapters.views.images import IMAGE_AXES, images_of, images_of_tower, views_of_pair
from ecoflap.adapters.views.view import BATCH, SAID, SEQUENCE, TEXT_AXES, Example, square, view, without
from ecoflap.core.contracts.records import View

READ = {"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES}
SEEN = {"encoder_hidden_states": {0: BATCH}}
PAIR, PAIR_SEEN = ("image0", "image1"), ("image0_embeds", "image1_embeds")
"""Two images as LAVIS calls them, and what its vision tower made of them."""


class Seen(nn.Module):
    """Gives a vector for each patch of an image and one before them, which text towers read."""

    def __init__(self, sees: nn.Module) -> None:
        super().__init__()
        self.vision_model = sees

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (self.vision_model(pixel_values).last_hidden_state,)


class SaidOfImage(nn.Module):
    """Gives what a decoder says next of an image that was seen and what it said so far."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.text_decoder = decoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        read = {"input_ids": input_ids, "attention_mask": attention_mask}
        made = self.text_decoder(**read, encoder_hidden_states=encoder_hidden_states, use_cache=False)
        return (made.logits,)


class ReadQuestion(nn.Module):
    """Gives what an encoder makes of a question on an image that was seen."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.text_encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor, encoder_hidden_states: Tensor) -> tuple[Tensor]:
        read = {"input_ids": input_ids, "attention_mask": attention_mask}
        return (self.text_encoder(**read, encoder_hidden_states=encoder_hidden_states).last_hidden_state,)


class SaidAnswer(nn.Module):
    """Gives what a decoder says next of a question that was read and what it said so far."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.text_decoder = decoder

    def forward(
        self, input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> tuple[Tensor]:
        read = {"encoder_hidden_states": encoder_hidden_states, "encoder_attention_mask": encoder_attention_mask}
        return (self.text_decoder(input_ids=input_ids, **read, use_cache=False).logits,)


class Captioning(nn.Module):
    """Gives what the decoder says next of an image and what it said so far."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sees, self.says = Seen(member(model, "vision_model")), SaidOfImage(member(model, "text_decoder"))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        says: tuple[Tensor] = self.says(input_ids, attention_mask, *self.sees(pixel_values))
        return says


class Answering(nn.Module):
    """Gives what the decoder says next of an image, a question and what it said so far."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sees, self.reads = Seen(member(model, "vision_model")), ReadQuestion(member(model, "text_encoder"))
        self.says = SaidAnswer(member(model, "text_decoder"))

    def forward(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor
    ) -> tuple[Tensor]:
        read = self.reads(input_ids, attention_mask, *self.sees(pixel_values))
        says: tuple[Tensor] = self.says(decoder_input_ids, *read, attention_mask)
        return says


class FirstVector(nn.Module):
    """Projects the first vector that a tower makes of an image, and scales it to length 1."""

    def __init__(self, sees: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.vision_model, self.projection = sees, projection

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (F.normalize(self.projection(self.vision_model(pixel_values).last_hidden_state[:, 0]), dim=-1),)


class FirstTextVector(nn.Module):
    """Projects the first vector that an encoder makes of a text without an image, and scales it to length 1."""

    def __init__(self, encoder: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.projection = encoder, projection

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        read = self.text_encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return (F.normalize(self.projection(read[:, 0]), dim=-1),)


class Cosines(nn.Module):
    """Compares every image with every text; it gives their normalised embeddings too."""

    def __init__(self, vision: nn.Module, text: nn.Module) -> None:
        super().__init__()
        self.vision, self.text = vision, text

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        (images,), (texts,) = self.vision(pixel_values), self.text(input_ids, attention_mask)
        compared = images @ texts.T
        return compared, compared.T, texts, images


class Matching(nn.Module):
    """Gives the logits of "no" and "yes" for each image with the text of the same row."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.sees, self.reads = Seen(member(model, "vision_model")), ReadQuestion(member(model, "text_encoder"))
        self.itm_head = member(model, "itm_head", nn.Module)

    def forward(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        (read,) = self.reads(input_ids, attention_mask, *self.sees(pixel_values))
        return (self.itm_head(read[:, 0]),)


class SeenByLavis(nn.Module):
    """Gives a vector for each patch of an image and one before them, by LAVIS' vision transformer."""

    def __init__(self, sees: nn.Module) -> None:
        super().__init__()
        self.visual_encoder = sees

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        return (member(self.visual_encoder, "forward_features")(pixel_values),)


class ReadOnPair(nn.Module):
    """Gives the logits of a sentence's being false and true of two images that were seen.

    The first token of each sentence is LAVIS' ``[ENC]``.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.cls_head = encoder, head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, image0_embeds: Tensor, image1_embeds: Tensor
    ) -> tuple[Tensor]:
        seen = [image0_embeds, image1_embeds]
        real = [attention_mask.new_ones(one.shape[:2]) for one in seen]
        read = {"encoder_hidden_states": seen, "encoder_attention_mask": real, "return_dict": True}
        made = self.text_encoder(input_ids, attention_mask=attention_mask, **read).last_hidden_state
        return (self.cls_head(made[:, 0]),)


class Judging(nn.Module):
    """Gives the logits of a sentence's being false and true of two images."""

    def __init__(self, sees: SeenByLavis, reads: ReadOnPair) -> None:
        super().__init__()
        self.sees, self.reads = sees, reads

    def forward(self, image0: Tensor, image1: Tensor, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        told: tuple[Tensor] = self.reads(input_ids, attention_mask, *self.sees(image0), *self.sees(image1))
        return told


def views_of_blip_nlvr(model: nn.Module) -> Iterator[View]:
    """Yield ``vision``; ``text``, which reads a sentence on two images that it saw; and ``all`` in one graph."""
    tower, encoder = member(model, "visual_encoder", nn.Module), member(model, "text_encoder", nn.Module)
    cut, positions = member(tower, "patch_embed"), member(tower, "pos_embed", Tensor)
    texts = _texts(member(encoder, "embeddings.word_embeddings.weight", Tensor))

    def two(example: Example, names: tuple[str, str], *shape: int) -> dict[str, Tensor]:
        return dict(zip(names, example.numbers(positions, 2 * example.batch, *shape).chunk(2), strict=True))

    def of_seen(example: Example) -> dict[str, Tensor]:
        return {**texts(example), **two(example, PAIR_SEEN, *positions.shape[1:])}

    def everything(example: Example) -> dict[str, Tensor]:
        return {**two(example, PAIR, member(cut, "proj.in_channels", int), *square(cut.img_size)), **texts(example)}

    vision, text = SeenByLavis(tower), ReadOnPair(encoder, member(model, "cls_head", nn.Module))
    yield view("vision", vision, images_of(tower, cut.img_size), ("image_embeds",), IMAGE_AXES)
    yield view("text", text, of_seen, ("logits",), {**READ, **{name: {0: BATCH} for name in PAIR_SEEN}})
    yield view("all", Judging(vision, text), everything, ("logits",), {**READ, **{name: {0: BATCH} for name in PAIR}})


def views_of_blip_caption(model: nn.Module) -> Iterator[View]:
    """Yield ``vision``; ``decoder``, which says something of what that gives; and ``all`` in one graph."""
    images, decoder = images_of_tower(model), member(model, "text_decoder", nn.Module)
    texts = _texts(member(decoder, "bert.embeddings.word_embeddings.weight"))

    def of_seen(example: Example) -> dict[str, Tensor]:
        return {**texts(example), **_seen(model, example)}

    def both(example: Example) -> dict[str, Tensor]:
        return {**images(example), **texts(example)}

    yield _vision(model)
    yield view("decoder", SaidOfImage(decoder), of_seen, ("logits",), {**READ, **SEEN})
    yield view("all", Captioning(model), both, ("logits",), {**IMAGE_AXES, **READ})


def views_of_blip_vqa(model: nn.Module) -> Iterator[View]:
    """Yield ``vision``; ``encoder``, which reads a question with it; ``decoder``, which answers; and ``all``."""
    images, encoder, decoder = (
        images_of_tower(model),
        member(model, "text_encoder"),
        member(model, "text_decoder", nn.Module),
    )
    words = member(encoder, "embeddings.word_embeddings.weight", Tensor)
    texts = _texts(words)

    def answer(example: Example) -> Tensor:
        return example.ids(len(words), example.batch, example.said)

    def question(example: Example) -> dict[str, Tensor]:
        return {**texts(example), **_seen(model, example)}

    def of_read(example: Example) -> dict[str, Tensor]:
        read = example.numbers(words, example.batch, example.length, words.shape[1])
        mask = texts(example)["attention_mask"]
        return {"input_ids": answer(example), "encoder_hidden_states": read, "encoder_attention_mask": mask}

    def everything(example: Example) -> dict[str, Tensor]:
        return {**images(example), **texts(example), "decoder_input_ids": answer(example)}

    said, read = {0: BATCH, 1: SAID}, {0: BATCH, 1: SEQUENCE}
    yield _vision(model)
    yield view("encoder", ReadQuestion(encoder), question, ("last_hidden_state",), {**READ, **SEEN})
    yield view("decoder", SaidAnswer(decoder), of_read, ("logits",), {
        "input_ids": said, "encoder_hidden_states": read, "encoder_attention_mask": read,
    })  # fmt: skip
    yield view("all", Answering(model), everything, ("logits",), {**IMAGE_AXES, **READ, "decoder_input_ids": said})


def views_of_blip_retrieval(model: nn.Module) -> Iterator[View]:
    """Yield ``vision`` and ``text``, vectors of length 1; ``pair``, which compares them; and ``match``."""
    images, encoder = images_of_tower(model), member(model, "text_encoder", nn.Module)
    words = member(encoder, "embeddings.word_embeddings.weight", Tensor)

    def texts(example: Example) -> dict[str, Tensor]:
        mask = example.mask(example.texts, example.length)
        return {"input_ids": example.ids(len(words), *mask.shape), "attention_mask": mask}

    def both(example: Example) -> dict[str, Tensor]:
        return {**images(example), **_texts(words)(example)}

    sees, project, project_text = (member(model, name) for name in ("vision_model", "vision_proj", "text_proj"))
    vision, text = FirstVector(sees, project), FirstTextVector(_reading_alone(encoder), project_text)
    yield from views_of_pair(images, texts, (vision, text, Cosines(vision, text)))
    yield view("match", Matching(model), both, ("itm_score",), {**IMAGE_AXES, **READ})


def _vision(model: nn.Module) -> View:
    return view("vision", Seen(member(model, "vision_model")), images_of_tower(model), ("image_embeds",), IMAGE_AXES)


def _seen(model: nn.Module, example: Example) -> dict[str, Tensor]:
    """Draw what the vision tower could have made of as many images as there are rows."""
    positions = member(model, "vision_model.embeddings.position_embedding", Tensor)
    return {"encoder_hidden_states": example.numbers(positions, example.batch, *positions.shape[1:])}


def _texts(words: Tensor) -> Callable[[Example], dict[str, Tensor]]:
    """Give what makes the texts of an example, as many as it has images."""

    def made(example: Example) -> dict[str, Tensor]:
        mask = example.mask(example.batch, example.length)
        return {"input_ids": example.ids(len(words), *mask.shape), "attention_mask": mask}

    return made


def _reading_alone(encoder: nn.Module) -> nn.Module:
    """Copy a text encoder without its cross-attention, which it has no use for where there is no image."""
    layers = member(encoder, "encoder.layer", nn.ModuleList)
    stack: Any = without(member(encoder, "encoder", nn.Module))
    stack.layer = nn.ModuleList([without(layer, "crossattention") for layer in layers])
    alone: Any = without(encoder)
    alone.encoder = stack
    return alone  # type: ignore[no-any-return]
