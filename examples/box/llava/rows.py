"""Put an image and several questions about it into one row, so that the image is read once for all of them.

The questions stand side by side behind the image's tokens. A mask lets each see the image and itself and no other, and
each is numbered as though it came first, so the row gives every answer what a row of its own would give it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from jaxtyping import Float, Int64
from questions import Asked
from seen import TOKENS
from torch import Tensor, nn
from torch.nn import functional as F

PROMPT = "\nQuestion: {} Answer:"


@dataclass(frozen=True)
class Written:
    """A question as tokens.

    :param read: What the model reads: the question and its answer.
    :param before: How many of them stand before the answer.
    :param said: The answer and its end.
    """

    read: tuple[int, ...]
    before: int
    said: tuple[int, ...]


class Writer:
    """Writes questions as tokens, each text once."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.written = cache(self._written)

    def _written(self, question: str, answer: str) -> Written:
        asked = self.tokenizer(PROMPT.format(question))["input_ids"]
        said = self.tokenizer(f" {answer}")["input_ids"]
        return Written((*asked, *said), len(asked), (*said, self.tokenizer.eos_token_id))

    def of(self, asked: Asked) -> Written:
        return self.written(asked.question, asked.answer)


@dataclass(frozen=True)
class Rows:
    """A batch of rows, without the images.

    :param ids: Of all that follows the image; 0 where a row has ended.
    :param places: Of each token of a row, the image's too.
    :param owner: Which question a token belongs to: 0 is the image, -1 is nobody.
    :param at: Where, in the flattened batch, a token of an answer is foretold.
    :param said: That token.
    :param of: The row and the question that it belongs to.
    """

    ids: Int64[Tensor, "row token"]
    places: Int64[Tensor, "row whole"]
    owner: Int64[Tensor, "row whole"]
    at: Int64[Tensor, " said"]
    said: Int64[Tensor, " said"]
    of: Sequence[tuple[int, int]]

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 whole whole"]:
        """Give what is added to the attention: nothing, or as much as the type can hold below zero."""
        length = self.owner.shape[1]
        same = self.owner[:, :, None] == self.owner[:, None, :]
        seen = (same | (self.owner[:, None, :] == 0)) & torch.ones(length, length, dtype=torch.bool).tril()
        seen |= torch.eye(length, dtype=torch.bool)
        return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]


def in_rows(asked: Sequence[Sequence[Written]], length: int | None = None) -> Rows:
    """Lay the questions of each image side by side, in rows of one length."""
    longest = TOKENS + max(sum(len(one.read) for one in row) for row in asked)
    shape = (len(asked), length or longest)
    ids, places, owner = torch.zeros(shape).long(), torch.zeros(shape).long(), torch.full(shape, -1)
    places[:, :TOKENS], owner[:, :TOKENS] = torch.arange(TOKENS), 0
    foretold: list[tuple[int, int, tuple[int, int]]] = []
    for row, questions in enumerate(asked):
        start = TOKENS
        for number, one in enumerate(questions):
            whole = slice(start, start + len(one.read))
            ids[row, whole] = torch.tensor(one.read)
            places[row, whole] = torch.arange(TOKENS, TOKENS + len(one.read))
            owner[row, whole] = number + 1
            first = row * shape[1] + start + one.before - 1
            foretold += [(first + offset, token, (row, number)) for offset, token in enumerate(one.said)]
            start += len(one.read)
    at, said, of = zip(*foretold, strict=True)
    return Rows(ids[:, TOKENS:], places, owner, torch.tensor(at), torch.tensor(said), of)


def foretell(model: Any, projector: nn.Module, patches: Tensor, rows: Rows) -> Float[Tensor, "said token"]:
    """Give the logits of every token of the answers."""
    words = model.get_input_embeddings().weight
    read = torch.cat([projector(patches.float()).to(words.dtype), F.embedding(rows.ids, words)], 1)
    whole = model.model(
        inputs_embeds=read, attention_mask=rows.mask(words.dtype), position_ids=rows.places, use_cache=False
    )
    return F.linear(whole.last_hidden_state.flatten(0, 1)[rows.at], words).float()


def answered(logits: Float[Tensor, "said token"], rows: Rows) -> dict[tuple[int, int], bool]:
    """Tell of each question whether every token of its answer, and the end, is the likeliest."""
    right: dict[tuple[int, int], bool] = {}
    for owner, hit in zip(rows.of, (logits.argmax(-1) == rows.said).tolist(), strict=True):
        right[owner] = right.get(owner, True) and hit
    return right
