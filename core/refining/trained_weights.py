"""Hold layers' weights in float32 for as long as they are trained, pruned ones at zero and without a gradient."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ecoflap.core.disk.on_disk import lies_on_disk, matrix_on_disk, on_disk, zeros_on_disk
from ecoflap.core.errors import ModelError, first_of
from ecoflap.core.forward.placement import Placement, requiring_grad, tensors_of
from ecoflap.core.guards.module_form import form_kept
from ecoflap.core.guards.untouched import unwritten
from ecoflap.core.model.anatomy import Layer

_CURE = "Have it train view.parameters alone: of nothing else is stored what it becomes"
_CURE_OF_FORM = (
    "What it does there is neither undone nor saved, and what comes behind would be judged by it. Have it train "
    "view.parameters in place, as by parameter.data.copy_(…), and take all else back before it returns: handle.remove()"
)


@dataclass(frozen=True, eq=False)
class _Trained:
    """A parameter that layers are, or are parts of.

    :param kept: What is trained of it.
    :param is_layer: What of it is a layer here; None for all of it. The rest is neither kept nor pruned: it stays.
    """

    parameter: nn.Parameter
    dtype: torch.dtype
    kept: Bool[Tensor, "..."]
    is_layer: Bool[Tensor, "..."] | None

    def mask_gradient(self, gradient: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        return gradient * self.kept.to(gradient.device)

    def round(self, before: Tensor) -> None:
        """Round to the precision that the model has, with +0.0 for every pruned weight.

        :param before: What a part that is no layer comes back to: an optimiser's weight decay knows no mask.
        """
        data = self.parameter.data
        rounded = data.to(self.dtype).to(data.dtype).masked_fill_(~self.kept.to(data.device), 0.0)
        if self.is_layer is not None:
            rounded = torch.where(self.is_layer.to(data.device), rounded, before.to(rounded))
        data.copy_(rounded)


class TrainedWeights:
    """The weights of some layers as an optimiser is given them.

    A gradient is masked before anybody sees it, so that a pruned weight stays, whatever an optimiser does with it.

    :param masks: By the layer's name, ``[out, in]``, True for what is kept.
    :param keep_in: A folder on whose disk the weights lie while they are trained, with gradients and all that is kept
        of them, in files without a name; what they come to is then handed out by :meth:`take`. None for memory.
    """

    def __init__(
        self, layers: Sequence[Layer], masks: Mapping[str, Bool[Tensor, "out in"]], keep_in: Path | None = None
    ) -> None:
        parts: dict[int, list[Layer]] = {}
        for layer in layers:
            parts.setdefault(id(layer.parameter), []).append(layer)
        self._layers, self._keep_in = tuple(layers), keep_in
        self._trained = [_trained(inside, masks, keep_in) for inside in parts.values()]
        self._come_to: dict[int, Tensor] = {}
        self._before: list[Tensor] = []
        self._remembered: list[Tensor] = []
        self._others: dict[str, Tensor] = {}
        self._module: nn.Module | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Give the parameters to be optimised."""
        return [one.parameter for one in self._trained]

    @contextmanager
    def held(self, module: nn.Module, placement: Placement) -> Iterator[None]:
        """Hold a module as a placement says, with these weights of it alone to be trained; then round them into place.

        What the module's other weights are afterwards is what they were, bit for bit; where it ends with an error, all.
        So are all of a module whose weights are trained in files, until :meth:`take`.

        :param placement: In float32.
        """
        self._before = homes = [one.parameter.data for one in self._trained]
        self._module, own = module, {id(one) for one in self.parameters}
        self._others = {name: one for name, one in module.named_parameters() if id(one) not in own}
        with requiring_grad(module, self._layers):
            try:
                with placement.held(tensors_of(module)), self._in_row_order(), self._masked_gradients():
                    held = zip(homes, self.parameters, strict=True)
                    self._before = [_not_trained(home, parameter.data) for home, parameter in held]
                    yield
                    self.round()
                    trained = [one.parameter.data for one in self._trained]
            except BaseException:
                trained = self._before
                raise
            finally:
                self._put(homes, trained)

    def _put(self, homes: Sequence[Tensor], trained: Sequence[Tensor]) -> None:
        """Write into place what weights came to; of those that are trained in files the homes are files, too."""
        if self._keep_in is not None:
            both = zip(self.parameters, trained, strict=True)
            self._come_to = {id(parameter): values for parameter, values in both}
            return
        for home, values in zip(homes, trained, strict=True):
            home.copy_(values)

    def take(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give those of some parameters that were trained in files what they came to, in the model's type.

        Copies of these are in memory until something else is put in their place.
        """
        trained = {id(one.parameter): one for one in self._trained}
        for parameter in parameters:
            if id(parameter) in self._come_to:
                parameter.data = self._come_to[id(parameter)].to(trained[id(parameter)].dtype)

    @contextmanager
    def trained_alone(self, who: str, shown: Mapping[str, Tensor]) -> Iterator[None]:
        """Refuse what writes into other parameters or what it is shown, or gives the module that is held another form.

        Nothing else is stored of a block, nor put back where a refiner is undone.

        :param who: The refiner, for the message.
        :param shown: By what the message calls them, tensors to be looked at alone, such as masks.
        """
        assert self._module is not None
        forms = [(one.data.dtype, one.data.shape) for one in self.parameters]
        lay = [one.data for one in self.parameters]  # held, or what is made anew could lie where one of them lay
        looked_at = {**self._others, **shown}
        with unwritten(who, looked_at, _CURE, counting=False), form_kept(who, self._module, _CURE_OF_FORM):
            yield
        if forms != [(one.data.dtype, one.data.shape) for one in self.parameters]:
            raise ModelError(f"{who} has given a parameter another type or shape: it may change its numbers alone")
        of_inference = [one for one in self.parameters if one.data.is_inference()]
        if of_inference:
            for one in of_inference:  # or the model could not even be put back
                one.data = one.data.clone()
            raise ModelError(
                f"{who} has put a tensor of torch.inference_mode() in the place of a parameter, which nothing can "
                f"train any more. Have it write under torch.no_grad(): parameter.data.copy_(…)"
            )
        self._refuse_shared(who, list(map(_place, lay)))
        lying = {_place(one.data) for one in self.parameters}
        taken = [name for name, one in shown.items() if one.numel() and _place(one) in lying]
        if taken:
            raise ModelError(
                f"{who} has put {first_of(taken)} in the place of a parameter, so that training would write into "
                f"it, which others look at next. Have it copy the numbers: parameter.data.copy_(…)"
            )

    def _refuse_shared(self, who: str, before: Sequence[int]) -> None:
        """Refuse parameters of which one was put where another lies, or lay: what was trained of either is lost."""
        now = [_place(one.data) for one in self.parameters]
        moved = [number for number, (was, place) in enumerate(zip(before, now, strict=True)) if was != place]
        others = [{*before, *now[:number], *now[number + 1 :]} for number in moved]
        if any(now[number] in places for number, places in zip(moved, others, strict=True)):
            raise ModelError(
                f"{who} has put one parameter in the memory of another, so that each writes into both. Have it copy "
                f"the numbers: parameter.data.copy_(…)"
            )

    @contextmanager
    def _in_row_order(self) -> Iterator[None]:
        """Give those that lie otherwise a copy that lies row by row, which is what is trained.

        torch's fused optimisers go through a weight, its gradient and what they keep of it as they lie in memory, and
        look at no strides; and what comes from another process or a file lies row by row. So does what is mapped from
        the files of a model, of which each page that is written to would be in memory.
        """
        others = [one for one in self.parameters if not (one.data.is_contiguous() and self._is_kept(one.data))]
        lying = [parameter.data for parameter in others]
        try:
            for parameter in others:
                parameter.data = matrix_on_disk(parameter.data.contiguous(), self._keep_in)
            yield
        finally:
            for parameter, data in zip(others, lying, strict=True):
                parameter.data = data

    def _is_kept(self, values: Tensor) -> bool:
        """Say whether numbers lie where those lie that are trained."""
        return self._keep_in is None or lies_on_disk(values)

    @contextmanager
    def _masked_gradients(self) -> Iterator[None]:
        handles = [one.parameter.register_hook(one.mask_gradient) for one in self._trained]
        if self._keep_in is not None:
            handles += [one.register_post_accumulate_grad_hook(self._keep_gradient) for one in self.parameters]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            for parameter in self.parameters:
                parameter.grad = None

    def _keep_gradient(self, parameter: Tensor) -> None:
        """Put a gradient away as soon as it is complete, so that no other is in memory beside it."""
        assert parameter.grad is not None
        parameter.grad = matrix_on_disk(parameter.grad, self._keep_in)

    def remember(self) -> None:
        """Keep the weights as they are now, for :meth:`restore`; those that were not trained yet are there already."""
        self._remembered = []
        for before, parameter in zip(self._before, self.parameters, strict=True):
            was = _is_still(before, parameter.data)
            self._remembered.append(before if was else _copied(parameter.data, self._keep_in))

    def restore(self) -> None:
        """Take back the weights that were remembered last, and drop gradients."""
        for one, values in zip(self._trained, self._remembered, strict=True):
            one.parameter.data.copy_(values)
            one.parameter.grad = None

    def round(self) -> None:
        """Round the weights to the precision that the model keeps them in, pruned ones to +0.0."""
        for one, before in zip(self._trained, self._before, strict=True):
            one.round(before)

    def are_finite(self) -> bool:
        """Say whether no weight is NaN or infinite."""
        return all(bool(parameter.data.isfinite().all()) for parameter in self.parameters)


def _trained(layers: Sequence[Layer], masks: Mapping[str, Bool[Tensor, "out in"]], keep_in: Path | None) -> _Trained:
    first, parameter = layers[0], layers[0].parameter
    if first.part is None:  # its mask is all there is to hold
        kept = first.as_stored(masks[first.name]).to(parameter.device).contiguous()
        return _Trained(parameter, parameter.dtype, kept, None)
    kept, is_layer = _empty_mask(parameter, keep_in), _empty_mask(parameter, keep_in)
    for layer in layers:
        layer.matrix_of(kept).copy_(masks[layer.name])
        layer.matrix_of(is_layer).fill_(True)
    return _Trained(parameter, parameter.dtype, kept, None if bool(is_layer.all()) else is_layer)


def _not_trained(home: Float[Tensor, "..."], held: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Give what stays as it was while a weight is trained: its home, or a copy where it is trained in there."""
    return home.clone() if held.data_ptr() == home.data_ptr() else home


def _place(values: Tensor) -> int:
    """Say where the memory begins that numbers lie in."""
    return values.untyped_storage().data_ptr()


def _empty_mask(parameter: Tensor, keep_in: Path | None) -> Bool[Tensor, "..."]:
    """Give a mask that keeps nothing of a parameter."""
    if keep_in is None:
        return torch.zeros(parameter.shape, dtype=torch.bool, device=parameter.device)
    return zeros_on_disk(parameter.shape, torch.bool, keep_in)


def _is_still(before: Float[Tensor, "..."], now: Float[Tensor, "..."]) -> bool:
    """Say whether a weight is still what it was before, with the signs of its zeros."""
    was = before.to(now)
    return torch.equal(was, now) and torch.equal(was.signbit(), now.signbit())


def _copied(values: Float[Tensor, "..."], keep_in: Path | None) -> Float[Tensor, "..."]:
    return values.clone() if keep_in is None else on_disk(values, keep_in)
