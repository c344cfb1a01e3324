"""What no file can hold of a model is seen before there are weights."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.adapters.views.impossible import views_impossible
from ecoflap.adapters.views.view import TEXT_AXES, Example, view
from ecoflap.core.contracts.records import View


class Reading(nn.Module):
    """Reads words, at most so many where there are positions."""

    def __init__(self, positions: int = 1000) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(20, 8), nn.Embedding(positions, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        return (self.head(self.mixed(hidden * attention_mask[..., None])),)

    def mixed(self, hidden: Tensor) -> Tensor:
        return hidden


class Recurrent(Reading):
    """Goes over its text a word at a time."""

    def mixed(self, hidden: Tensor) -> Tensor:
        state, states = hidden[:, 0], [hidden[:, 0]]
        for at in range(1, hidden.shape[1]):
            state = 0.5 * state + hidden[:, at]
            states.append(state)
        return torch.stack(states, 1)


class InChunks(Reading):
    """Does so in chunks that are longer than either example."""

    def mixed(self, hidden: Tensor) -> Tensor:
        return torch.cat([chunk.cumsum(1) for chunk in hidden.split(64, 1)], 1)


class Turning(Reading):
    def mixed(self, hidden: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(hidden.unflatten(-1, (4, 2))) * 1j).flatten(-2)


class Scaling(Reading):
    """Holds rotary positions of a kind that follows the length of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.rope = nn.Module()
        self.rope.rope_type = "dynamic"  # type: ignore[assignment]


class Filling(Reading):
    """Fills its text up to a multiple of eight, which is that of the example."""

    def mixed(self, hidden: Tensor) -> Tensor:
        lacking = -hidden.shape[1] % 8
        return nn.functional.pad(hidden, (0, 0, 0, lacking))[:, : hidden.shape[1]]


class Choosing(Reading):
    """Runs the experts that are chosen by the words, one after another."""

    def mixed(self, hidden: Tensor) -> Tensor:
        made = torch.zeros_like(hidden)
        for chosen in (hidden.sum((0, 1)) >= 0).nonzero():
            made += hidden * chosen
        return made


class Failing(Reading):
    def mixed(self, hidden: Tensor) -> Tensor:
        raise ValueError("no such thing")


class Branching(Reading):
    """Goes another way for a text of another length than the example's, on which it fails without weights."""

    def __init__(self, error: type[Exception], lengths: range) -> None:
        super().__init__()
        self.error, self.lengths = error, lengths

    def mixed(self, hidden: Tensor) -> Tensor:
        if hidden.shape[1] in self.lengths:
            raise self.error("no such thing")
        return hidden


def view_of(module: nn.Module, name: str = "decoder") -> View:
    def made(example: Example) -> dict[str, Tensor]:
        ids = example.ids(20, example.batch, example.length)
        return {"input_ids": ids, "attention_mask": example.mask(*ids.shape)}

    return view(name, module, made, ("logits",), {"input_ids": TEXT_AXES, "attention_mask": TEXT_AXES})


def why_not(module: Any, exporter: str = "onnx", most: int | None = None) -> str:
    return views_impossible([view_of(module.to("meta"))], exporter, most).get("decoder", "")


@pytest.mark.parametrize("positions", [8, 20, 1000])
def test_nothing_is_said_of_what_runs_alike_at_every_length(positions: int):
    assert why_not(Reading(positions)) == ""


@pytest.mark.parametrize("kind", [Recurrent, InChunks])
@pytest.mark.parametrize("exporter", ["onnx", "torchscript"])
def test_a_loop_over_the_text_is_seen(kind: type[Reading], exporter: str):
    assert "it runs in a loop over its text" in why_not(kind(), exporter)


def test_no_text_is_longer_than_the_model_reads():
    """Up to 64 words it is one chunk, and a file of that is right."""
    assert why_not(InChunks(), most=64) == ""
    assert "in a loop" in why_not(InChunks(), most=65 * 8)
    assert "in a loop" in why_not(InChunks(positions=200)), "positions may be fewer than the configuration says"


def test_a_text_that_is_filled_up_is_seen():
    assert "fills its text up to a multiple" in why_not(Filling())
    assert "fills its text up to a multiple" in why_not(Filling(), most=8)


def test_a_loop_over_experts_that_were_chosen_is_seen():
    assert "a loop over the experts that a router chose" in why_not(Choosing(), "torchscript")


def test_complex_numbers_are_refused_for_onnx_alone():
    assert "complex numbers" in why_not(Turning(), "onnx")
    assert why_not(Turning(), "torchscript") == ""


def test_positions_that_change_with_the_length_are_seen():
    assert "rope_type: dynamic" in why_not(Scaling())


def test_what_does_not_run_is_named_with_its_error():
    assert why_not(Failing()) == "it does not run on an example: ValueError: no such thing"


@pytest.mark.parametrize("lengths", [range(9, 1000), range(100, 1000), range(8)])
def test_what_fails_at_another_length_for_another_reason_than_that_is_named_with_its_error(lengths: range):
    assert why_not(Branching(TypeError, lengths)) == (
        "whether a file of it is right for texts of other lengths could not be checked: TypeError: no such thing"
    )
    assert why_not(Branching(ValueError, lengths)) == "", "a model's own word for a length that it does not read"


def test_a_step_with_a_cache_goes_the_way_of_the_text_without_one():
    views = [view_of(Recurrent()), view_of(Reading(), "decoder_with_past"), view_of(Reading(), "encoder")]
    found = views_impossible(views, "onnx", None)
    assert set(found) == {"decoder", "decoder_with_past"}
    assert len(set(found.values())) == 1


def test_a_model_with_weights_is_as_it_was():
    module = Reading()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    assert views_impossible([view_of(module)], "onnx", None) == {}
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
