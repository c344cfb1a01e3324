"""One part of each kind, with parameters of all sorts; the tests of recipes register these."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from ecoflap import ColumnNorm, Dataset, EcoflapError, Pruner, hookimpl


class Works:
    def __call__(self, *arguments): ...


@dataclass(frozen=True)
class Wanda(Works):
    compare: Literal["row", "layer"] = "row"
    alpha: float = 0.5
    needs: ClassVar[tuple] = (ColumnNorm,)


@dataclass(frozen=True)
class SparseGPT(Works):
    block: int = 128
    damping: float = 0.01
    needs: ClassVar[tuple] = (ColumnNorm,)

    def __post_init__(self):
        if self.damping <= 0:
            raise EcoflapError("damping should be above 0")


@dataclass(frozen=True)
class Magnitude(Works):
    pass


@dataclass(frozen=True)
class Mixed(Works):
    first: Pruner = Wanda(compare="layer")
    rest: tuple[Pruner, ...] = ()
    last: Pruner | None = None
    many: list[Pruner] = field(default_factory=lambda: [Magnitude()])


@dataclass(frozen=True)
class Odd(Works):
    """Types of all sorts."""

    switch: bool = False
    portion: tuple[float, float] = (0.0, 1.0)
    words: dict[str, int] = field(default_factory=dict)
    text: str | None = None
    anything: Any = None
    hidden: int = None
    opaque: Any = object()  # noqa: RUF009 (what no recipe can write)
    limit: float = float("inf")


@dataclass(frozen=True)
class ZerothOrder(Works):
    eps: float = 1e-3
    samples: int = 32
    aggregate: ClassVar[str] = "mean"


@dataclass(frozen=True)
class Norm(Works):
    data: ClassVar[bool] = False


@dataclass(frozen=True)
class FromRun(Works):
    run: Path
    data: ClassVar[bool] = False


@dataclass(frozen=True)
class Uniform(Works):
    takes: ClassVar[None] = None


@dataclass(frozen=True)
class Ecoflap(Works):
    max_sparsity: float | None = None


@dataclass(frozen=True)
class Text(Works):
    path: Path
    samples: int = 128
    more: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Perplexity(Works):
    data: Dataset
    samples: int = 8


class Llama(Works):
    def __init__(self, revision: str = "main"): ...


def safetensors(shard: int = 5):
    return Works()


@hookimpl
def ecoflap_register_pruners():
    return {"wanda": Wanda, "sparsegpt": SparseGPT, "magnitude": Magnitude, "mixed": Mixed, "odd": Odd}


@hookimpl
def ecoflap_register_scorers():
    return {"zeroth_order": ZerothOrder, "norm": Norm, "from_run": FromRun}


@hookimpl
def ecoflap_register_allocators():
    return {"uniform": Uniform, "ecoflap": Ecoflap}


@hookimpl
def ecoflap_register_datasets():
    return {"text": Text}


@hookimpl
def ecoflap_register_evaluators():
    return {"perplexity": Perplexity}


@hookimpl
def ecoflap_register_adapters():
    return {"llama": Llama}


@hookimpl
def ecoflap_register_exporters():
    return {"safetensors": safetensors}
