"""Documents are cut into windows of tokens, each of which begins as the model's tokenizer begins a text."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Int64
from torch import Tensor

from ecoflap.core.contracts.protocols import Adapter, Note
from ecoflap.core.errors import DataError

BETWEEN = "\n\n"
"""What stands between documents that are joined."""

PIECE, OVERLAP, AGREED = 500_000, 6_000, 64
"""Characters of a text that are tokenised at a time, how many of them the next time has again, and how many tokens of
theirs have to be the same. A tokenizer takes some 180 bytes for a character while it reads; 4 are kept for a token."""
LONGER = {True: 3, False: 11}
"""How many bytes a tokenizer may make of one before it cuts: 3 of ASCII, for SentencePiece has a sign of three for a
blank; else 11, for NFKC writes U+FDFA, of 3 bytes, in full. A token has one byte at least."""
BEGUN = 8
"""Bytes that a tokenizer may put before a text, as SentencePiece puts such a blank."""
FEW = 10
"""Of so many documents that were looked at fewer than one was long enough, which is worth a word."""

Begin: TypeAlias = Literal["auto"] | bool
"""What every window begins with: ``auto`` is what the tokenizer itself puts there, True its begin token."""


@dataclass(frozen=True)
class TokenWindows:
    """Cuts windows of one length.

    :param tokenizer: The model's own.
    :param begin: The tokens that every window begins with; the rest of it is text.
    :param length: Tokens of a window, those included.
    """

    tokenizer: Any
    begin: tuple[int, ...]
    length: int

    @classmethod
    def of(cls, adapter: Adapter, bos: Begin, length: int) -> "TokenWindows":
        """Ask the tokenizer of an adapter's model how a text begins.

        :raises DataError: Where there is no tokenizer, it has no begin token, or no room is left for text.
        """
        tokenizer = tokenizer_of(adapter)
        begin = begin_tokens(tokenizer, bos)
        if length <= len(begin):
            raise DataError(
                f"text: sequence_length is {length}, and {len(begin)} of these tokens begin the text. Raise it, or set "
                f"bos: false."
            )
        return cls(tokenizer, begin, length)

    @property
    def text_length(self) -> int:
        """Say how many tokens of a window are text."""
        return self.length - len(self.begin)

    def random(
        self, documents: Sequence[str], samples: int, seed: int, note: Note
    ) -> Iterator[Int64[Tensor, " tokens"]]:
        """Draw windows as Wanda and SparseGPT do from C4; but a document that is too short is not drawn again.

        The tokens of one that is long enough are kept, for a few long documents are drawn again and again.

        :param note: Told where only few documents are long enough.
        """
        random, candidates, drawn = Random(seed), list(range(len(documents))), 0
        known: dict[int, array[int]] = {}
        while candidates and drawn < samples:
            place = random.randrange(len(candidates))
            number = candidates[place]
            if number not in known:
                may_do = _tokens_at_most(documents[number]) >= self.text_length  # a short one takes a tokenizer 0.1 ms
                tokens = plain_tokens(self.tokenizer, documents[number]) if may_do else ()
                if len(tokens) < self.text_length:
                    del candidates[place]
                    continue
                known[number] = array("i", tokens)  # four bytes a token, which is about the size of the text
            drawn += 1
            if drawn == samples:  # said before the last one is given: nobody may ask for another
                self._note_few(len(known), len(documents) - len(candidates), note)
            yield self._drawn(known[number], random)
        if drawn == samples:
            return
        tokens = self._joined(documents)
        for _ in range(samples):
            yield self._drawn(tokens, random)

    def consecutive(
        self, documents: Sequence[str], samples: int | None, *, spread: bool
    ) -> Iterator[Int64[Tensor, " tokens"]]:
        """Cut all documents from the start, and take the first windows or those that lie evenly.

        :param samples: How many; None for all there are.
        """
        tokens = self._joined(documents)
        available = len(tokens) // self.text_length
        if samples is not None and available < samples:
            raise DataError(
                f"text: {samples} windows of {self.length} tokens are asked for and the text gives {available}. Set "
                f"samples: {available}, or null for all there are; or lower sequence_length, or give more text."
            )
        wanted = available if samples is None else samples
        among = available if spread else wanted
        yield from (self._window(tokens, index * among // wanted * self.text_length) for index in range(wanted))

    def _note_few(self, used: int, too_short: int, note: Note) -> None:
        """Say where most documents are too short, so that all windows are of a few."""
        if used * FEW < used + too_short:
            note(
                f"text: all windows are of {used} of the documents, for {too_short} that were looked at are shorter "
                f"than a window of {self.length} tokens. Lower sequence_length, or set order: spread, which joins them"
            )

    def _joined(self, documents: Sequence[str]) -> Sequence[int]:
        """Give the tokens of all documents together, which have to fill a window."""
        tokens = plain_tokens(self.tokenizer, BETWEEN.join(documents))
        if len(tokens) < self.text_length:
            longest = len(tokens) + len(self.begin)
            shorter = f", or set sequence_length: {longest} or less" if longest > 1 else ""
            raise DataError(
                f"text: all of it is {len(tokens)} tokens, and one window needs {self.text_length}. Give more text"
                f"{shorter}."
            )
        return tokens

    def _drawn(self, tokens: Sequence[int], random: Random) -> Int64[Tensor, " tokens"]:
        return self._window(tokens, random.randrange(len(tokens) - self.text_length + 1))

    def _window(self, tokens: Sequence[int], start: int) -> Int64[Tensor, " tokens"]:
        return torch.tensor([*self.begin, *tokens[start : start + self.text_length]], dtype=torch.int64)


def _tokens_at_most(text: str) -> int:
    """Give a number of tokens that a text has at most, by any tokenizer that writes nothing else in its place."""
    return len(text.encode(errors="surrogatepass")) * LONGER[text.isascii()] + BEGUN


def tokenizer_of(adapter: Adapter) -> Any:
    """Give the tokenizer that is an adapter's processor, or the one inside where that is for images and text."""
    tokenizer = getattr(adapter.processor, "tokenizer", adapter.processor)
    if tokenizer is None:
        raise DataError(
            "text: this model came without a tokenizer. Put its tokenizer files beside config.json, or give "
            "ecoflap.run a processor."
        )
    return tokenizer


def plain_tokens(tokenizer: Any, text: str) -> Sequence[int]:
    """Give the tokens of a text and nothing that the tokenizer adds to it.

    A long text is tokenised in pieces that overlap, which takes less memory. One piece is taken up to where
    it and the next have agreed for ``AGREED`` tokens, and the next from there on, so that the tokens are those of the
    whole text: where it was cut is seen no further than a word, or, by a tokenizer that knows no words, than its merges
    reach. Where two pieces never agree, and where a tokenizer does not tell where its tokens are, the text is
    tokenised whole.
    """
    is_told = len(text) > PIECE and getattr(tokenizer, "is_fast", False)
    in_pieces = _tokens_of_pieces(tokenizer, text) if is_told else None
    # verbose would warn that the text is longer than the model reads; it is cut afterwards
    return in_pieces or list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _tokens_of_pieces(tokenizer: Any, text: str) -> Sequence[int] | None:
    """Tokenise a text in pieces; None where two neighbours do not agree on what both of them hold."""
    found = array("i")
    before: list[tuple[int, int, int]] = []
    for start in range(0, len(text), PIECE - OVERLAP):
        piece = _placed_tokens(tokenizer, text, start)
        if start:
            agreed = _agreement(before, piece, start + OVERLAP // 3)
            if agreed is None:
                return None
            found.extend(token for token, _, _ in before[: agreed[0]])
            piece = piece[agreed[1] :]
        before = piece
        if start + PIECE >= len(text):
            break
    found.extend(token for token, _, _ in before)
    return found


def _placed_tokens(tokenizer: Any, text: str, start: int) -> list[tuple[int, int, int]]:
    """Give the tokens of a piece, each with the places in the text where it begins and ends."""
    read = tokenizer(text[start : start + PIECE], add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    places = ((start + first, start + last) for first, last in read["offset_mapping"])
    return [(token, *place) for token, place in zip(read["input_ids"], places, strict=True)]


def _agreement(
    before: Sequence[tuple[int, int, int]], after: Sequence[tuple[int, int, int]], start: int
) -> tuple[int, int] | None:
    """Find where two pieces begin to have the same tokens at the same places, from a place in the text on."""
    numbers = {token: number for number, token in enumerate(before) if token[1] >= start}
    for number, token in enumerate(after):
        other = numbers.get(token)
        if other is not None and before[other : other + AGREED] == after[number : number + AGREED]:
            return (other, number) if len(before) >= other + AGREED else None
    return None


def begin_tokens(tokenizer: Any, bos: Begin) -> tuple[int, ...]:
    """Give the tokens that every window begins with.

    What the tokenizer adds at the beginning of a text is found by asking it for one, with and without. It is what
    True gives too; only a tokenizer that adds nothing gives its begin token alone then.

    :raises DataError: Where a begin token is asked for and the tokenizer has none.
    """
    if bos is False:
        return ()
    added = _added_before(tokenizer, "a")
    if added or bos == "auto":
        return added
    if tokenizer.bos_token_id is None:
        raise DataError(f"text: bos is true, and this {type(tokenizer).__name__} has no begin token. Leave bos out.")
    return (int(tokenizer.bos_token_id),)


def _added_before(tokenizer: Any, text: str) -> tuple[int, ...]:
    """Give what a tokenizer puts before the tokens of a text."""
    whole, plain = list(tokenizer(text)["input_ids"]), list(plain_tokens(tokenizer, text))
    places = range(len(whole) - len(plain) + 1)
    at = next((place for place in places if plain and whole[place : place + len(plain)] == plain), None)
    if at is None:
        kind = type(tokenizer).__name__
        raise DataError(
            f"text: this {kind} makes other tokens of a text when it adds none of its own, so what it begins a text "
            f"with is not known. Set bos: true for its begin token, or bos: false."
        )
    return tuple(whole[:at])
