"""A pico model in a folder, and runs on it: by the library and by the command."""

import errno
import json
import os
import shutil
from dataclasses import replace
from random import Random

import pytest
import torch

import ecoflap
from ecoflap.core.registry.registry import load_registry


@pytest.fixture(scope="session")
def pico(pico_llama, pico_tokenizer, tmp_path_factory):
    """A folder with ``model``, a bfloat16 pico LLaMA as transformers saves it, and ``text.jsonl``."""
    folder = tmp_path_factory.mktemp("pico")
    pico_llama(dtype=torch.bfloat16).save_pretrained(folder / "model", safe_serialization=True)
    pico_tokenizer.save_pretrained(folder / "model")
    random = Random(0)
    documents = [" ".join(f"word{random.randrange(30)}" for _ in range(80)) for _ in range(20)]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return folder


@pytest.fixture(scope="session")
def plain(pico):
    """A recipe as a mapping, small enough to run in a moment; keywords replace its keys, None removes one."""

    def plain(**keys):
        text = {"use": "text", "path": str(pico / "text.jsonl"), "sequence_length": 16}
        recipe = {
            "version": 1,
            "model": str(pico / "model"),
            "calibration": {**text, "samples": 4, "batch_size": 2, "portion": [0, 0.7]},
            "sparsity": 0.5,
            "score": {"use": "zeroth_order", "samples": 2},
            "prune": "wanda",
            "evaluate": {"use": "perplexity", "data": {**text, "samples": 2, "portion": [0.7, 1], "order": "spread"}},
            "export": "safetensors",
            **keys,
        }
        return {key: value for key, value in recipe.items() if value is not None}

    return plain


@pytest.fixture(scope="session")
def plain_run(plain, tmp_path_factory):
    """A finished run of ``plain()``, which nobody changes."""
    return ecoflap.run(plain(), folder=tmp_path_factory.mktemp("plain") / "run")


@pytest.fixture
def copied_run(plain_run, tmp_path):
    """The same in a folder that a test may change; its model is everybody's."""
    return replace(plain_run, folder=shutil.copytree(plain_run.folder, tmp_path / "run"))


@pytest.fixture(scope="session")
def lasting():
    """Of a run folder: the bytes of all that must be the same however often the run was cut off."""

    def lasting(folder):
        wanted = [folder / name for name in ("plan.json", "scores.jsonl", "masks.safetensors")]
        wanted += [path for name in ("model", "exports") for path in sorted((folder / name).rglob("*"))]
        return {str(path.relative_to(folder)): path.read_bytes() for path in wanted if path.is_file()}

    return lasting


@pytest.fixture
def heard_by():
    """The shipped parts, heard by these observers alone."""

    def heard_by(*observers):
        named = tuple((f"ear{number}", observer) for number, observer in enumerate(observers))
        return replace(load_registry(), _observers=named)

    return heard_by


@pytest.fixture
def unreadable(monkeypatch):
    """Let the system refuse a file or folder to whoever would read it: root, as which tests may run, reads all."""
    locked = set()

    def refusing(call):
        def refuse_or_call(path=".", *arguments, **keywords):
            if not isinstance(path, int) and str(path) in locked:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return call(path, *arguments, **keywords)

        return refuse_or_call

    for name in ("open", "listdir", "scandir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    return lambda path: locked.add(str(path))


@pytest.fixture
def pipe(tmp_path):
    """A pipe with a name, which nobody writes into: whoever opens it to read waits."""
    if not hasattr(os, "mkfifo"):
        pytest.skip("the system has no pipes with names")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path / "pipe"
