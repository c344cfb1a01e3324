"""Watching a model run, on models made by hand whose every use of a matrix is known."""

import pytest
import torch
from torch import Tensor, nn

from ecoflap.adapters.generic.watching.layers_seen import PRECISE, ROUTER, SHARED, Texts
from ecoflap.adapters.generic.watching.probe import _vectors
from ecoflap.adapters.generic.watching.stacks import stacks_of
from ecoflap.adapters.generic.watching.taken_apart import (
    BETWEEN,
    IDLE,
    OVERWRITTEN,
    TABLE,
    UNUSED,
    TakenApart,
    take_apart,
)
from ecoflap.adapters.generic.watching.watch import Watch
from ecoflap.adapters.hubs.weightless import lent_weights
from ecoflap.core.errors import ModelError

ROWS, LENGTH, WIDTH = 2, 5, 4


class Seeing(nn.Module):
    """Makes seven vectors of each image by itself, of images in its own type alone."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 1)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        return self.patches(pixel_values).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vectors_of_images_are_counted_in_the_type_of_the_model(dtype: torch.dtype):
    images = {"pixel_values": torch.randn(ROWS, 3, 1, 7)}
    with torch.no_grad():
        assert _vectors(Seeing().to(dtype), images) == 7


class Mixing(nn.Module):
    """Every way to apply a matrix: as it is, transposed, in rows, as one of several, and one to choose by."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Linear(WIDTH, 6, bias=False)
        self.turned = nn.Parameter(torch.randn(6, WIDTH))
        self.packed = nn.Parameter(torch.randn(2 * WIDTH, WIDTH))
        self.experts = nn.Parameter(torch.randn(3, WIDTH, WIDTH))
        self.router = nn.Linear(WIDTH, 3, bias=False)
        self.idle = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, other: Tensor | None = None) -> Tensor:
        hidden = self.plain(hidden) @ self.turned
        first = nn.functional.linear(hidden, self.packed[:WIDTH])
        second = nn.functional.linear(hidden if other is None else other, self.packed[WIDTH:]).mean(1, keepdim=True)
        chosen = self.router(hidden).topk(1).indices.flatten()[0]
        return first + second + hidden @ self.experts[chosen]


class Stacked(nn.Module):
    """A tower that sees, whose first block the tower that says reads again; one block of each is idle."""

    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)) for _ in range(3))
        self.merger = nn.Linear(WIDTH, WIDTH)
        self.between = nn.Linear(WIDTH, WIDTH)
        self.text = nn.ModuleList([Mixing(), Mixing(), Mixing()])
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        first = self.vision[0](pixels)
        second = self.vision[1](self.between(first))
        self.vision[2](second)  # of no use
        hidden = self.text[0](words) + self.merger(second).mean(1, keepdim=True)
        return self.head(self.text[1](hidden, first))


def taken_apart(model: nn.Module) -> TakenApart:
    given = {"pixels": torch.randn(ROWS, 9, WIDTH), "words": torch.randn(ROWS, LENGTH, WIDTH)}
    stacks = [*stacks_of(model)]
    blocks = {name: block for stack in stacks for name, block in zip(stack.names, stack.blocks, strict=True)}
    with torch.no_grad(), lent_weights(model):
        watch = Watch(model, blocks, given)
        with watch.on():
            result = model(**given)
    return take_apart(model, stacks, watch.result(result), Texts(ROWS, {"language": LENGTH}))


def test_every_use_of_a_matrix_is_told_with_and_without_weights():
    with torch.device("meta"):
        weightless = Stacked()
    for model in (Stacked(), weightless):
        found = taken_apart(model)
        block = next(tower for tower in found.towers if tower.name == "language").blocks[1]
        layers = {layer.name.removeprefix("text.1."): layer for layer in block.layers}  # type: ignore[attr-defined]
        told = {name: (layer.layout, layer.reads, layer.part, layer.transposed) for name, layer in layers.items()}
        assert told == {
            "plain.weight": ("batch token", "", None, False),
            "turned": ("batch token", "", None, True),
            "packed[0:4]": ("batch token", "", (0, 4), False),
            "packed[4:8]": ("selected", "vision", (4, 8), False),
            **{f"experts[{number}]": ("routed", "", number, True) for number in range(3)},
        }
        assert layers["turned"].shape == (WIDTH, 6)
        assert found.left_out["text.1.router.weight"] == ROUTER


class Grouped(nn.Linear):
    """Multiplies the rows of its weight in two groups, each with features of its own."""

    def forward(self, hidden: Tensor) -> Tensor:
        weight = self.weight.view(2, -1, self.in_features).transpose(1, 2)
        grouped = hidden.reshape(-1, 2, self.in_features).transpose(0, 1)
        return torch.bmm(grouped, weight).transpose(0, 1).reshape(*hidden.shape[:2], -1)


class TableRouter(nn.Module):
    """Weighs two experts that a table has chosen, so that nothing is chosen by its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.weight)[..., [0, 2]].softmax(-1)


class Streaming(nn.Module):
    """A block of several hidden states a token, behind its tokens, mixed by what is kept in 32 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.mixes = nn.Linear(2 * WIDTH, 2, bias=False)
        self.grouped = Grouped(2, 6, bias=False)
        self.gate = TableRouter()
        self.back = nn.Linear(6, WIDTH, bias=False)

    def forward(self, streams: Tensor) -> Tensor:
        mixed = (streams * self.mixes(streams.flatten(2)).unsqueeze(-1)).sum(2)
        said = self.back(self.grouped(mixed)) * self.gate(mixed).sum(-1, keepdim=True)
        return streams + said.unsqueeze(2)


class Streams(nn.Module):
    _keep_in_fp32_modules_strict = ("mixes", "head")

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleList([Streaming(), Streaming()])
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        streams = words.unsqueeze(2).expand(-1, -1, 2, -1)
        for block in self.text:
            streams = block(streams)
        return self.head(streams.sum(2))


def test_rows_with_inputs_of_their_own_are_layers_and_what_only_mixes_or_weighs_is_none():
    found = taken_apart(Streams())
    tower, head = found.towers
    told = {layer.name: (layer.layout, layer.part) for layer in tower.blocks[1].layers}  # type: ignore[attr-defined]
    assert tower.name == "language"
    assert told == {
        "text.1.grouped.weight[0:3]": ("batch token", (0, 3)),
        "text.1.grouped.weight[3:6]": ("batch token", (3, 6)),
        "text.1.back.weight": ("batch token", None),
    }
    assert found.left_out["text.1.mixes.weight"] == PRECISE
    assert found.left_out["text.1.gate.weight"] == ROUTER
    assert [layer.name for layer in head.blocks[0].layers] == ["head.weight"]  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("shape", "tower"),
    [((2, 5, 8), "language"), ((4, 2, 5, 8), "language"), ((2, 5, 4, 8), "language"), ((2, 5, 5, 8), None)],
)
def test_states_side_by_side_are_a_texts_and_a_square_of_patches_is_none(shape: tuple[int, ...], tower: str | None):
    assert Texts(2, {"language": 5}).of(shape) == tower


class Adding(nn.Module):
    """Reads beside its hidden states what was made of the model's inputs alone, once for each of its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.own, self.beside = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, made: Tensor) -> Tensor:
        return self.own(hidden) + self.beside(made)


class Hashing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.text = nn.ModuleList([Adding(), Adding()])

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        made = 2 * words
        return self.text[1](self.text[0](words, made), made) + pixels.sum()


def test_what_is_made_of_the_inputs_alone_lies_as_the_text_does():
    (tower,) = taken_apart(Hashing()).towers
    told = {(layer.layout, layer.reads) for block in tower.blocks for layer in block.layers}  # type: ignore[attr-defined]
    assert told == {("batch token", "")}


@pytest.mark.parametrize("axis", [0, 1])
def test_matrices_that_lie_in_one_storage_are_told_apart(axis: int):
    """As those are that transformers cuts out of one tensor of a checkpoint."""
    model = Hashing()
    for block in model.text:
        first, second = torch.randn((2 * WIDTH, WIDTH) if axis == 0 else (WIDTH, 2 * WIDTH)).chunk(2, axis)
        block.own.weight, block.beside.weight = nn.Parameter(first), nn.Parameter(second)
    (tower,) = taken_apart(model).towers
    told = [(layer.name, layer.part) for block in tower.blocks for layer in block.layers]  # type: ignore[attr-defined]
    assert told == [(f"text.{number}.{name}.weight", None) for number in range(2) for name in ("own", "beside")]


class Merged(nn.Module):
    """Multiplies what it reads of another tower by the matrix that its own tokens are multiplied by."""

    def __init__(self) -> None:
        super().__init__()
        self.key, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor, seen: Tensor) -> Tensor:
        return self.out(self.key(hidden) + self.key(seen).mean(1, keepdim=True))


class Crossing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision = nn.ModuleList(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU()) for _ in range(2))
        self.text = nn.ModuleList([Merged(), Merged()])

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        seen = self.vision[1](self.vision[0](pixels))
        return self.text[1](self.text[0](words, seen), seen)


def test_a_matrix_of_two_towers_is_left_out():
    found = taken_apart(Crossing())
    assert [len(block.layers) for block in found.towers[1].blocks] == [1, 1]  # type: ignore[attr-defined]
    assert found.left_out == {"text.0.key.weight": SHARED, "text.1.key.weight": SHARED}


def test_towers_are_in_the_order_they_run_and_what_does_not_matter_is_left_out():
    found = taken_apart(Stacked())
    assert [(tower.name, len(tower.blocks), tower.outside) for tower in found.towers] == [
        ("vision", 2, False), ("language", 2, False), ("head", 1, True),
    ]  # fmt: skip
    assert [block.name for tower in found.towers for block in tower.blocks if block.tapped] == ["vision.0"]
    assert found.left_out["vision.2"] == UNUSED
    assert found.left_out["text.2"] == f"{IDLE} a text"
    assert found.left_out["between"] == BETWEEN
    assert "merger" in found.left_out or any(tower.name == "merger" for tower in found.towers)


def test_a_forward_that_writes_to_a_weight_is_refused_and_an_output_that_is_written_to_is_no_layer():
    model = Stacked()
    model.merger.register_forward_hook(lambda module, args, output: output.__imul__(2))
    assert taken_apart(model).left_out["merger"] == OVERWRITTEN
    model.head.register_forward_pre_hook(lambda module, args: module.weight.div_(1) and None)
    with pytest.raises(ModelError, match=r"head\.weight is written to by the model's own forward"):
        taken_apart(model)


class Named(Stacked):
    """Multiplies by a matrix outside the blocks, and looks a row of it up besides, as Ovis 2.5 does.

    :param is_embedded: Whether an embedding of its own holds the same weight, as of a head that is tied.
    """

    def __init__(self, is_embedded: bool = False) -> None:
        super().__init__()
        if is_embedded:
            self.table = nn.Embedding(7, WIDTH)
            self.table.weight = self.head.weight

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        mark = nn.functional.embedding(torch.tensor([1]), self.head.weight)
        return super().forward(pixels, words + mark)


def test_a_matrix_that_is_a_table_too_is_left_out_unless_it_is_tied_to_one():
    assert "head" not in taken_apart(Stacked()).left_out
    assert taken_apart(Named()).left_out["head"] == TABLE
    assert "head" not in taken_apart(Named(is_embedded=True)).left_out


def test_nothing_of_a_model_is_changed_by_watching_it():
    with torch.device("meta"):
        model = Stacked()
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    taken_apart(model)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
