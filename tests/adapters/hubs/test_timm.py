"""Which versions of timm read folders, also those between two of its releases."""

import pytest

from ecoflap.adapters.hubs.timm import _require_folders
from ecoflap.core.errors import ModelError

timm = pytest.importorskip("timm")


@pytest.mark.parametrize("version", ["1.0.17", "1.0.31", "1.1", "1.1.0rc1", "1.0.20.dev0", "1.0.22+cpu"])
def test_one_that_is_new_enough_is_taken(version, monkeypatch):
    monkeypatch.setattr(timm, "__version__", version)
    _require_folders()


@pytest.mark.parametrize("version", ["1.0.16", "1.0.17rc1", "1.0", "0.9.16"])
def test_an_older_one_is_refused_with_its_version(version, monkeypatch):
    monkeypatch.setattr(timm, "__version__", version)
    with pytest.raises(ModelError, match=f"^timm {version} reads no folders: timm 1.0.17 or newer does"):
        _require_folders()
