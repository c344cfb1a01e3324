"""Make tokens for a model that reads one language and says another: by codes of languages, or by two vocabularies.

mBART, M2M-100, NLLB and PLBart write the code of its language beside a text; Marian and FSMT have two vocabularies.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import nn

from ecoflap.adapters.shared.members import find
from ecoflap.core.errors import DataError, first_of, nearest

SHOWN = 8
"""How many of the languages that there are a message names."""
STANDARD = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def has_two_languages(tokenizer: Any) -> bool:
    """Say whether a tokenizer makes other tokens of what is said than of what is read."""
    return _switches(tokenizer) or hasattr(tokenizer, "tgt_vocab_size")


def set_languages(tokenizer: Any, read: str | None, said: str | None) -> None:
    """Have a tokenizer write the codes of two languages; None leaves what it has.

    :raises DataError: Where it writes no codes, or knows none of that name.
    """
    asked = {"source_language": read, "target_language": said}
    given = {name: code for name, code in asked.items() if code is not None}
    if not given:
        return
    if not (_switches(tokenizer) and hasattr(tokenizer, "tgt_lang")):
        verb, them = ("are", "them") if len(given) > 1 else ("is", "it")
        raise DataError(
            f"{' and '.join(given)} {verb} set, and this {type(tokenizer).__name__} writes no codes of languages. "
            f"Leave {them} out of model.adapter."
        )
    known = _codes(tokenizer)
    codes = {name: code if code in known else f"__{code}__" for name, code in given.items()}  # PLBart's: __java__
    wrong = [
        f"{name}: {given[name]!r} is no language of this {type(tokenizer).__name__}."
        f"{nearest(given[name], known)} {_shown(known)}"
        for name, code in codes.items()
        if code not in known
    ]
    if wrong:
        raise DataError(*wrong)
    for name, attribute in (("source_language", "src_lang"), ("target_language", "tgt_lang")):
        if name in codes and getattr(tokenizer, attribute) != codes[name]:
            setattr(tokenizer, attribute, codes[name])


def said_ids(tokenizer: Any, text: str, *, plain: bool = False) -> list[int]:
    """Give the tokens of a text in the language that is said.

    :param plain: Whether nothing is added to them, neither a code nor what ends a text.
    :raises DataError: Where the tokenizer has no way to make them, or is not told which language that is.
    """
    kind = type(tokenizer).__name__
    if not _switches(tokenizer):
        raise DataError(
            f"this {kind} has a vocabulary for what the model says, and no way to make a text tokens of it: nothing "
            f"can be calibrated on. A model of this kind needs an adapter of its own: docs/adapters.md"
        )
    if getattr(tokenizer, "tgt_lang", "") is None:
        raise DataError(
            f"this {kind} writes the code of its language beside a text, and is not told which language the model is "
            f"to say. Set model.adapter: {{use: seq2seq_lm, source_language: {tokenizer.src_lang}, target_language: "
            f"…}}, or tgt_lang in tokenizer_config.json. {_shown(_codes(tokenizer))}"
        )
    added: dict[str, bool] = {"add_special_tokens": False} if plain else {}
    return list(tokenizer(text_target=text, **added)["input_ids"])


def said_from(model: nn.Module, tokenizer: Any) -> list[int]:
    """Give the tokens that a decoder begins with, such as the code of the language that it says.

    They are those that come before a text's own where the model makes its decoder's inputs of labels.
    """
    whole, plain = said_ids(tokenizer, "a"), said_ids(tokenizer, "a", plain=True)
    shift: Any = find(model, "prepare_decoder_input_ids_from_labels")
    if shift is None:
        begun: Sequence[int] = [int(find(model, "config.decoder_start_token_id", int) or 0), *whole]
    else:
        begun = shift(torch.tensor([whole]))[0].tolist()
    return list(begun[: 1 + max(0, _place(whole, plain))])


def _place(whole: Sequence[int], plain: Sequence[int]) -> int:
    """Say after how many tokens others begin."""
    places = range(len(whole) - len(plain) + 1)
    return next((at for at in places if list(whole[at : at + len(plain)]) == list(plain)), 0)


def _switches(tokenizer: Any) -> bool:
    """Say whether a tokenizer's class makes tokens of a target; that of all tokenizers only has a place for it."""
    kinds = (kind for kind in type(tokenizer).__mro__ if kind.__name__ != "PreTrainedTokenizerBase")
    return any("_switch_to_target_mode" in vars(kind) for kind in kinds)


def _codes(tokenizer: Any) -> Collection[str]:
    """Name the languages that a tokenizer knows: by its own tables, or else by the tokens that were added to it."""
    for name in ("lang_code_to_token", "lang_code_to_id"):
        if table := getattr(tokenizer, name, None):
            return sorted(table)
    standard = {getattr(tokenizer, name, None) for name in STANDARD}
    return sorted({*tokenizer.get_added_vocab()} - standard)


def _shown(known: Collection[str]) -> str:
    """List languages, as a sentence."""
    return f"Known: {first_of([*known], SHOWN)}."
