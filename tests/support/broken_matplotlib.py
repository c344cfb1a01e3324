"""Installations of matplotlib that do not work."""

import sys


def absent(monkeypatch):
    """As if it was not installed."""
    _forget(monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib", None)


def raising_at_import(monkeypatch, folder):
    """Installed, but built against another library than there is."""
    _forget(monkeypatch)
    (folder / "matplotlib").mkdir()
    (folder / "matplotlib" / "__init__.py").write_text("raise RuntimeError('<numpy> is of another version')\n")
    monkeypatch.syspath_prepend(folder)


def raising_when_saved(monkeypatch):
    """Imported, but unable to write a figure."""
    from matplotlib.figure import Figure

    def savefig(self, *arguments, **keywords):
        raise OSError("no <font> was found")

    monkeypatch.setattr(Figure, "savefig", savefig)


def _forget(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
