"""What follows from no input is computed while a graph is made, and whatever looks at an input in Python is named."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.adapters.views.at_once import ComputedAtOnce, ListOfOne, SizesAsNumbers
from ecoflap.adapters.views.graphs import ran_empty, why_no_graph
from ecoflap.adapters.views.impossible import COMPLEX
from ecoflap.adapters.views.masks import broadcast_masks
from ecoflap.core.contracts.records import View


class Grid(nn.Module):
    """Looks in Python at a grid, in every way that a vision tower of transformers does."""

    def forward(self, pixels: Tensor) -> tuple[Tensor]:
        with ComputedAtOnce():
            grid = torch.tensor([[2, 3], [1, 2]])
            lengths = (grid[:, 0] * grid[:, 1]).tolist()
            parts = [part.mean(0) for part in torch.split(pixels, lengths)]
            height, width = grid[0]
            seen = torch.stack(parts).squeeze(0)[:, : grid[1, 1]].reshape(height, -1)
            torch._check_tensor_all((grid.prod(1) > 0) & (pixels.sum() == pixels.sum()))
            return (1.0 - seen + torch.arange(int(width) - 1).sum() + grid.unique_consecutive().numel(),)


class Asking(nn.Module):
    def forward(self, ids: Tensor) -> tuple[Tensor]:
        if (ids == 3).any():
            ids = ids + 1
        return (ids,)


class Turning(nn.Module):
    def forward(self, angles: Tensor) -> tuple[Tensor]:
        return (torch.polar(torch.ones_like(angles), angles).real,)


class Marking(nn.Module):
    """Marks places by their numbers, as a sparse attention does what it chose."""

    def forward(self, places: Tensor) -> tuple[Tensor]:
        with ComputedAtOnce():
            none = torch.zeros(places.shape[0], 9, dtype=torch.bool)
            some = none.scatter(1, places, True)
            return (some.scatter_(dim=1, index=places[:, :1] + 1, value=False),)


def view(module: nn.Module, example: Tensor) -> View:
    return View("all", module, {"one": example}, {"one": example}, ("made",), {})


@pytest.mark.filterwarnings("ignore:.*get_attr:UserWarning")  # torch 2.6 warns of constants that it put there itself
def test_a_graph_is_made_of_what_looks_at_a_grid():
    pixels = torch.randn(8, 4)
    (expected,) = Grid()(pixels)
    program = torch.export.export(Grid(), (pixels,), strict=False)
    torch.testing.assert_close(program.module()(pixels)[0], expected)
    assert why_no_graph(view(Grid(), pixels), "onnx") is None


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_trace_marks_places_with_numbers():
    places = torch.tensor([[1, 4], [0, 7]])
    (expected,) = Marking()(places)
    assert expected.nonzero().tolist() == [[0, 1], [0, 4], [1, 0], [1, 7]]
    traced = torch.jit.trace(Marking(), (places,))
    other = places.flip(0) + 1
    assert torch.equal(traced(other)[0], Marking()(other)[0])


def test_what_looks_at_an_input_is_named():
    why = why_no_graph(view(Asking(), torch.arange(4)), "torchscript")
    assert why is not None
    assert why.startswith("test_at_once.py:")
    assert why.endswith(
        "(if (ids == 3).any():) looks at numbers of an input in Python, which torch cannot put into a graph"
    )
    broken = why_no_graph(view(nn.Linear(3, 3), torch.randn(2, 4)), "onnx")
    assert broken is not None
    assert "cannot run without numbers: RuntimeError" in broken


def test_complex_numbers_are_none_of_onnx():
    assert why_no_graph(view(Turning(), torch.randn(3)), "onnx") == COMPLEX
    assert why_no_graph(view(Turning(), torch.randn(3)), "torchscript") is None


def test_nothing_is_computed_with_weights():
    module = nn.Linear(3, 10**9, device="meta")
    assert tuple(ran_empty(module, torch.randn(2, 3)).shape) == (2, 10**9)


def test_sizes_are_numbers_in_a_trace():
    seen: list[type] = []

    def rounded(one: Tensor) -> Tensor:
        with SizesAsNumbers():
            seen.append(type(one.shape[0]))
            return one * round(one.shape[0] * 0.5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(rounded, (torch.ones(4),), check_trace=False)
    assert seen[0] is int
    assert torch.equal(traced(torch.ones(4)), 2 * torch.ones(4))


def test_a_list_of_images_is_of_one_part_for_any_number():
    def strung(vectors: Tensor) -> tuple[Tensor]:
        with ListOfOne():
            parts = list(vectors)
        assert len(parts) == 1
        return (torch.cat(parts, 0),)

    class Strung(nn.Module):
        def forward(self, vectors: Tensor) -> tuple[Tensor]:
            return strung(vectors)

    program = torch.export.export(
        Strung(), (torch.randn(2, 3, 4),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    more = torch.randn(5, 3, 4)
    assert torch.equal(program.module()(more)[0], torch.cat(list(more), 0))
    with ListOfOne():
        assert len(list(torch.ones(3, dtype=torch.int64))) == 3, "others are lists as ever"


def test_masks_that_are_broadcast_are_those_that_are_mapped():
    masking: Any = pytest.importorskip("transformers.masking_utils")
    if not hasattr(masking, "_non_vmap_expansion_sdpa"):
        pytest.skip("this version of transformers makes no mask of places that are broadcast")
    groups = torch.tensor([[-1, 0, 0, 1, -1], [0, 0, -1, -1, -1]])
    together = masking.and_masks(
        masking.sliding_window_overlay(3),
        masking.or_masks(masking.causal_mask_function, masking.blockwise_overlay(groups)),
    )
    sizes = {"batch_size": 2, "q_length": 5, "kv_length": 5, "mask_function": together}
    sizes |= {"use_vmap": True, "allow_is_causal_skip": False}
    mapped, before = masking.sdpa_mask(**sizes), masking._vmap_expansion_sdpa
    with broadcast_masks():
        made = masking.sdpa_mask(**sizes)
        assert masking._vmap_expansion_sdpa is not before
    assert masking._vmap_expansion_sdpa is before
    assert torch.equal(made.expand_as(mapped), mapped)
    assert 0 < int(mapped.sum()) < mapped.numel()
