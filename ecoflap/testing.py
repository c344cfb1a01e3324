"""What a plugin's own tests hold its parts to."""

from ecoflap.core.checking.check_adapter import check_adapter
from ecoflap.core.contracts.conformance import contract_problems
from ecoflap.core.contracts.protocols import ignore
from ecoflap.core.registry.registry import load_registry_from

__all__ = ["check_adapter", "contract_problems", "ignore", "load_registry_from"]
