"""Compares a TorchScript file, as ``torch.jit.load`` reads it, with the view of the model that it was made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ecoflap.core.contracts.records import Check, View
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.exporters.torchscript.store import quiet
from ecoflap.exporters.torchscript.trace import to_be_run


class _Difference(NamedTuple):
    """:param scale: The largest magnitude of the output in the model."""

    output: str
    largest: float
    scale: float

    @property
    def share(self) -> float:
        return self.largest and (self.largest / self.scale if self.scale else float("inf"))


def check_file(path: Path, view: View, packed: Sequence[tuple[str, Tensor] | None], tolerance: float) -> Check:
    """Its packed weights exactly, and its outputs on both examples.

    :param packed: Name and weight of each that is packed, in the order of the file; None for one that it does not hold.
    :param tolerance: In shares of the largest magnitude of an output.
    :raises ModelError: Where it is not the model; the file is removed.
    """
    try:
        with quiet(), torch.no_grad():
            loaded = torch.jit.load(path)
            _check_weights(path, loaded, packed)
            found = [one for given in (view.inputs, view.other) for one in _differences(loaded, view, given)]
        worst = max(found, key=lambda one: one.share)
        if not worst.share <= tolerance:
            raise ModelError(_too_far(path, view, worst, tolerance))
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return Check(path.name, view.name, f"torch.jit {torch.__version__}", worst.largest, tolerance * worst.scale)


def _check_weights(path: Path, loaded: Any, packed: Sequence[tuple[str, Tensor] | None]) -> None:
    for written, store in zip(packed, loaded.weights.children(), strict=True):
        if written is not None:
            name, weight = written
            if store.weight.dtype != weight.dtype or not _same(store.weight, weight).all():
                raise FormatError(f"{path.name}: {name} reads back other than it was written")


def _differences(loaded: Any, view: View, given: Mapping[str, Tensor]) -> list[_Difference]:
    with to_be_run(view.module):
        expected = view.module(*given.values())
    try:
        found = loaded(*given.values())
    except (RuntimeError, torch.jit.Error) as error:
        sizes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in given.items())
        raise ModelError(
            f"view {view.name!r} cannot be exported to TorchScript: what was traced does not run on {sizes}: {error}"
        ) from error
    return [_difference(*pair) for pair in zip(view.outputs, expected, found, strict=True)]


def _difference(name: str, expected: Tensor, found: Tensor) -> _Difference:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return _Difference(name, float("inf"), 0.0)
    wanted = expected.double()
    apart = (wanted - found.double()).abs().nan_to_num(float("inf")).masked_fill(_same(expected, found), 0)
    finite = wanted.abs().masked_fill(~wanted.isfinite(), 0)
    return _Difference(name, *(float(one.max()) if one.numel() else 0.0 for one in (apart, finite)))


def _same(one: Tensor, other: Tensor) -> Tensor:
    return (one == other) | (one.isnan() & other.isnan())


def _too_far(path: Path, view: View, worst: _Difference, tolerance: float) -> str:
    return (
        f"{path.name}: output {worst.output!r} of the loaded file is up to {worst.largest:.3g} from the model's, "
        f"{worst.share:.3g} of its largest magnitude, where tolerance is {tolerance:g}. The file was removed. A trace "
        f"cannot follow a model that does something else at other sizes: leave {view.name!r} out with `views: […]`, or "
        "use another exporter."
    )
