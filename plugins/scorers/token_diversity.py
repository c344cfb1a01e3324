"""The scorer ``token_diversity`` tells how unlike each other the outputs of a layer are, by token and by kind of token.

    s = (s_v + s_l + s_vl) / 3,   each the mean of 1 − cos(y_a, y_b) over pairs of a sample's tokens

of two of its images' (s_v), of two of its text's (s_l), and of one of each (s_vl); y is the layer's output, and s_v,
s_l and s_vl are means over samples. A layer with more diversity keeps more. In a tower with one kind of token s is the
one term that there is.

Lee, Xuan, Ekbote, Polisetty, Fung & Liang, TAMP: Token-Adaptive Layerwise Pruning in Multimodal Large Language Models,
Findings of ACL 2025: its diversity-aware sparsity, which it computes of the language model alone and allocates as
ECoFLaP does, layer by layer with p = s + 0.1. Its code leaves pairs with a cosine below zero out of s_v and s_l; here
they are in, as in the paper. Its adaptive choice of input tokens is not here.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from jaxtyping import Float, Float32, Int8
from torch import Tensor, nn

from ecoflap.core.contracts.hookspecs import hookimpl
from ecoflap.core.contracts.plan_context import PlanContext
from ecoflap.core.contracts.records import IMAGE, TEXT, Aggregate
from ecoflap.core.errors import ModelError, first_of, refuse_below_one
from ecoflap.core.forward.replay import Replay
from ecoflap.core.model.anatomy import Anatomy, Block, Layer
from ecoflap.plugins.scorers.shared.block_by_block import block_by_block


@dataclass(frozen=True)
class TokenDiversity:
    """Score layers by how unlike their outputs are. It goes with ``granularity: layer`` and ``allocate: ecoflap``.

    :param samples: How many calibration samples it looks at.
    """

    samples: int = 128

    aggregate: ClassVar[Aggregate] = "sum"
    shares: ClassVar[bool] = True

    def __post_init__(self) -> None:
        refuse_below_one("samples", self.samples)

    def problems(self, context: PlanContext) -> Iterator[str]:
        """Name the layers whose outputs cannot be seen by their tokens: experts, and parts of a parameter."""
        unseen = [layer.name for _, layer in context.scored.layers() if not _is_seen(layer)]
        if unseen:
            yield (
                f"it looks at what a layer gives for each token, which of {first_of(unseen)} "
                f"nobody sees. Keep their tower, or take another scorer"
            )

    def forwards(self, anatomy: Anatomy, batches: int) -> int:
        """Count two runs of every block for each batch: in one it is observed, in the other its output is recorded."""
        return 2 * batches

    def __call__(self, replay: Replay, layers: Sequence[Layer]) -> Iterator[tuple[str, float]]:
        for index, block, mine in block_by_block(replay, layers):
            found = replay.each(partial(_terms, replay, index, block, mine))
            for layer in mine:
                total = _Terms()
                for of_batch in found:
                    for kind, terms in of_batch[layer.name].items():
                        total[kind] += terms
                yield layer.name, total.mean(layer)


class _Terms(defaultdict[str, list[float]]):
    """Holds the terms of one layer by their name, a number for each sample that has pairs of the kind."""

    def __init__(self) -> None:
        super().__init__(list)

    def mean(self, layer: Layer) -> float:
        """Give s."""
        if not self:
            raise ModelError(f"{layer.name}: no calibration sample has two tokens, so that nothing is unlike another")
        return sum(sum(term) / len(term) for term in self.values()) / len(self)


def _terms(
    replay: Replay, index: int, block: Block, layers: Sequence[Layer], number: int
) -> dict[str, dict[str, list[float]]]:
    """Give the terms of each layer on one batch, by its name."""
    outputs, found = _outputs(replay, index, number, layers), {}
    for layer in layers:
        terms = _Terms()
        _add(terms, layer, outputs[layer.name], replay.tokens(number, layer.reads or block.tower))
        found[layer.name] = dict(terms)
    return found


def _is_seen(layer: Layer) -> bool:
    is_whole = layer.part is None and layer.attribute == "weight"
    return is_whole and layer.layout in ("batch token", "token batch")


def _outputs(replay: Replay, index: int, number: int, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Run a block on a batch, and give by the layer's name what its module gave in its first call."""
    found: dict[str, Tensor] = {}

    def see(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        found.setdefault(name, output.detach())

    with ExitStack() as hooks:
        for layer in layers:
            handle = layer.module.register_forward_hook(partial(see, layer.name))
            hooks.callback(handle.remove)
        replay.calls_of(index, number)
    missing = [layer.name for layer in layers if layer.name not in found]
    if missing:
        raise ModelError(f"the modules of {first_of(missing)} are not called, so that nobody sees their outputs")
    return found


def _add(terms: _Terms, layer: Layer, outputs: Float[Tensor, "..."], kinds: Int8[Tensor, "batch tokens"]) -> None:
    """Add the terms of each sample of a batch."""
    batch, tokens = kinds.shape
    if outputs.shape[:-1].numel() != kinds.numel():
        raise ModelError(f"{layer.name}: it gives {tuple(outputs.shape)} for {tuple(kinds.shape)} tokens")
    if layer.layout == "token batch":
        outputs = outputs.reshape(tokens, batch, -1).transpose(0, 1)
    for given, kind in zip(outputs.reshape(batch, tokens, -1).float(), kinds.to(outputs.device), strict=True):
        unit = nn.functional.normalize(given, dim=1)
        images, text = unit[kind == IMAGE], unit[kind == TEXT]
        for name, own in (("v", images), ("l", text)):
            if len(own) > 1:
                terms[name].append(1 - _mean_cosine(own))
        if len(images) and len(text):
            terms["vl"].append(1 - float(images.mean(0) @ text.mean(0)))


def _mean_cosine(unit: Float32[Tensor, "tokens out"]) -> float:
    """Give the mean over all pairs of two different rows, which are of length one: (‖Σy‖² − Σ‖y‖²) / n(n − 1)."""
    exact = unit.double()
    pairs = exact.sum(0).square().sum() - exact.square().sum()
    return float(pairs) / (len(unit) * (len(unit) - 1))


@hookimpl
def ecoflap_register_scorers() -> Mapping[str, type[TokenDiversity]]:
    return {"token_diversity": TokenDiversity}
