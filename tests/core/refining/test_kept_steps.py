"""Steps of a refiner that is cut off go on with the bits of one that is not."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ecoflap.core.disk.on_disk import lies_on_disk
from ecoflap.core.errors import FormatError
from ecoflap.core.ranks.ranks import ALONE
from ecoflap.core.refining.kept_steps import FORMAT, Kept, KeptSteps, put
from ecoflap.core.sealing.sealed import check_sealed, open_sealed, sealed, write_sealed

OWN = '{"refiner": "distill", "failed": 0, "of": 7, "done": 3}'
GOALS = (torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(2, 3, 5))


@pytest.fixture(autouse=True)
def at_every_step(monkeypatch):
    monkeypatch.setattr(KeptSteps, "EVERY", 0.0)


def kept_in(folder, refiner="distill", keep_in=None):
    told = []
    file, own = folder / "steps.safetensors", {"refiner": refiner}
    return KeptSteps(file, own, ALONE, lambda *now: told.append(now), keep_in=keep_in), told


def trained(kept, count, make, stop=None):
    """Weights after so many steps towards the goals, or as they are when the process ends before step ``stop``."""
    parameters = [nn.Parameter(torch.zeros_like(goal)) for goal in GOALS]
    optimiser = make(parameters)
    for step in kept.steps(count, parameters, optimiser):
        if step == stop:
            break
        optimiser.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimiser.zero_grad()
        sum((a - b).pow(2).sum() * (step + 1) for a, b in zip(parameters, GOALS, strict=True)).backward()
        optimiser.step()
    return [parameter.data for parameter in parameters]


def adam(parameters):
    return torch.optim.Adam(parameters, betas=(0.9, 0.95))


def fused(parameters):
    return torch.optim.Adam(parameters, betas=(0.9, 0.95), fused=True)


def momentum(parameters):
    return torch.optim.SGD(parameters, momentum=0.9)


def adafactor(parameters):
    """Keeps of a matrix a number for each row and each column."""
    return torch.optim.Adafactor(parameters)


@pytest.mark.parametrize("make", [adam, fused, momentum, adafactor])
@pytest.mark.parametrize("stop", [1, 4, 6])
def test_it_goes_on_with_the_same_bits(tmp_path, make, stop):
    (tmp_path / "whole").mkdir()
    whole = trained(kept_in(tmp_path / "whole")[0], 7, make)
    trained(kept_in(tmp_path)[0], 7, make, stop)
    kept, told = kept_in(tmp_path)
    for ours, theirs in zip(trained(kept, 7, make), whole, strict=True):
        assert torch.equal(ours, theirs)
    assert told == [(done, 7) for done in range(stop, 8)]
    check_sealed(kept.file, FORMAT)


@pytest.mark.parametrize("make", [adam, fused, adafactor])
def test_on_a_disk_they_do_too_and_what_is_taken_up_lies_there(tmp_path, make):
    (tmp_path / "whole").mkdir()
    whole = trained(kept_in(tmp_path / "whole")[0], 7, make)
    trained(kept_in(tmp_path, keep_in=tmp_path)[0], 7, make, 4)
    optimisers, lying = [], []

    def noted(parameters):
        optimisers.append(make(parameters))
        return optimisers[-1]

    kept = kept_in(tmp_path, keep_in=tmp_path)[0]
    steps = kept.steps

    def looked_at(*args):
        for step in steps(*args):
            state = [one for of in optimisers[0].state.values() for one in of.values() if one.dim() > 1]
            lying.append([lies_on_disk(one) for one in state])
            yield step

    seen = SimpleNamespace(steps=looked_at)
    assert all(map(torch.equal, trained(seen, 7, noted), whole))
    assert lying[0]
    assert all(lying[0])


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not tell what is mapped")
def test_the_file_that_was_taken_up_is_let_go_when_it_is_written_anew(tmp_path):
    kept, _ = kept_in(tmp_path, keep_in=tmp_path)
    trained(kept, 7, adam, stop=3)
    parameters = [nn.Parameter(torch.zeros_like(goal)) for goal in GOALS]
    optimiser = adam(parameters)
    for step in kept.steps(7, parameters, optimiser):
        if step > 4:
            assert "steps.safetensors" not in Path("/proc/self/maps").read_text("utf-8")
        sum(one.sum() for one in parameters).backward()
        optimiser.step()


@pytest.mark.parametrize(("make", "device"), [(adam, "cpu"), (fused, "meta")])
def test_steps_that_adam_has_counted_lie_where_it_looks_for_them(make, device):
    """A fused step has them beside the weight, as on a GPU, and any other on the CPU."""
    weight = nn.Parameter(torch.zeros(3, device="meta"))
    optimiser = make([weight])
    tensors = {Kept(0, "step"): torch.tensor(2.0), Kept(0, "exp_avg"): torch.zeros(3)}
    put(tensors, [weight], optimiser)
    assert optimiser.state[weight]["step"].device.type == device
    assert optimiser.state[weight]["exp_avg"].device.type == "meta"


def test_names_in_the_file_are_those_of_earlier_versions(tmp_path):
    """A run that one of them began goes on: from the third step, with these weights and what Adam knows of them."""
    kept, _ = kept_in(tmp_path)
    names = [f"{number} {key}" for number in range(2) for key in ("weight", "exp_avg", "exp_avg_sq", "step")]
    trained(kept, 7, adam, 3)
    with open_sealed(kept.file, FORMAT) as file:
        assert sorted(file.places) == sorted(names)
        tensors = {name: file.read(name) for name in names}
    write_sealed(kept.file, FORMAT, OWN, {name: sealed(tensor) for name, tensor in tensors.items()})
    (tmp_path / "whole").mkdir()
    whole = trained(kept_in(tmp_path / "whole")[0], 7, adam)
    kept, told = kept_in(tmp_path)
    assert all(map(torch.equal, trained(kept, 7, adam), whole))
    assert told[0] == (3, 7)


@pytest.mark.parametrize(("refiner", "count"), [("another", 7), ("distill", 8), ("distill", 2)])
def test_steps_of_another_refiner_are_not_taken_up(tmp_path, refiner, count):
    trained(kept_in(tmp_path)[0], 7, adam, 5)
    kept, told = kept_in(tmp_path, refiner)
    (tmp_path / "new").mkdir()
    fresh = trained(kept_in(tmp_path / "new")[0], count, adam)
    assert all(map(torch.equal, trained(kept, count, adam), fresh))
    assert told[0] == (0, count)


def test_steps_of_another_try_are_not_taken_up(tmp_path):
    kept, _ = kept_in(tmp_path)
    assert kept.failed_before() == 0
    trained(replace(kept, failed=1), 7, adam, 5)
    assert kept.failed_before() == 1
    assert kept_in(tmp_path, "another")[0].failed_before() == 0
    (tmp_path / "new").mkdir()
    fresh = trained(kept_in(tmp_path / "new")[0], 7, adam)
    assert all(map(torch.equal, trained(kept, 7, adam), fresh))


def test_a_damaged_file_is_refused_with_the_way_out(tmp_path):
    kept, _ = kept_in(tmp_path)
    trained(kept, 7, adam, 3)
    content = bytearray(kept.file.read_bytes())
    content[-3] ^= 4
    kept.file.write_bytes(content)
    with pytest.raises(FormatError, match=r"steps\.safetensors.*is damaged.*Delete it, and the refiner begins anew"):
        trained(kept_in(tmp_path)[0], 7, adam)
    with pytest.raises(FormatError, match="is damaged"):
        check_sealed(kept.file, FORMAT)


def test_a_file_of_another_format_is_refused(tmp_path):
    kept, _ = kept_in(tmp_path)
    write_sealed(kept.file, "ecoflap.block", "{}", {"a": sealed(torch.zeros(1))})
    with pytest.raises(FormatError, match="Delete it, and the refiner begins anew"):
        trained(kept, 7, adam)


@pytest.mark.parametrize(
    ("manifest", "tensors", "told"),
    [
        ("[1]", {}, r"its manifest .*Delete it, and the refiner begins anew"),
        ("{", {}, r"its manifest .*Delete it, and the refiner begins anew"),
        (OWN, {"9 weight": 1}, r"'9 weight' is \(1,\), .* there is None\. Del"),
        (OWN, {"0 weight": 2}, r"'0 weight' is \(2,\), .* is \(3, 4\)\. Del"),
        (OWN, {"weight": 5}, r"'weight' is \(5,\), .* there is None\. Del"),
        (OWN, {"01 weight": 5}, r"'01 weight' is \(5,\), .* there is None\. Del"),
        (OWN, {"1": 5}, r"'1' is \(5,\), .* there is None\. Del"),
        (OWN, {"9" * 5000: 5}, r"'999.* is \(5,\), .* there is None\. Del"),
    ],
)
def test_a_sealed_file_of_somebody_elses_making_is_refused(tmp_path, manifest, tensors, told):
    kept, _ = kept_in(tmp_path)
    content = {name: sealed(torch.zeros(size)) for name, size in {"1 weight": 5, **tensors}.items()}
    write_sealed(kept.file, "ecoflap.refining", manifest, content)
    with pytest.raises(FormatError, match=told) as caught:
        trained(kept, 7, adam)
    assert str(caught.value).count("Delete it") == 1


def test_nothing_is_written_before_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(KeptSteps, "EVERY", 1e9)
    kept, _ = kept_in(tmp_path)
    trained(kept, 7, adam)
    assert not kept.file.exists()


class Counting(torch.optim.SGD):
    """Counts its steps in a number of each weight, or of a group, and takes ever smaller ones."""

    def __init__(self, parameters, where):
        super().__init__(parameters, lr=0.1)
        self.where = where
        if where == "default":  # as Prodigy has it
            self.defaults["step"] = self.param_groups[0]["step"] = 0

    def step(self, closure=None):
        (group,) = self.param_groups
        for parameter in group["params"]:
            counted = self.state[parameter] if self.where == "weight" else group
            counted["step"] = counted.get("step", 0) + 1
            parameter.data.sub_(group["lr"] / counted["step"] * parameter.grad)


@pytest.mark.parametrize("where", ["weight", "group", "default"])
def test_what_is_counted_elsewhere_than_in_tensors_is_begun_anew(tmp_path, where):
    """Half of what an optimiser knows would lead elsewhere in silence."""

    def make(parameters):
        return Counting(parameters, where)

    kept, _ = kept_in(tmp_path)
    expected = trained(kept_in(tmp_path / "unbroken")[0], 7, make)
    trained(kept, 7, make, stop=4)
    assert not kept.file.exists()
    again, told = kept_in(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(trained(again, 7, make), expected, strict=True))
    assert told[0] == (0, 7)


def test_what_a_group_is_called_is_no_count(tmp_path):
    def make(parameters):
        return torch.optim.Adam([{"params": parameters, "name": "all", "lr_scale": 0.5}])

    kept, _ = kept_in(tmp_path)
    trained(kept, 7, make, stop=4)
    again, told = kept_in(tmp_path)
    trained(again, 7, make)
    assert told[0] == (4, 7)
