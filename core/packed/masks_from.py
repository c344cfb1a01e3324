"""Read masks that somebody else has made: those of a run, a packed export or a plain file, or a checkpoint's zeros."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ecoflap.core.bits import pack_mask
from ecoflap.core.disk.whole_files import sha256_of
from ecoflap.core.dtypes import dtype_name
from ecoflap.core.errors import NAMED, FormatError
from ecoflap.core.model.anatomy import part_of
from ecoflap.core.model.parameter_masks import parameter_and_part
from ecoflap.core.packed.into_model import is_packed
from ecoflap.core.packed.load_model import load_masks
from ecoflap.core.pruning.masks import MASKS, PackedMasks, popcount
from ecoflap.core.sealing.sums import check_listed

_AT_ONCE = 4
"""So many sources are kept in memory, a bit for each weight: towers may have a source each."""
"""So many tensors that are no masks are named one by one."""


@dataclass(frozen=True)
class NamedMasks:
    """Holds masks by the names that their source has for them.

    :param masks: As parameters lie.
    """

    masks: PackedMasks

    def name_of(self, layer: str) -> str | None:
        """Give the name under which a layer's mask is there: its own, its parameter's, or its module's."""
        parameter = parameter_and_part(layer)[0]
        names = (layer, parameter, parameter.removesuffix(".weight"))
        return next((name for name in names if name in self.masks), None)

    def of(self, layer: str) -> Bool[Tensor, "..."] | None:
        """Give a layer's mask as its parameter lies; None where there is none."""
        name = self.name_of(layer)
        if name is None:
            return None
        part = None if name == layer else parameter_and_part(layer)[1]
        whole = self.masks[name]
        return whole if part is None or not _has(whole, part) else part_of(whole, part)

    def kept(self, layer: str) -> tuple[int, int] | None:
        """Count the weights that a layer's mask keeps, and those that it is about; None where there is none."""
        name = self.name_of(layer)
        if name is None:
            return None
        if name == layer or parameter_and_part(layer)[1] is None:
            return popcount(self.masks.bits[name]), self.masks.size_of(name)
        mask = self.of(layer)
        assert mask is not None  # it has a name
        return int(mask.count_nonzero()), mask.numel()


def _has(whole: Tensor, part: int | tuple[int, int]) -> bool:
    """Say whether a parameter's mask has a part; one of another model may be too short for it."""
    stop = part + 1 if isinstance(part, int) else part[1]
    return whole.dim() > 1 and stop <= len(whole)


def masks_from(path: Path, *, zeros: bool = False) -> NamedMasks:
    """Read masks by name. What was read last is kept, as long as its files are the same by size and time.

    :param path: A run's folder or its ``masks.safetensors``; a packed export or its folder; or safetensors files whose
        tensors are masks, boolean or of zeros and ones in uint8.
    :param zeros: Take the zeros of a checkpoint's weights for its masks; ``path`` is that checkpoint.
    :raises FormatError: Where there is nothing of the kind, or a file is damaged.
    """
    files = mask_files(path, zeros=zeros)
    if not files:
        wanted = (
            "a folder with the weights of a checkpoint in safetensors files"
            if zeros
            else f"the folder of a run, with {MASKS}; a packed export; or a safetensors file of masks"
        )
        raise FormatError(f"{path}: no masks are there; name {wanted}")
    stamps = [(file, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    return _read(path, tuple(stamps), zeros)


def mask_files(path: Path, *, zeros: bool = False) -> list[Path]:
    """Name the files that masks are read from; none where there are none."""
    if not path.is_dir():
        return [path] if path.is_file() else []
    if zeros:
        return _plain_in(path)
    if (path / MASKS).is_file():
        return [path / MASKS]
    return sorted(file for file in path.iterdir() if is_packed(file.name)) or _plain_in(path)


def _plain_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*.safetensors") if not is_packed(file.name))


@lru_cache(maxsize=_AT_ONCE)
def _read(path: Path, stamps: tuple[tuple[Path, int, int], ...], zeros: bool) -> NamedMasks:
    files = [file for file, *_ in stamps]
    if not zeros and (files[0].name == MASKS or is_packed(files[0].name)):
        return NamedMasks(load_masks(path))
    if path.is_dir():
        check_listed(path, lambda: {file.name: sha256_of(file) for file in files})
    masks = PackedMasks()
    problems: list[str] = []
    for file in files:
        wrong: dict[str, list[str]] = {}
        for name, tensor in _tensors(file, problems):
            problem = None if zeros else _no_mask(tensor)
            if problem:
                wrong.setdefault(problem, []).append(name)
            elif not zeros or (tensor.is_floating_point() and tensor.dim() > 1):
                masks.put(name, pack_mask(tensor.ne(0)), tuple(tensor.shape))
        problems += [f"{file}: {who} {problem}" for problem, names in wrong.items() for who in _called(names)]
    if not masks and not problems:
        problems = [f"{path}: no tensor in it is a matrix of weights" if zeros else f"{path}: it holds no tensor"]
    if problems:
        raise FormatError(*problems)
    return NamedMasks(masks)


def _tensors(file: Path, problems: list[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file, one in memory at a time."""
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                yield name, opened.get_tensor(name)
    except (SafetensorError, ValueError, OSError) as error:
        problems.append(f"{file} is truncated, damaged or not a safetensors file: {error}")


def _called(names: list[str]) -> list[str]:
    """Name tensors that are wrong for one reason; of many, as those of a whole checkpoint are, one for all."""
    return names if len(names) <= NAMED else [f"{len(names)} of its tensors are no masks, such as {names[0]}, which"]


def _no_mask(tensor: Tensor) -> str | None:
    """Say why a tensor is no mask; None where it is one."""
    if tensor.dtype == torch.bool:
        return None
    if tensor.dtype != torch.uint8:
        kind = dtype_name(tensor.dtype)
        return f"is {kind}; a mask is bool, or uint8 of zeros and ones. For the zeros of weights, set zeros: true"
    if tensor.numel() and int(tensor.max()) > 1:
        return f"has {int(tensor.max())} in it; a mask in uint8 has zeros, for what is pruned, and ones"
    return None
