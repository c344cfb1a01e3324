"""By its name a matrix is known that is kept on purpose."""

import pytest
from torch import nn

from ecoflap.core.model.kept_parts import is_connector, is_router, kept_outside


class TopKRouter(nn.Linear):
    pass


class TopKGating(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)


def model_of(path, module):
    """A model that has a module at a path."""
    whole = nn.Module()
    inner, names = whole, path.split(".")
    for name in names[:-1]:
        inner.add_module(name, nn.Module())
        inner = inner.get_submodule(name)
    inner.add_module(names[-1], module)
    return whole


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("lm_head", "head"),
        ("score", "head"),
        ("vision_model.head.mlp.fc1", "head"),
        ("pooler.dense", "head"),
        ("classifier", "head"),
        ("model.multi_modal_projector.linear_1", "connector"),
        ("visual_projection", "connector"),
        ("t5_proj", "connector"),
        ("visual.merger.mlp.0", "connector"),
        ("connector.modality_projection.proj", "connector"),
        ("model.embed_tokens", "embedding"),
        ("time_embedding.linear_1", "embedding"),
        ("position", "embedding"),
        ("gate", "router of experts"),
        ("mystery", None),
        ("decomposition", None),
        ("transformer.h", None),
    ],
)
def test_outside_the_blocks_names_tell(path, kind):
    assert kept_outside(model_of(path, nn.Linear(2, 2)), f"{path}.weight") == kind


def test_routers_are_known_by_class_or_name():
    assert is_router(model_of("mlp.choice", TopKRouter(2, 2)), "mlp.choice.weight")
    assert is_router(model_of("mlp.choice", TopKGating()), "mlp.choice.layer.weight")
    assert is_router(model_of("mlp.shared_expert_gate", nn.Linear(2, 1)), "mlp.shared_expert_gate.weight")
    assert not is_router(model_of("mlp.gate_proj", nn.Linear(2, 2)), "mlp.gate_proj.weight")


def test_connectors_are_known_by_any_module_around():
    assert is_connector("model.deepstack_merger_list.0")
    assert not is_connector("vision_model.encoder.layers")
    assert not is_connector("model.layers.0.mlp.gate_proj_norm")
