"""Pico models: real classes of transformers at toy size, built without a network. Fixtures hand out the builders."""

import gc
import os
import shutil
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from checked_calls import checked
from hypothesis import HealthCheck, settings
from torch import nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when huggingface_hub is first imported

os.environ.pop("COLUMNS", None)  # by which tables would be folded: processes of pytest-xdist have it

# On a machine that does other work besides, an example may take any time: how long says nothing of what is tested.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

WORDS = "<unk> <s> </s> the of and in to a is was as by for on with it from at or an be are this that which . ,"
VOCABULARY = [*WORDS.split(), *(f"word{i}" for i in range(64 - len(WORDS.split())))]

NEEDED = [name for name in os.environ.get("ECOFLAP_TESTS_NEED", "").split(",") if name]
"""Libraries whose tests must run: without one, with one of its tests skipped or with none of them, the tests fail."""
RUN: set[str] = set()
SKIPPED: list[str] = []


# What ``--jaxtyping-packages`` puts before every function, from the first import of the package on.
jaxtyping.jaxtyped = lambda *, typechecker: partial(checked, typechecker=typechecker)


def pytest_configure(config: pytest.Config) -> None:
    if config.option.markexpr != "gpu":  # all other tests hold what runs on the CPU to what does
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    absent = [name for name in NEEDED if find_spec(name) is None]
    if absent:
        raise pytest.UsageError(f"ECOFLAP_TESTS_NEED names {', '.join(absent)}, which cannot be imported here")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What there is by then stays to the end: a million objects, which every full collection would look at again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def is_named_after(library: str, test: str) -> bool:
    """Say whether the file of a test, or a folder that it is in, has a name that begins with a library's."""
    path = test.partition("::")[0]
    return any(name.removeprefix("test_").startswith(library) for name in path.split("/"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    RUN.update(name for name in NEEDED if report.passed and report.when == "call" and name in report.nodeid)
    SKIPPED.extend(report.nodeid for name in NEEDED if report.skipped and is_named_after(name, report.nodeid))


def pytest_collectreport(report: pytest.CollectReport) -> None:
    SKIPPED.extend(report.nodeid for name in NEEDED if report.skipped and is_named_after(name, report.nodeid))


def pytest_sessionfinish(session: pytest.Session) -> None:
    is_worker = hasattr(session.config, "workerinput")
    if not is_worker and (SKIPPED or set(NEEDED) - RUN):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for name in SKIPPED:
        terminalreporter.write_line(f"NEEDED, but skipped: {name}", red=True)
    for name in sorted(set(NEEDED) - RUN):
        terminalreporter.write_line(f"NEEDED, but no test of {name} was run", red=True)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """With more, the order of a sum depends on the machine."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _first_backward() -> None:
    """Torch starts the threads of its backward at the first one.

    Where a fake tensor was made before, as by an export, torch 2.15 takes every kind of device to be there and starts
    threads for them too, and then refuses a backward in each fork that a test makes.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Files of tests need not outlast a power cut: a run waits for the disk a hundred times, half of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _draw() -> Iterator[Callable[[], str | None]]:
    """Nothing is drawn on a run's page, which takes longer than the run of a pico model; what says why not."""
    from ecoflap.core.report import drawings

    usual = drawings.obstacle
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawings, "obstacle", lambda: "Tests draw nothing unless they ask for it.")
        yield usual


@pytest.fixture
def drawing(_draw: Callable[[], str | None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have their drawings, as a user's have."""
    from ecoflap.core.report import drawings

    monkeypatch.setattr(drawings, "obstacle", _draw)


@pytest.fixture(scope="session", autouse=True)
def _shipped_parts_are_registered_once() -> Iterator[None]:
    """A process of a user's does it once, and here nearly every test, for whose pico models it takes long.

    It is done anew for whoever has another registry file, or looks for installed plugins in other places. Observers,
    which keep whose run they hear, are made anew each time.
    """
    from ecoflap.core.registry import registry

    if os.environ.get("ECOFLAP_REGISTRY"):
        yield
        return
    places, read, load = sys.path.copy(), registry.read_settings, registry._load
    shipped = read(None, None)
    parts = load(shipped, installed=True)

    def settings(path: Path | str | None, base: Path | None) -> Any:
        is_shipped = path is None and base is None and not os.environ.get("ECOFLAP_REGISTRY")
        return shipped if is_shipped else read(path, base)

    def loaded(settings: Any, *, installed: bool) -> Any:
        if settings is not shipped or not installed or sys.path != places:
            return load(settings, installed=installed)
        return replace(parts, _observers=tuple((name, anew(hear)) for name, hear in parts._observers))

    def anew(hear: Callable[[Any], None]) -> Callable[[Any], None]:
        return getattr(type(hear.__self__)(), hear.__name__) if hasattr(hear, "__self__") else hear

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "read_settings", settings)
        patch.setattr(registry, "_load", loaded)
        yield


@pytest.fixture(scope="session", autouse=True)
def _versions_are_looked_up_once() -> Iterator[None]:
    """A run asks for each twice, and what is installed stays what it is, but in other places."""
    from ecoflap.core.machine import environment

    version = environment.version
    known = cache(lambda name, places: version(name))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "version", lambda name: known(name, tuple(sys.path)))
        yield


@pytest.fixture(scope="session", autouse=True)
def _operators_are_read_once() -> Iterator[None]:
    """For each file torch reads anew how every operator is written to ONNX: half of the time that a small one takes."""
    if find_spec("onnxscript") is None:
        yield
        return
    usual = torch.onnx.export

    def export(*given: Any, **named: Any) -> Any:
        with suppress(ImportError, AttributeError):  # of a torch that has them elsewhere, and reads them each time
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
                ONNXRegistry.from_torchlib = staticmethod(cache(ONNXRegistry.from_torchlib))
        return usual(*given, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", export)
        yield


@pytest.fixture(scope="session", autouse=True)
def _a_llama_everywhere() -> None:
    """The transformers that salesforce-lavis pins is older than LLaMA."""
    if find_spec("transformers.models.llama") is None:
        from old_llama import register

        register()


@pytest.fixture(scope="session")
def pico_tokenizer() -> Any:
    """Splits at blanks and punctuation; 64 words, the rest unknown."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="session")
def redraw() -> Callable[[nn.Module, int], None]:
    """Weights large enough that every layer has a healthy gradient, the same whatever was drawn before."""

    def draw(model: nn.Module, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data = (torch.randn(parameter.shape, generator=generator) * 0.08).to(parameter.dtype)

    return draw


@pytest.fixture(scope="session")
def pico_llama(redraw: Callable[[nn.Module, int], None]) -> Callable[..., Any]:
    """``pico_llama(layers=3, dtype=torch.float32, tied=False, family="llama", seed=0)``: hidden 32, GQA."""

    def build(
        layers: int = 3,
        dtype: torch.dtype = torch.float32,
        tied: bool = False,
        family: str = "llama",
        seed: int = 0,
    ) -> Any:
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.for_model(
            family, vocab_size=len(VOCABULARY), hidden_size=32, intermediate_size=48, num_hidden_layers=layers,
            head_dim=8, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
            tie_word_embeddings=tied, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # not buffers: a model that was read has RoPE's frequencies in float32
            parameter.data = parameter.data.to(dtype)
        redraw(model, seed)
        model.tie_weights()
        return model.eval()

    return build


@pytest.fixture(scope="session")
def _saved_pico_llama(
    pico_llama: Callable[..., Any], pico_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pico-llama"
    pico_llama().save_pretrained(folder, safe_serialization=True)
    pico_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def pico_llama_folder(_saved_pico_llama: Path, tmp_path: Path) -> Path:
    """A pico LLaMA with its tokenizer, saved as transformers saves it; a copy, which a test may change."""
    return shutil.copytree(_saved_pico_llama, tmp_path / "pico-llama")


@pytest.fixture
def take_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have products with packed weights computed by this path; without a name, by the fastest. A process asks once."""
    from ecoflap.core.kernel.route import route

    def take(name: str = "") -> None:
        monkeypatch.setenv("ECOFLAP_KERNEL", name)
        route.cache_clear()

    yield take
    route.cache_clear()


@pytest.fixture
def ecoflap_command(capsys, monkeypatch):
    """Run the command in this process: its exit code, standard output and standard error."""
    from ecoflap.core.cli.main import main

    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["ecoflap", *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    return command
