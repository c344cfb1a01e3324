"""The hub's own client talks to a hub on this machine, to one that refuses and to one that never answers."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, serving

from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.errors import ModelError
from ecoflap.core.model import hub
from ecoflap.core.model.source import fingerprint, open_source, snapshot

OLD, NEW = "a" * 40, "b" * 40
Reach = Callable[[str], None]


def never() -> Any:
    raise AssertionError("read, although its commit is known")


@pytest.fixture
def reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reach]:
    """Point the client at an endpoint, with a cache of its own."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def reach(endpoint: str) -> None:
        hub._answer.cache_clear()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        template = f"{endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        for module in ("constants", "file_download"):  # before its version 1 the second had a copy
            monkeypatch.setattr(f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)

    yield reach
    hub._answer.cache_clear()


@pytest.fixture
def pico(tmp_path: Path, pico_llama_folder: Path, reach: Reach) -> Iterator[FakeHub]:
    """A repository with a new commit, and an old one with a tag."""
    folders = {commit: tmp_path / commit for commit in (OLD, NEW)}
    for layers, folder in zip((1, 2), folders.values(), strict=True):
        folder.mkdir()
        config = json.loads((pico_llama_folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
    with serving(FakeHub("org/pico", folders, {"main": NEW, "v1": OLD})) as served:
        reach(served.endpoint)
        yield served


def test_a_revision_is_read_and_its_commit_is_the_fingerprint(pico: FakeHub, tmp_path: Path):
    newest, tagged = (open_source(name, tmp_path) for name in ("org/pico", "org/pico@v1"))
    assert [one.config["num_hidden_layers"] for one in (newest, tagged)] == [2, 1]
    assert [fingerprint(one, never) for one in (newest, tagged)] == [{"commit": NEW}, {"commit": OLD}]
    commit = open_source(f"org/pico@{OLD}", tmp_path)
    assert fingerprint(commit, never) == {"commit": OLD}


def test_the_commit_that_was_opened_stays_when_a_branch_moves(pico: FakeHub, tmp_path: Path):
    source = open_source("org/pico", tmp_path)
    pico.names["main"] = OLD
    assert fingerprint(source, never) == {"commit": NEW}
    assert fingerprint(open_source("org/pico", tmp_path), never) == {"commit": OLD}


def test_it_is_taken_apart_by_its_configuration_alone(pico: FakeHub, tmp_path: Path):
    adapter = LlamaAdapter()
    source = open_source("org/pico", tmp_path)
    assert adapter.matches(source)
    assert len(adapter.towers(adapter.load(source, None, "meta"))[0].blocks) == 2
    assert {path for path in pico.asked if path.startswith("/org")} == {"/org/pico/resolve/main/config.json"}


def test_what_was_read_before_does_without_the_hub(pico: FakeHub, reach: Reach, tmp_path: Path):
    open_source("org/pico@v1", tmp_path)
    reach("http://127.0.0.1:9")
    source = open_source("org/pico@v1", tmp_path)
    assert source.config["num_hidden_layers"] == 1
    assert fingerprint(source, never) == {"commit": OLD}
    found = snapshot(source)
    assert found is not None
    assert found.name == OLD
    with pytest.raises(ModelError, match=r"nor in the hub's cache, and http://127\.0\.0\.1:9 does not answer"):
        open_source("org/pico@v2", tmp_path)


@pytest.mark.parametrize("name", ["org/none", "org/pico@v9"])
def test_what_is_not_there(name: str, pico: FakeHub, tmp_path: Path):
    with pytest.raises(ModelError, match=r"nor reachable on the hub .* Check its spelling and revision"):
        open_source(name, tmp_path)


def test_a_hub_that_refuses_and_one_that_never_answers_are_asked_once(reach: Reach, tmp_path: Path):
    """Its own client would go on asking for three quarters of a minute."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        silent.settimeout(60)
        for port in (9, silent.getsockname()[1]):
            reach(f"http://127.0.0.1:{port}")
            with pytest.raises(ModelError) as error:
                open_source("org/none", tmp_path)
            assert str(error.value).count(". ") == 0  # one sentence
            assert not hub.is_reachable()
        silent.accept()[0].close()
        silent.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody else has come
            silent.accept()


def test_an_answer_is_remembered_for_a_minute(pico: FakeHub, monkeypatch: pytest.MonkeyPatch):
    """Whenever it was given: a minute of the clock may end while one thing is asked twice."""
    for now, asked in ((59.9, 1), (60.1, 1), (119.8, 1), (120.0, 2), (179.0, 2)):
        monkeypatch.setattr(hub, "monotonic", lambda now=now: now)
        assert hub.is_reachable()
        assert pico.asked.count("/") == asked


def test_a_gateway_in_its_place_is_no_hub(tmp_path: Path, reach: Reach, monkeypatch: pytest.MonkeyPatch):
    """The client would ask it six times, with longer and longer waits."""
    with serving(FakeHub("org/pico", {}, {}, status=502)) as gateway:
        reach(gateway.endpoint)
        assert not hub.is_reachable()
        assert hub.why_unreachable() == f"{gateway.endpoint} does not answer"


def test_another_library_is_switched_off_while_it_asks(reach: Reach):
    from huggingface_hub import constants

    reach("http://127.0.0.1:9")
    with hub.asked_once():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE
