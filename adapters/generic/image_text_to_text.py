"""Adapt models of transformers that see an image, read a text and say another, which no family's own adapter claims."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int8, Int64
from torch import Tensor, nn

from ecoflap.adapters.generic.classes import SEEING, names_in, reads_text_alone, sees_alone
from ecoflap.adapters.generic.composite_views import composite_views, composites_impossible
from ecoflap.adapters.generic.generic_adapter import GenericAdapter
from ecoflap.adapters.generic.image_batches import labelled, processed, refuse_padded_images
from ecoflap.adapters.generic.watching.examples import ROWS, Inputs, arguments_of, placed
from ecoflap.adapters.generic.watching.layers_seen import Texts
from ecoflap.adapters.generic.watching.probe import as_read, images_with_texts
from ecoflap.adapters.generic.wording import Wording, ids_of, refuse_foreign, takes_suffix, tokenizer_of
from ecoflap.adapters.shared.generation import ends_of, generated, without_ends
from ecoflap.adapters.shared.images import text_to_say
from ecoflap.adapters.shared.losses import IGNORED, shifted
from ecoflap.adapters.shared.members import find
from ecoflap.adapters.shared.texts import padded_rows
from ecoflap.core.contracts.abilities import Generation, Said
from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.records import Batch, Sample, View
from ecoflap.core.errors import DataError, EcoflapError
from ecoflap.core.model.anatomy import Source


@hookimpl
def ecoflap_register_adapters() -> Mapping[str, type["ImageTextToTextAdapter"]]:
    return {"image_text_to_text": ImageTextToTextAdapter}


class ImageTextToTextAdapter(GenericAdapter):
    """Adapts LLaVA, Qwen-VL, SmolVLM, Gemma 3 and their likes, from a hub id, a folder or memory.

    The loss is the cross entropy of a caption, or of the first answer to a question, given the image and the question
    in the words of the processor's chat template.
    """

    priority = -10
    _kind, _processor_kind = "AutoModelForImageTextToText", "AutoProcessor"
    _mapping = SEEING

    def __init__(self) -> None:
        super().__init__()
        self._sources: WeakKeyDictionary[nn.Module, Source] = WeakKeyDictionary()

    def load(self, source: Source, dtype: torch.dtype | None, device: str) -> nn.Module:
        """Load the model in eval mode, and its processor where that reads weights."""
        model = super().load(source, dtype, device)
        if source.model is None and source.with_processor:
            self._sources[model] = source
        return model

    @classmethod
    def _is_read(cls, model_type: str, name: str | None) -> bool:
        if not super()._is_read(model_type, name):
            return False
        name = name or names_in(cls._mapping)[model_type]
        return not reads_text_alone(name) and not sees_alone(name)

    def collate(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        """Make images and texts padded on the right, with labels where something is to be said."""
        return self._tried(model, self._collated(model, samples))

    def _collated(self, model: nn.Module, samples: Sequence[Sample]) -> Batch:
        wording, said = self._wording(model), [text_to_say(number, sample) for number, sample in enumerate(samples)]
        prompts = [wording.prompt(sample.question) for sample in samples]
        if takes_suffix(self.processor):
            return processed(model, self.processor, prompts, samples, "right", suffix=said)
        if find(model, "config.is_encoder_decoder", bool):
            labels, _ = padded_rows([ids_of(self.processor, text) for text in said], IGNORED)
            return {**processed(model, self.processor, prompts, samples, "right"), "labels": labels}
        pairs = [(sample.question, text) for sample, text in zip(samples, said, strict=True)]
        batch = processed(model, self.processor, [wording.whole(*pair) for pair in pairs], samples, "right")
        refuse_padded_images(batch)
        if "qformer_input_ids" in batch:  # which is to read the question alone
            asked = processed(model, self.processor, prompts, samples, "right")
            batch |= {name: asked[name] for name in ("qformer_input_ids", "qformer_attention_mask")}
        tokens = [wording.said(*pair) for pair in pairs]
        return {**batch, "labels": labelled(batch["input_ids"], batch["attention_mask"], tokens)}

    def generate(self, model: nn.Module, samples: Sequence[Sample], generation: Generation) -> list[Said]:
        """Have the model answer each question on an image, or say something of the image where none is asked."""
        wording = self._wording(model)
        texts = [wording.prompt(sample.question) for sample in samples]
        inputs = placed(model, processed(model, self.processor, texts, samples, "left"))
        begins = 1 if find(model, "config.is_encoder_decoder", bool) else inputs["input_ids"].shape[1]
        return generated(model, tokenizer_of(self.processor), inputs, generation, begins=begins)

    def tokens_of(self, model: nn.Module, text: str) -> tuple[int, ...]:
        """Give the tokens of a text that answers a question."""
        ends = ends_of(model, tokenizer_of(self.processor))
        return tuple(without_ends(self._wording(model).said(":", text), ends))

    def export_views(self, model: nn.Module) -> Sequence[View]:
        """Give ``vision``, the vectors of an image; ``language``, which reads them among words; and ``all``.

        Images are of the size that the model was made for. A model that looks at the grid or the sizes of its images is
        exported for one image at a time, and where a text model reads more of an image than vectors in its places there
        is ``all`` alone.
        """
        return composite_views(model, self._taken_apart(model))[0]

    def views_refused(self, model: nn.Module, exporter: str) -> Mapping[str, str]:
        """Say which views a model like this lacks, and which would look at numbers of their inputs in Python."""
        views, refused = composite_views(model, self._taken_apart(model))
        return {**refused, **composites_impossible(model, views, exporter, self.max_length(model))}

    def _examples(self, model: nn.Module) -> Iterable[tuple[Inputs, Texts]]:
        yield from images_with_texts(model, self.processor)
        processor = self.processor or self._on_disk(model)
        if processor is not None and not find(model, "config.is_encoder_decoder", bool):
            with suppress(DataError, ImportError):  # one may be without Pillow where nothing is made of images
                yield from self._made_by(processor, model)

    def _on_disk(self, model: nn.Module) -> Any:
        """Read the processor that lies beside a model's files, which a model without weights came without."""
        source = self._sources.get(model)
        with suppress(EcoflapError):
            return None if source is None else self.read_processor(source, model)
        return None

    def _made_by(self, processor: Any, model: nn.Module) -> Iterator[tuple[Inputs, Texts]]:
        """Yield images with a text by the model's own processor, for a model that takes images in a form of its own."""
        from PIL import Image

        samples = [Sample(image=Image.new("RGB", (64, 64)), question="?")] * ROWS
        prompts = [self._wording(model, processor).prompt(sample.question) for sample in samples]
        made = processed(model, processor, prompts, samples, "right")
        inputs = {name: value for name, value in made.items() if isinstance(value, Tensor)}
        if any(value.is_floating_point() for value in inputs.values()):  # else the forward takes no image at all
            yield inputs, as_read(inputs)

    def _targets(self, model: nn.Module, batch: Batch) -> Tensor:
        labels: Tensor = batch["labels"]
        if find(model, "config.is_encoder_decoder", bool):
            return labels
        following = shifted(labels)
        return following[:, _kept(labels)] if "logits_to_keep" in arguments_of(model.forward) else following

    def _tokens_said(self, model: nn.Module, batch: Batch) -> Int8[Tensor, "batch tokens"]:
        is_short = "logits_to_keep" in arguments_of(model.forward) or find(model, "config.is_encoder_decoder", bool)
        return super()._tokens_said(model, batch) if is_short else self._tokens_read(model, batch)

    def _arguments(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        arguments, labels = super()._arguments(model, batch), batch["labels"]
        if find(model, "config.is_encoder_decoder", bool):
            return arguments
        del arguments["labels"]
        if "logits_to_keep" in arguments_of(model.forward):
            arguments["logits_to_keep"] = _kept(labels).to(arguments["input_ids"].device)
        return arguments

    def _wording(self, model: nn.Module, processor: Any = None) -> Wording:
        processor = self.processor if processor is None else processor
        tokenizer = tokenizer_of(processor)
        refuse_foreign(model, processor)
        ends = ends_of(model, tokenizer)
        return Wording(processor, tokenizer.convert_ids_to_tokens(ends[0]) if ends else "")


def _kept(labels: Int64[Tensor, "rows tokens"]) -> Int64[Tensor, " kept"]:
    """Give the positions before a token that is to be said in any row: of the others no logits are needed."""
    said: Tensor = (shifted(labels) != IGNORED).any(0)
    return said.nonzero().flatten()
