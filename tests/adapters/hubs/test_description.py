"""What a model was read with stays on it, and in no state dict."""

from copy import deepcopy

from torch import nn

from ecoflap.adapters.hubs.description import describe, description_of


def test_a_description_stays_on_the_model_and_its_copies():
    model, given = nn.Linear(2, 2), {"name": "a", "sizes": [1]}
    assert description_of(model) == {}
    describe(model, given)
    given["sizes"].append(2)  # type: ignore[attr-defined]
    assert description_of(model) == description_of(deepcopy(model)) == {"name": "a", "sizes": [1]}
    description_of(model)["sizes"].append(3)
    assert description_of(model)["sizes"] == [1]
    assert list(model.state_dict()) == ["weight", "bias"]
