"""What observers hear of a run, for plugins that implement ``ecoflap_on_event``."""

from ecoflap.core.contracts.events import (
    Event,
    LayerPruned,
    Progress,
    Refined,
    RunFailed,
    RunFinished,
    RunStarted,
    StageFinished,
    StageStarted,
    Warned,
)

__all__ = [
    "Event", "LayerPruned", "Progress", "Refined", "RunFailed", "RunFinished", "RunStarted", "StageFinished",
    "StageStarted", "Warned",
]  # fmt: skip
