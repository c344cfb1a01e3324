"""A model of one's own in memory: what its adapter saves is found again, or that is said before anything is scored."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import ecoflap
from ecoflap import Block, Layer, Sample, Tower
from ecoflap.core.checking.against_model import UNCOMPARED
from ecoflap.core.errors import EcoflapError, FormatError

DOCUMENTED = Path(__file__).parents[3] / "docs" / "hooks.md"
NOT_FOUND = r"no file there has 0\.weight under that name, and as a model it is not read: .* An adapter's save leaves"


class Windows:
    """Four samples of 16 numbers, the same whenever they are asked for."""

    def __call__(self, adapter, model, note):
        generator = torch.Generator().manual_seed(8)
        yield from (Sample(tokens=torch.randint(-9, 9, (16,), generator=generator)) for _ in range(4))


class Stack:
    """A stack of linear layers, that of docs/hooks.md; each kind below saves it otherwise."""

    processor = None

    def matches(self, source):
        return isinstance(source.model, nn.Sequential)

    def load(self, source, dtype, device):
        return source.model.eval()

    def towers(self, model):
        return [Tower("language", tuple(Block(str(i), layer, "language") for i, layer in enumerate(model)))]

    def layers(self, block):
        return [Layer(f"{block.name}.weight", block.module)]

    def max_length(self, model):
        return None

    def collate(self, model, samples):
        return {"input": torch.stack([sample.tokens.float() for sample in samples])[:, None]}

    def loss(self, model, batch):
        return model(batch["input"]).square().mean()

    def tokens(self, model, batch, tower, call=0):
        return torch.ones(batch["input"].shape[:2], dtype=torch.int8)

    def save(self, model, folder):
        torch.save(model.state_dict(), folder / "weights.pt")


class Safetensors(Stack):
    def save(self, model, folder):
        save_file(model.state_dict(), folder / "all.safetensors")


class Wrapped(Stack):
    def save(self, model, folder):
        (folder / "other.bin").write_bytes(b"no checkpoint")
        torch.save({"epoch": 3, "model": model.state_dict()}, folder / "weights.bin")


class Loads(Stack):
    """Saves in a way of its own, which it reads itself."""

    def matches(self, source):
        return source.model is not None

    def load(self, source, dtype, device):
        if source.model is not None:
            return source.model
        model = make()
        lists = json.loads((source.path / "weights.json").read_text())
        model.load_state_dict({name: torch.tensor(one) for name, one in lists.items()})
        self.processor = "what it read"
        return model

    def save(self, model, folder):
        (folder / "config.json").write_text('{"model_type": "stack"}')
        lists = {name: one.tolist() for name, one in model.state_dict().items()}
        (folder / "weights.json").write_text(json.dumps(lists))


class Renames(Stack):
    def save(self, model, folder):
        torch.save({f"net.{name}": one for name, one in model.state_dict().items()}, folder / "weights.pt")


class Nothing(Stack):
    def save(self, model, folder):
        """Leave that to whoever has the model."""


class Rounds(Stack):
    def save(self, model, folder):
        torch.save({name: one.bfloat16().float() for name, one in model.state_dict().items()}, folder / "weights.pt")


def make():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))


def recipe(adapter):
    windows = {"use": Windows, "batch_size": 2}
    score = {"use": "zeroth_order", "samples": 2}
    return {"version": 1, "model": {"adapter": adapter}, "calibration": windows, "sparsity": 0.5, "score": score,
            "prune": "wanda"}  # fmt: skip


@pytest.mark.parametrize("adapter", [Stack, Safetensors, Wrapped, Loads])
def test_what_was_saved_is_found_again_also_by_a_run_that_goes_on(adapter, tmp_path):
    done = ecoflap.run(recipe(adapter), model=make(), folder=tmp_path / "run")
    again = ecoflap.run(recipe(adapter), model=make(), folder=tmp_path / "run")
    assert done.report.warnings == (UNCOMPARED,)  # an adapter of one's own that says nothing of the model's own loss
    assert int(sum(layer.weight.count_nonzero() for layer in again.model)) == done.plan.keep == done.plan.size // 2
    assert all(torch.equal(one.weight, other.weight) for one, other in zip(done.model, again.model, strict=True))
    assert not [path for path in done.folder.iterdir() if path.name.startswith(".saved")]


@pytest.mark.parametrize(
    ("adapter", "said"), [(Renames, NOT_FOUND), (Nothing, NOT_FOUND), (Rounds, r"0\.weight reads back other than")]
)
def test_what_is_lost_is_told_before_anything_is_scored(adapter, said, tmp_path):
    model = make()
    with pytest.raises(FormatError, match=said):
        ecoflap.run(recipe(adapter), model=model, folder=tmp_path / "run")
    assert all(torch.equal(one.weight, other.weight) for one, other in zip(model, make(), strict=True))
    assert not (tmp_path / "run").exists()


class Fails(Stack):
    """Saves a dense model alone."""

    fails = True

    def save(self, model, folder):
        if self.fails and not model[0].weight.all():
            raise KeyError("sparse")
        super().save(model, folder)


def test_a_save_that_fails_at_the_end_loses_nothing(tmp_path, monkeypatch):
    with pytest.raises(EcoflapError) as caught:
        ecoflap.run(recipe(Fails), model=make(), folder=tmp_path / "run")
    assert "the adapter Fails, saving the model, raised KeyError: 'sparse'" in str(caught.value)
    kept = f"Finished blocks are kept in {tmp_path / 'run' / 'blocks'}: mend the adapter's save, and run again, with"
    assert kept in str(caught.value)
    before = {path: path.read_bytes() for path in sorted((tmp_path / "run" / "blocks").iterdir())}
    assert len(before) == 2
    monkeypatch.setattr(Fails, "fails", False)
    monkeypatch.setattr("ecoflap.core.pruning.prune_blocks.pruned_layer", lambda *given: pytest.fail("pruned again"))
    done = ecoflap.run(recipe(Fails), model=make(), folder=tmp_path / "run")
    assert int(sum(layer.weight.count_nonzero() for layer in done.model)) == done.plan.keep


def test_the_example_of_an_adapter_is_one_that_prunes(tmp_path, monkeypatch):
    (code,) = re.findall(r"^## ecoflap_register_adapters.*?```python\n(.*?)```", DOCUMENTED.read_text(), re.M | re.S)
    (tmp_path / "documented_stack.py").write_text(code)
    (tmp_path / "registry.yaml").write_text("version: 1\nplugins: {documented: documented_stack}\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = ecoflap.load_registry(tmp_path / "registry.yaml")
    done = ecoflap.run(recipe("stack"), model=make(), folder=tmp_path / "run", registry=registry)
    assert int(sum(layer.weight.count_nonzero() for layer in done.model)) == done.plan.keep
    keys = {"version": 1, "sparsity": 0.5, "prune": "magnitude", "export": "safetensors"}
    ecoflap.run(keys, model=make(), folder=tmp_path / "found", registry=registry)
