"""An exporter of another package."""

import pytest

import ecoflap

WRITER = '''
from dataclasses import dataclass
from pathlib import Path
from ecoflap import Check, Exported, StoredTensor, hookimpl

@dataclass(frozen=True)
class Letters:
    """Writes letters."""
    letter: str = "a"
    densifies = (".letters",)

    def __call__(self, pruned, folder):
        (folder / "w.letters").write_text(self.letter * 10)
        tensor = StoredTensor("x.weight", "letters", (4, 4), 8, 64, 10)
        check = Check("w.letters", "whole", "python", 0.0, 1e-4)
        return Exported((folder / "w.letters",), (tensor,), (check,), 64, ("needs a reader of letters",))

    @staticmethod
    def densify(file, target):
        target.write_text("dense")
        return target

@hookimpl
def ecoflap_register_exporters():
    return {"letters": Letters}
'''


@pytest.fixture
def letters(tmp_path, monkeypatch):
    """A registry with an exporter of another package."""
    (tmp_path / "letters_plugin.py").write_text(WRITER)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "registry.yaml").write_text("version: 1\nplugins: {letters: letters_plugin}\n")
    monkeypatch.setenv("ECOFLAP_REGISTRY", str(tmp_path / "registry.yaml"))
    return ecoflap.load_registry()
