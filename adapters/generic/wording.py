"""Put a question on an image, and what is said of it, into the words that a processor wants."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ecoflap.adapters.generic.classes import types_of_processor
from ecoflap.adapters.shared.generation import shared
from ecoflap.adapters.shared.members import find
from ecoflap.core.errors import DataError

WRITING = frozenset({
    "BlipProcessor", "Blip2Processor", "Florence2Processor", "InstructBlipProcessor", "Kosmos2Processor",
    "Kosmos2_5Processor",
})  # fmt: skip
"""Processors that put the places of an image into a text themselves."""
SUFFIXING = frozenset({"PaliGemmaProcessor"})
"""Processors that are given what is said apart from what is read, and end it themselves."""


BLIPS = frozenset({"blip", "blip-2", "instructblip", "instructblipvideo"})
"""Types of models whose processors have stood for one another's."""


@dataclass(frozen=True)
class Wording:
    """Makes the texts that a model reads and says.

    :param processor: The model's own, with its chat template if it has one.
    :param end: The token that ends what is said; empty where there is none.
    """

    processor: Any
    end: str

    def prompt(self, question: str | None) -> str:
        """Write what is read before anything is said."""
        if self._has_template:
            return self._templated(question, None)
        between = "\n" if is_written_in(self.processor) and not takes_suffix(self.processor) else ""
        return f"{placeholder(self.processor)}{between}{question or ''}"

    def whole(self, question: str | None, said: str) -> str:
        """Write what is read and what is said as one text."""
        if self._has_template:
            return self._templated(question, said)
        begins = self.prompt(question)
        text = f"{begins} {said}" if question else f"{begins}{said}"
        return text if _ends_itself(self.processor, text, self.end) else text + self.end

    def said(self, question: str | None, said: str) -> tuple[int, ...]:
        """Give the tokens that are said, what ends them among them."""
        before, whole = (ids_of(self.processor, text) for text in (self.prompt(question), self.whole(question, said)))
        return tuple(whole[shared(before, whole) :])

    @property
    def _has_template(self) -> bool:
        return bool(getattr(self.processor, "chat_template", None))

    def _templated(self, question: str | None, said: str | None) -> str:
        asked = [{"type": "image"}, *([{"type": "text", "text": question}] if question else [])]
        turns: list[dict[str, Any]] = [{"role": "user", "content": asked}]
        if said is not None:
            turns.append({"role": "assistant", "content": [{"type": "text", "text": said}]})
        try:
            made = self.processor.apply_chat_template(turns, add_generation_prompt=said is None, tokenize=False)
        except Exception as error:  # a template is code of the checkpoint's
            raise DataError(f"the chat template of the {type(self.processor).__name__} failed: {error}") from error
        return str(made)


def refuse_foreign(model: nn.Module, processor: Any) -> None:
    """Refuse a processor that words texts in a way of its own, and is not made for models of this type.

    Its tensors may fit all the same, where images have as many places and as many pixels. Of other processors a family
    may use another's, as Pixtral's is that of some LLaVAs, so that nothing is said of them.

    :raises DataError: Where it is another family's.
    """
    name, kind = type(processor).__name__, find(model, "config.model_type", str)
    types = types_of_processor(name) if name in WRITING | SUFFIXING else frozenset()
    types |= BLIPS if types & BLIPS else frozenset()
    if types and kind is not None and kind not in types:
        raise DataError(
            f"the {name} is that of models of type {' or '.join(sorted(types))}, and this {type(model).__name__} is of "
            f"type {kind}: texts would be put to it in words that it was not trained on. Put the model's own "
            f"processor_config.json, preprocessor_config.json and the tokenizer's files beside its config.json, or "
            f"give ecoflap.run its own processor."
        )


def is_written_in(processor: Any) -> bool:
    """Say whether the place of an image has to be written into the text."""
    return type(processor).__name__ not in WRITING


def takes_suffix(processor: Any) -> bool:
    """Say whether a processor is given what is said apart from what is read."""
    return type(processor).__name__ in SUFFIXING


def placeholder(processor: Any) -> str:
    """Give the text that stands for an image; nothing where the processor writes it."""
    for owner in (processor, tokenizer_of(processor)) if is_written_in(processor) else ():
        for name in ("image_token", "boi_token"):
            token = getattr(owner, name, None)
            token = getattr(token, "content", token)  # Idefics 2 had it as an AddedToken before transformers 5
            if isinstance(token, str):
                return token
    return ""


def is_unknown(processor: Any, token: str) -> bool:
    """Say whether a processor's tokenizer would cut a token into others."""
    return token not in tokenizer_of(processor).get_vocab()


def tokenizer_of(processor: Any) -> Any:
    """Give the tokenizer of a processor.

    :raises DataError: Where there is none.
    """
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None:
        found = "came without a processor" if processor is None else f"came with a {type(processor).__name__}"
        raise DataError(
            f"this model needs a processor for images and text, and {found}: put processor_config.json, "
            f"preprocessor_config.json and the tokenizer's files beside its config.json, or give ecoflap.run a "
            f"processor."
        )
    return tokenizer


def ids_of(processor: Any, text: str) -> list[int]:
    """Give a text's tokens, with those that the tokenizer adds."""
    return list(tokenizer_of(processor)(text)["input_ids"])


def _ends_itself(processor: Any, text: str, end: str) -> bool:
    last = ids_of(processor, text)[-1:]
    return bool(end) and tokenizer_of(processor).convert_ids_to_tokens(last) == [end]
