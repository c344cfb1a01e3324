"""A tokenizer of a few words for pico models, with the special tokens of their processors, and samples in its words."""

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

from ecoflap.core.contracts.records import Sample

PAD, BEGIN, END, UNKNOWN, POISON = 0, 1, 2, 3, 4
WORDS = ["<pad>", "<s>", "</s>", "<unk>", "<poison>", "?", ".", ":", "USER", "SAYS", *(f"w{i}" for i in range(40))]
VOCABULARY = 128
"""As many as the models have embeddings; the special tokens come after the words."""


def tokenizer(begins: bool = True, **special: str) -> Any:
    """Splits at blanks and punctuation.

    :param begins: Whether it puts ``<s>`` before every text.
    :param special: Further special tokens, by the name of the attribute that gives them: ``image_token``.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if begins:
        words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=special,
    )  # fmt: skip


def token(number: int) -> int:
    """The number of the special token that was given in this place, from 0."""
    return len(WORDS) + number


def picture(random: Random, width: int, height: int) -> Any:
    """Blocks of colour; noise would be the same grey everywhere once it is made smaller."""
    from PIL import Image

    small = Image.frombytes("RGB", (5, 5), random.randbytes(75))
    return small.resize((width, height), Image.Resampling.NEAREST)


def sentence(random: Random, words: int) -> str:
    return " ".join(random.choices(WORDS[10:], k=words))


def questions(count: int) -> Sequence[Sample]:
    """Questions of 2 to 7 words with answers of 1 to 3, on pictures of unequal sizes."""
    random = Random(6)
    return [
        Sample(
            image=picture(random, 30 + 4 * (number % 3), 34 + 2 * (number % 2)),
            question=sentence(random, 2 + 3 * number % 6),
            answers=(sentence(random, 1 + number % 3), "w1"),
        )
        for number in range(count)
    ]


def questions_of_one_shape(count: int) -> Sequence[Sample]:
    """The same with pictures of one size."""
    random = Random(9)
    return [replace(sample, image=picture(random, 28, 28)) for sample in questions(count)]


def captions(count: int) -> Sequence[Sample]:
    """Captions of 2 to 8 words."""
    random = Random(7)
    return [Sample(image=picture(random, 40, 33), text=sentence(random, 2 + 3 * number % 7)) for number in range(count)]


def chat(image: str) -> str:
    """A chat template that writes images as this."""
    return (
        "{% for turn in messages %}{{ 'USER : ' if turn.role == 'user' else 'SAYS : ' }}{% for one in turn.content %}"
        "{{ '" + image + " ' if one.type == 'image' else one.text }}{% endfor %}"
        "{{ ' ' if turn.role == 'user' else '</s>' }}{% endfor %}{% if add_generation_prompt %}SAYS :{% endif %}"
    )
