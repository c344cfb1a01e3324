"""Compare a TorchScript file, as ``torch.jit.load`` reads it, with the view of the model that it was made from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ecoflap.core.contracts.records import Check, View
from ecoflap.core.errors import FormatError, ModelError
from ecoflap.exporters.shared.comparison import Comparison, equal_entries, sizes_text
from ecoflap.exporters.torchscript.store import quiet
from ecoflap.exporters.torchscript.trace import to_be_run


def check_file(path: Path, view: View, packed: Sequence[tuple[str, Tensor] | None], tolerance: float) -> Check:
    """Compare a file's packed weights with the model's exactly, and its outputs within a tolerance.

    :param packed: Name and weight of each that is packed, in the order of the file; None for one that it does not hold.
    :param tolerance: In shares of the largest magnitude of an output.
    :raises ModelError: Where the file is not the model; it is removed.
    """
    try:
        with quiet(), torch.no_grad():
            loaded = torch.jit.load(path)
            _check_weights(path, loaded, packed)
            return _comparison(view, loaded).check(path.name, tolerance, _way_out(view))
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _check_weights(path: Path, loaded: Any, packed: Sequence[tuple[str, Tensor] | None]) -> None:
    for written, store in zip(packed, loaded.weights.children(), strict=True):
        if written is not None:
            name, weight = written
            if store.weight.dtype != weight.dtype or not equal_entries(store.weight, weight).all():
                raise FormatError(f"{path.name}: {name} reads back other than it was written")


def _comparison(view: View, loaded: Any) -> Comparison:
    return Comparison(
        view,
        (view.inputs, view.other),
        model=lambda inputs: _run_model(view, inputs),
        file=lambda inputs: _run_file(view, loaded, inputs),
        runtime=f"torch.jit {torch.__version__}",
    )


def _run_model(view: View, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    with to_be_run(view.module):
        outputs: Sequence[Tensor] = view.module(*inputs.values())
    return outputs


def _run_file(view: View, loaded: Any, inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
    try:
        outputs: Sequence[Tensor] = loaded(*inputs.values())
    except (RuntimeError, torch.jit.Error) as error:
        raise ModelError(
            f"view {view.name!r} cannot be exported to TorchScript: what was traced does not run on "
            f"{sizes_text(inputs)}: {error}"
        ) from error
    return outputs


def _way_out(view: View) -> str:
    return (
        f"A trace cannot follow a model that does something else at other sizes: leave {view.name!r} out with "
        "`views: […]`, or use another exporter."
    )
