"""What a model computes in types that ONNX or onnxruntime lacks is in the file to the bit: bfloat16, int32 indices."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ecoflap.core.contracts.protocols import Adapter, PrunedModel
from ecoflap.core.contracts.records import View
from ecoflap.core.model.anatomy import Block, Layer, Tower

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from ecoflap.exporters.onnx.exporter import Onnx


class Slopes(nn.Module):
    """Adds a bias by distance, as Falcon makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.register_buffer("slopes", torch.tensor([0.7071, 0.0039, 0.3333]))

    def forward(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        slopes = self.slopes[:, None].bfloat16()  # type: ignore[index]
        product = slopes * places
        quotient = (slopes + 1) / (slopes - 3)
        return self.inner(hidden), product.float(), quotient.float() * places


class Bounded(nn.Module):
    """Cuts a bias as MPT does, by sizes of which torch's solver says that they do not fit."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        scores, keys = hidden @ hidden.transpose(1, 2), hidden.shape[1]
        bias = torch.arange(-63, 1).float().view(1, 1, 64)
        bias = bias[:, max(0, bias.size(1) - 2 * keys - places.shape[0]) :, max(0, bias.size(2) - keys) :]
        return (self.inner((scores + bias) @ hidden) + places.sum(),)


class Pooled(nn.Module):
    """Takes rows by an index in int32, as Molmo 2 does patches."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, places: Tensor) -> tuple[Tensor, ...]:
        made = self.inner(hidden)
        row = places.int() % 3
        return (made[torch.zeros_like(row), row],)


class Plain(Adapter):
    processor: Any = None

    def __init__(self, outputs: int) -> None:
        self.outputs = tuple(f"output_{at}" for at in range(outputs))

    def towers(self, model: nn.Module) -> list[Tower]:
        return [Tower("text", (Block("inner", model, "text"),))]

    def layers(self, block: Block) -> list[Layer]:
        return [Layer("inner.weight", block.module.inner)]  # type: ignore[arg-type]

    def export_views(self, model: nn.Module) -> list[View]:
        inputs, other = (
            {
                "hidden": torch.randn(2, size, 8, generator=torch.Generator().manual_seed(size)),
                "places": torch.arange(n),
            }
            for size, n in ((5, 7), (9, 11))
        )
        axes = {"hidden": {1: "sequence"}, "places": {0: "places"}}
        return [View("text", model, inputs, other, self.outputs, axes)]


def exported(module: nn.Module, outputs: int, folder: Path) -> list[Tensor]:
    """What the file gives on the other example."""
    import onnxruntime

    adapter = Plain(outputs)
    mask = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    module.inner.weight.data *= mask  # type: ignore[union-attr, operator]
    written = Onnx(tolerance=1e-5)(PrunedModel(module.eval(), adapter, {"inner.weight": mask}), folder)
    session = onnxruntime.InferenceSession(str(written.files[0]), providers=["CPUExecutionProvider"])
    assert [axis for value in session.get_inputs() for axis in value.shape] == [2, "sequence", 8, "places"]
    (view,) = adapter.export_views(module)
    made = session.run(list(view.outputs), {name: tensor.numpy() for name, tensor in view.other.items()})
    return [torch.from_numpy(one) for one in made]


def test_arithmetic_in_bfloat16_is_rounded_as_torch_does(tmp_path: Path):
    module = Slopes()
    found = exported(module, 3, tmp_path)
    with torch.no_grad():
        _, product, quotient = module(*Plain(3).export_views(module)[0].other.values())
    assert torch.equal(found[1], product)
    assert torch.equal(found[2], quotient)
    assert not torch.equal(product, module.slopes[:, None] * torch.arange(11)), "it is rounded"


@pytest.mark.parametrize("kind", [Bounded, Pooled])
def test_sizes_without_the_solvers_proof_and_an_index_in_int32_are_those_of_the_model(kind: Any, tmp_path: Path):
    module = kind()
    (found,) = exported(module, 1, tmp_path)
    with torch.no_grad():
        (wanted,) = module(*Plain(1).export_views(module)[0].other.values())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
