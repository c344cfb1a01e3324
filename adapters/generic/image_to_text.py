"""Adapt models of transformers that see an image and say a text, and read none but what they are to go on from."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int8
from packaging.version import Version
from torch import Tensor, nn

from ecoflap.adapters.generic.classes import SEEING, names_in, sees_alone
from ecoflap.adapters.generic.generic_adapter import GenericAdapter, is_head
from ecoflap.adapters.generic.watching.examples import ROWS, SAID, Inputs, a_word, image_inputs, placed
from ecoflap.adapters.generic.watching.layers_seen import VISION, Texts
from ecoflap.adapters.generic.wording import tokenizer_of
from ecoflap.adapters.hubs.hugging_face import load_processor
from ecoflap.adapters.shared.generation import check_length, ends_of, generated
from ecoflap.adapters.shared.images import pixels_of, text_to_say
from ecoflap.adapters.shared.losses import IGNORED
from ecoflap.adapters.shared.members import find, member
from ecoflap.adapters.shared.texts import check_tokens, in_groups, padded_rows, row_tensor
from ecoflap.adapters.views.encoder_decoders import views_of_seeing_encoder_and_decoder
from ecoflap.adapters.views.impossible import views_impossible
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import IMAGE, Batch, Sample, View
from ecoflap.core.errors import DataError, EcoflapError
from ecoflap.core.model.anatomy import Source

DECODER = "decoder"


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["ImageToTextAdapter"]]:
    return {"image_to_text": ImageToTextAdapter}


class ImageToTextAdapter(GenericAdapter):
    """Adapts TrOCR, Donut, Nougat, ViT-GPT2 and other pairs of an encoder that sees and a decoder that says.

    The loss is the cross entropy of each token of a text, and of the one that ends it, given the image. A sample's
    question is what the text goes on from, as it stands, and is not to be said.

    Li et al., TrOCR, AAAI 2023, https://arxiv.org/abs/2109.10282; Kim et al., Donut, ECCV 2022,
    https://arxiv.org/abs/2111.15664.

    :param prompt: What a text goes on from where its sample has no question: Donut's ``<s_cord-v2>``.
    """

    priority = -15
    _kind, _processor_kind = "VisionEncoderDecoderModel", "AutoProcessor"
    _mapping = SEEING

    def __init__(self, prompt: str = "") -> None:
        super().__init__()
        self._prompt = prompt

    def read_processor(self, source: Source, model: nn.Module) -> Any:
        """Read the processor; one that lies there in two halves, as ViT-GPT2's does, is put together."""
        try:
            whole = super().read_processor(source, model)
        except EcoflapError:  # a folder need not say which processor its halves belong to
            whole = None
        if hasattr(whole, "tokenizer"):
            return whole
        halves = [load_processor(kind, source) for kind in ("AutoImageProcessor", "AutoTokenizer")]
        if None in halves:
            return whole
        from transformers import TrOCRProcessor

        return TrOCRProcessor(*halves)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images, what the decoder is given, padded on the right, and the label of each of its positions."""
        return self._tried(model, self._collated(model, samples))

    def _collated(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        pixels, ends = pixels_of(self.processor, samples), ends_of(model, tokenizer_of(self.processor))
        begun = [self._begun(model, sample) for sample in samples]
        said = [[*self._ids(text_to_say(number, sample)), *ends[:1]] for number, sample in enumerate(samples)]
        if not all(said):
            raise DataError("a text has no tokens, and nothing says which ends one: set the tokenizer's eos_token.")
        pairs = [*zip(begun, said, strict=True)]
        given, mask = padded_rows([[*begin, *text[:-1]] for begin, text in pairs], self._pad(model))
        labels, _ = padded_rows([[IGNORED] * (len(begin) - 1) + text for begin, text in pairs], IGNORED)
        check_tokens(model, given, len(member(model, "get_input_embeddings")().weight), tokenizer_of(self.processor))
        return {
            "pixel_values": pixels, "decoder_input_ids": given, "decoder_attention_mask": mask, "labels": labels,
        }  # fmt: skip

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the decoder go on from each question, or begin a text of its own, given the image."""
        pixels, tokenizer = pixels_of(self.processor, samples), tokenizer_of(self.processor)
        begun = [self._begun(model, sample) for sample in samples]
        check_length(begun, generation, self.max_length(model), samples)

        def go_on(numbers: list[int]) -> list[Said]:
            ids = row_tensor([begun[number] for number in numbers], torch.device("cpu"))
            inputs = placed(model, {"pixel_values": pixels[numbers], "decoder_input_ids": ids})
            start = begun[numbers[0]]
            return generated(model, tokenizer, inputs, generation, ids.shape[1], start=start)

        return in_groups(begun, go_on)

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text without those around it."""
        return tuple(self._ids(text))

    def tokens(self, model: nn.Module, batch: Batch, tower: str, call: int = 0) -> Int8[Tensor, "batch tokens"]:
        """Say that all of an image is real; of the decoder, and what stands before its blocks, what is no padding."""
        if is_head(model, tower):
            return self._tokens_said(model, batch)
        if tower.partition(".")[0] == DECODER:
            mask: Tensor = batch["decoder_attention_mask"]
            return mask.to(torch.int8)
        return torch.full((len(batch["labels"]), 1), IMAGE, dtype=torch.int8)

    def own_inputs(self, model: nn.Module, batch: Batch) -> Mapping[str, Any] | None:
        """Give a batch with its labels; none before transformers 5, whose own loss there moves the labels on twice."""
        import transformers

        return None if Version(transformers.__version__).major < 5 else super().own_inputs(model, batch)

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, ``decoder``, which reads what that gives, and ``all`` in one graph."""
        pixels = self._taken_apart(model).inputs["pixel_values"]
        return list(views_of_seeing_encoder_and_decoder(model, pixels.shape[1:]))

    def views_refused(self, model: nn.Module, exporter: str) -> Mapping[str, str]:
        """Say which of these views cannot be written, and why."""
        return views_impossible(self.export_views(model), exporter, self.max_length(model))

    @classmethod
    def _is_read(cls, model_type: str, name: str | None) -> bool:
        known = names_in(cls._mapping)
        return super()._is_read(model_type, name) and sees_alone(name or known[model_type])

    def _examples(self, model: nn.Module) -> Iterator[tuple[Inputs, Texts]]:
        said = torch.full((ROWS, SAID), a_word(model.config))
        for images in image_inputs(model, self.processor):
            given = {**images, "decoder_input_ids": said}
            yield given, Texts(ROWS, {DECODER: SAID}, "an image and a text", elsewhere=VISION)

    def _targets(self, model: nn.Module, batch: Batch) -> Tensor:
        labels: Tensor = batch["labels"]
        return labels

    def _arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        return super()._arguments(model, {name: value for name, value in batch.items() if name != "labels"})

    def _begun(self, model: nn.Module, sample: Sample) -> list[int]:
        """Give the tokens that a decoder is given before it says anything.

        Donut's begins with its prompt: transformers puts nothing before that, and before others' what starts them.
        """
        asked = self._ids(sample.question or self._prompt)
        start = self._start(model)
        is_whole = asked and (asked[0] == start or "donut" in str(find(model, "config.encoder.model_type")))
        return asked if is_whole else [start, *asked]

    def _start(self, model: nn.Module) -> int:
        """Give the token that a decoder begins with.

        :raises DataError: Where nothing says which it is.
        """
        configs = ("config", "generation_config", "config.decoder")
        places = [*(f"{one}.decoder_start_token_id" for one in configs), *(f"{one}.bos_token_id" for one in configs)]
        found = next((start for place in places if (start := find(model, place, int)) is not None), None)
        found = tokenizer_of(self.processor).bos_token_id if found is None else found
        if found is None:
            raise DataError(
                f"nothing says which token the decoder of this {type(model).__name__} begins with: set "
                f"decoder_start_token_id in its config.json."
            )
        return int(found)

    def _pad(self, model: nn.Module) -> int:
        """Give a token to pad with, which no position that counts looks at."""
        pads = (find(model, "config.pad_token_id", int), tokenizer_of(self.processor).pad_token_id)
        return next((pad for pad in pads if pad is not None), self._start(model))

    def _ids(self, text: str) -> list[int]:
        """Give a text's tokens, without those that the tokenizer would put around it."""
        return list(tokenizer_of(self.processor)(text, add_special_tokens=False)["input_ids"]) if text else []
