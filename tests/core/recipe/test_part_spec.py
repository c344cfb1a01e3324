"""What a part does with what it is given is not what the recipe says."""

from dataclasses import dataclass, field

from ecoflap.core.recipe.part_spec import PartSpec


@dataclass
class Filling:
    """Keeps what it finds in a mapping that it is given."""

    found: dict[str, float] = field(default_factory=dict)

    def __call__(self, *given: object) -> None:
        self.found["a"] = 1.0


def test_what_a_part_puts_into_its_parameters_is_not_recorded():
    spec = PartSpec("pruner", "filling", {"found": {}}, Filling)
    spec.built()
    assert spec.built.found == {"a": 1.0}
    assert spec.plain() == {"use": "filling", "found": {}}
    inner = PartSpec("pruner", "outer", {"several": [spec]}, lambda several: several)
    assert inner.built == [spec.built]
