"""Keep what an evaluator remembers of the dense model in a sealed file, until it is given it with the pruned model.

The file is written before the line in ``evaluations.jsonl`` that knows its seal: a line has its file, and a file
without a line is of a process that was killed in between, and is written anew by the next.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from ecoflap.core.contracts.answers import is_text, shown
from ecoflap.core.disk.safetensors_header import NAMES
from ecoflap.core.disk.whole_files import link_or_copy, whole_file
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import EcoflapError, FormatError, first_of
from ecoflap.core.sealing.sealed import Sealed, SealedTensor, open_sealed, with_way_out, write_sealed
from ecoflap.core.strides import layout_but_dense

DENSE = "dense"
"""The folder of a run that holds the files."""

_FORMAT = "ecoflap.remembered"
_WAY_OUT = "Restore the file, or delete it and run again: the dense model is then evaluated anew."


def write_remembered(path: Path, evaluator: str, found: Any) -> str:
    """Write what an evaluator remembers of the dense model.

    :param evaluator: Its name.
    :param found: What it gave, as its author may have it wrong.
    :return: The file's seal.
    :raises EcoflapError: Where that is no mapping of tensors by names.
    """
    named = found if isinstance(found, Mapping) else {}
    wrong = [] if named else [found]
    wrong += [name for name in named if not is_text(name)]
    wrong += [one for one in named.values() if not isinstance(one, Tensor)]
    if wrong:
        raise EcoflapError(
            f"the evaluator {evaluator}, asked for what to remember, answered with {shown(wrong[0])}; it gives a "
            f"tensor by each name, one at least"
        )
    kinds = {name: layout_but_dense(one) or dtype_name(one.dtype) for name, one in named.items()}
    if unkept := [f"{name} is {kinds[name]}" for name, one in named.items() if not _is_held(one)]:
        raise EcoflapError(
            f"the evaluator {evaluator}, asked for what to remember, gave what no file holds: {first_of(unkept)}. "
            f"Have it give dense tensors of numbers, as tensor.to_dense() and torch.view_as_real(tensor) are"
        )
    tensors = {name: SealedTensor(one.dtype, tuple(one.shape), one.detach) for name, one in named.items()}
    return write_sealed(path, _FORMAT, evaluator, tensors)


def _is_held(tensor: Tensor) -> bool:
    """Say whether a file can hold a tensor."""
    return not layout_but_dense(tensor) and tensor.dtype in NAMES


class _Remembered(Mapping[str, Tensor]):
    """Reads a tensor when it is asked for; one that is damaged is refused with its file."""

    def __init__(self, file: Sealed) -> None:
        self._file = file

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._file.hashes:
            raise KeyError(name)
        with with_way_out(_WAY_OUT):
            return self._file.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file.hashes)

    def __len__(self) -> int:
        return len(self._file.hashes)


@contextmanager
def open_remembered(path: Path, seal: str) -> Iterator[Mapping[str, Tensor]]:
    """Give what is remembered, for as long as the context lasts.

    :param seal: That of the file that was written.
    :raises FormatError: Where it is missing, damaged or another, then or when a tensor is read.
    """
    with _opened(path, seal) as file:
        yield _Remembered(file)


def check_remembered(path: Path, seal: str) -> None:
    """Read a file through, and refuse one that is not what was written."""
    with open_remembered(path, seal) as found:
        for name in found:
            found[name]


def take_over_remembered(source: Path, seal: str, target: Path) -> None:
    """Take a file of another run into this one: as one file with two names where the disk can do that, else as a copy.

    Neither is ever written to again: what changes is renamed into the place of a name. A change from outside shows in
    both.
    """
    check_remembered(source, seal)
    with whole_file(target) as temporary:
        link_or_copy(source, temporary)


@contextmanager
def _opened(path: Path, seal: str) -> Iterator[Sealed]:
    """Open a file and look at its header; what the block raises is not about the file."""
    with ExitStack() as stack:
        with with_way_out(_WAY_OUT):
            file = stack.enter_context(open_sealed(path, _FORMAT))
            if file.seal != seal:
                raise FormatError(f"{path} is not the file that evaluations.jsonl knows, but of another evaluation.")
        yield file
