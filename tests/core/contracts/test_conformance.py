"""A part is held to its kind's contract when a recipe names it: near misses, old signatures, wrong values."""

from inspect import getdoc, isfunction
from pathlib import Path

import pytest

from ecoflap import Anatomy, ColumnNorm, Gram, Measure, Pruned, load_registry
from ecoflap.adapters.llama import LlamaAdapter
from ecoflap.core.contracts.answers import has_member
from ecoflap.core.contracts.blame import PartError
from ecoflap.core.contracts.conformance import contract_problems, factory_problems, options_of
from ecoflap.core.contracts.kinds import KINDS
from ecoflap.core.contracts.options import EvaluatorOptions, PrunerOptions, ScorerOptions
from ecoflap.core.contracts.records import Answered
from ecoflap.core.errors import EcoflapError


class Scores:
    """A scorer with nothing but its duty."""

    def __call__(self, replay, layers):
        return iter(())


class Prunes:
    """A pruner with nothing but its duty."""

    def __call__(self, weight, seen, budget, layer):
        return Pruned(weight != 0, weight)


class Refines:
    """A refiner with nothing but its duty."""

    def __call__(self, view):
        pass


def problems(kind, part, parameters=()):
    return list(contract_problems(kind, part, parameters))


def with_members(kind, **members):
    duty = {"scorer": Scores, "pruner": Prunes, "refiner": Refines}[kind]
    return type("Mine", (duty,), members)()


def test_what_a_part_lacks_is_the_declared_default():
    options = options_of(ScorerOptions, Scores())
    assert (options.unit, options.samples, options.aggregate, options.data) == ("layer", None, "sum", True)
    assert options.forwards(Anatomy((), {}), 3) is None
    assert options_of(PrunerOptions, Prunes()).needs == ()


def test_what_a_part_has_is_taken_inherited_or_not():
    def forwards(self, anatomy, batches):
        return 7 * batches

    own = options_of(ScorerOptions, with_members("scorer", unit="block", samples=4, forwards=forwards))
    assert (own.unit, own.samples, own.aggregate, own.forwards(Anatomy((), {}), 2)) == ("block", 4, "sum", 14)

    class Inherits(PrunerOptions, Prunes):
        needs = (Gram,)

    assert options_of(PrunerOptions, Inherits()).needs == (Gram,)
    assert problems("pruner", Inherits()) == []


def test_a_property_that_fails_keeps_its_default_and_the_part_says_why():
    class Reads(Scores):
        @property
        def unit(self):
            raise EcoflapError("no such run")

    assert options_of(ScorerOptions, Reads()).unit == "layer"
    assert problems("scorer", Reads()) == []


class Misspells(Prunes):
    """A pruner that misspells its own metric where it is asked for what it needs."""

    metric = Prunes()

    @property
    def needs(self):
        return self.metrc.needs


@pytest.mark.parametrize(
    "ask", [lambda: options_of(PrunerOptions, Misspells()), lambda: problems("pruner", Misspells())]
)
def test_a_mistake_inside_a_property_is_told_and_no_default(ask):
    with pytest.raises(
        PartError, match=r"^the pruner Misspells, asked for its needs, raised AttributeError: .*'metrc'"
    ):
        ask()


def test_a_part_that_finds_its_members_as_it_is_asked_is_taken_at_its_word():
    class Passes(Scores):
        def __getattr__(self, name):
            if name == "unit":
                return "block"
            raise AttributeError(name)

    assert options_of(ScorerOptions, Passes()).unit == "block"
    assert options_of(ScorerOptions, Passes()).aggregate == "sum"
    assert problems("scorer", Passes()) == []


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("scorer", "agregate", "aggregate"),
        ("scorer", "sample", "samples"),
        ("scorer", "forward", "forwards"),
        ("pruner", "need", "needs"),
        ("pruner", "problem", "problems"),
    ],
)
def test_a_member_that_is_nearly_one_is_refused_with_the_nearest(kind, name, meant):
    (problem,) = problems(kind, with_members(kind, **{name: "mean"}))
    assert problem.startswith(f"it has a member {name!r}, which nothing reads. Did you mean {meant!r}?")
    assert "docs/hooks.md" in problem


def test_names_that_are_near_nothing_are_the_parts_own():
    assert problems("scorer", with_members("scorer", temperature=1.0, _agregate="mean", helper=lambda self: None)) == []


def test_a_parameter_may_be_a_singular_but_no_misspelt_member():
    assert problems("scorer", with_members("scorer", sample=3), parameters=["sample"]) == []
    (problem,) = problems("scorer", with_members("scorer", agregate="mean"), parameters=["agregate"])
    assert "Did you mean 'aggregate'?" in problem


@pytest.mark.parametrize(
    ("kind", "old", "said"),
    [
        ("pruner", lambda self, weight, statistic, budget: None,
         "its __call__ takes (weight, statistic, budget), and is called with (weight, seen, budget, layer)"),
        ("exporter", lambda self, model, adapter, folder: None,
         "its __call__ takes (model, adapter, folder), and is called with (pruned, folder)"),
        ("evaluator", lambda self, model, adapter: {},
         "its __call__ takes (model, adapter), and is called with (model, adapter, note)"),
        ("dataset", lambda self, adapter, model: [],
         "its __call__ takes (adapter, model), and is called with (adapter, model, note)"),
    ],
)  # fmt: skip
def test_a_part_for_the_old_signatures_is_refused_with_both(kind, old, said):
    (problem,) = problems(kind, type("Old", (), {"__call__": old})())
    assert problem.startswith(said)
    assert "another version of ecoflap. docs/hooks.md says what" in problem


def _found(self, model, adapter, note, dense):
    return {}


def _remembered(self, model, adapter, note):
    return {}


def test_an_evaluator_that_remembers_is_called_with_what_it_remembered():
    members = {"__call__": _found, "remember": _remembered}
    assert problems("evaluator", type("Compares", (), members)()) == []
    assert list(factory_problems("evaluator", type("Compares", (), members))) == []
    inherits = type("Inherits", (EvaluatorOptions,), members)
    assert problems("evaluator", inherits()) == list(factory_problems("evaluator", inherits)) == []
    assert options_of(EvaluatorOptions, inherits()).remember is not None
    plain = type("Plain", (EvaluatorOptions,), {"__call__": _remembered})  # which has the default, None
    assert problems("evaluator", plain()) == list(factory_problems("evaluator", plain)) == []


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"__call__": _remembered, "remember": _remembered},
         "its __call__ takes (model, adapter, note), and is called with (model, adapter, note, dense)"),
        ({"__call__": _found},
         "its __call__ takes (model, adapter, note, dense), and is called with (model, adapter, note)"),
        ({"__call__": _found, "remember": _found},
         "its remember takes (model, adapter, note, dense), and is called with (model, adapter, note)"),
        ({"__call__": _remembered, "remembers": _remembered},
         "it has a member 'remembers', which nothing reads. Did you mean 'remember'?"),
    ],
)  # fmt: skip
def test_an_evaluator_that_compares_is_held_to_its_own_contract(members, said):
    assert problems("evaluator", type("Odd", (), members)())[0].startswith(said)
    if "remembers" not in members:
        assert next(factory_problems("evaluator", type("Odd", (), members))).startswith(said)


@pytest.mark.parametrize("defaults", [(), (None, None)])
def test_problems_of_the_old_signature_are_refused(defaults):
    def ask(self, anatomy, recipe):
        return ()

    ask.__defaults__ = defaults or None
    (problem,) = problems("scorer", with_members("scorer", problems=ask))
    assert problem.startswith("its problems takes (anatomy, recipe), and is called with (context)")


@pytest.mark.parametrize(
    ("kind", "member", "value", "said"),
    [
        ("scorer", "aggregate", "summ", "its member aggregate should be 'sum', 'mean' or 'per_parameter', not 'summ'."),
        ("scorer", "unit", "blocks", "its member unit should be 'layer' or 'block', not 'blocks'."),
        ("scorer", "samples", "8", "its member samples should be a valid integer, not '8'."),
        ("scorer", "gives", "weight", "its member gives should be 'number', 'curve' or 'weights', not 'weight'."),
        ("pruner", "needs", [Gram], "its member needs should be a valid tuple, not [<class"),
        ("pruner", "needs", (3,), "its member needs should be a type, not (3,)."),
    ],
)
def test_a_member_of_another_type_is_refused(kind, member, value, said):
    (problem,) = problems(kind, with_members(kind, **{member: value}))
    assert problem.startswith(said)


def test_numbers_of_weights_are_of_layers():
    assert problems("scorer", with_members("scorer", gives="weights")) == []
    (problem,) = problems("scorer", with_members("scorer", gives="weights", unit="block"))
    assert problem.startswith("its member unit should be 'layer', of which numbers a weight are, not 'block'.")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"each": "subblock"}, "its each is for blocks, and its scope is the whole model."),
        ({"each": "subblock", "inside": True}, "its each and inside are for blocks, and its scope is the whole model."),
    ],
)
def test_a_refiner_of_the_whole_model_is_given_no_sub_blocks(members, said):
    assert problems("refiner", with_members("refiner", **members)) == []
    (problem,) = problems("refiner", with_members("refiner", scope="model", **members))
    assert problem.startswith(said)


def answering(name, answer):
    """A part of any kind whose method of this name, and no other, answers this."""
    return type("Mine", (), {"__call__": lambda self: None, name: lambda self, *given: answer})()


WITHOUT_DEFAULT = [
    ("allocator", "keeps", ([],), "all of them", "a whole number or None"),
    ("evaluator", "remember", (None, None, print), {"logits": 1.0}, "Mapping[a text, Tensor]"),
    ("evaluator", "answers", (None, None, print), ["red"], "Iterable[Answered]"),
    ("evaluator", "dealt", (None, None, print, None), {"loss": 1.0}, "Mapping[a text, Measure]"),
    ("exporter", "densify", (None, None), "model.onnx", "Path"),
]


@pytest.mark.parametrize(("kind", "name", "given", "wrong", "wanted"), WITHOUT_DEFAULT)
def test_a_wrong_answer_of_a_method_without_a_default_names_part_and_member(kind, name, given, wrong, wanted):
    asked = getattr(options_of(KINDS[kind].options, answering(name, wrong)), name)
    with pytest.raises(PartError) as error:
        asked(*given)
    assert str(error.value).startswith(
        f"the {kind} Mine, asked for its {name}, answered {wrong!r}, and is to answer {wanted}. docs/hooks.md"
    )


def test_a_right_answer_of_a_method_without_a_default_is_passed_on():
    measures = {"loss": Measure(1.0, 2, 0.5)}
    for kind, name, given, answer in [
        ("allocator", "keeps", ([],), 3),
        ("allocator", "keeps", ([],), None),
        ("evaluator", "dealt", (None, None, print, None), measures),
        ("evaluator", "dealt", (None, None, print, None, {}), measures),
        ("exporter", "densify", (None, None), Path("model.onnx")),
        ("adapter", "read_processor", (None, None), object()),
        ("adapter", "save_weights", (None, {}, None), "what nobody looks at"),
    ]:
        assert getattr(options_of(KINDS[kind].options, answering(name, answer)), name)(*given) is answer
    answers = (Answered("red", "0") for _ in range(2))
    assert (
        options_of(EvaluatorOptions, answering("answers", answers)).answers(None, None, print)
        == [Answered("red", "0")] * 2
    )


def test_an_error_of_the_disk_while_a_model_is_saved_stays_one():
    def full(self, model, folder):
        raise OSError(28, "No space left on device")

    options = options_of(KINDS["adapter"].options, type("Mine", (), {"save_surroundings": full})())
    with pytest.raises(OSError, match="No space left"):
        options.save_surroundings(None, None)


@pytest.mark.parametrize(
    ("kind", "members", "said"),
    [
        ("allocator", {"__call__": lambda self, groups, keep: [], "keeps": lambda self: 0},
         "its keeps takes (), and is called with (layers)"),
        ("exporter", {"__call__": lambda self, pruned, folder: None, "densify": staticmethod(lambda file: file)},
         "its densify takes (file), and is called with (file, target)"),
        ("evaluator", {"__call__": lambda self, model, adapter, note: {}, "dealt": lambda self, model: {}},
         "its dealt takes (model), and is called with (model, adapter, note, ranks)"),
        ("evaluator", {"__call__": lambda self, model, adapter, note, dense: {},
                       "remember": lambda self, model, adapter, note: {},
                       "dealt": lambda self, model, adapter, note, ranks: {}},
         "its dealt takes (model, adapter, note, ranks), and is called with (model, adapter, note, ranks, dense)"),
    ],
)  # fmt: skip
def test_a_method_without_a_default_of_another_signature_is_refused(kind, members, said):
    (problem,) = problems(kind, type("Mine", (), members)())
    assert problem.startswith(said)


def test_a_value_where_a_method_without_a_default_is_wanted_is_refused():
    members = {"__call__": lambda self, groups, keep: [], "keeps": 3}
    (problem,) = problems("allocator", type("Mine", (), members)())
    assert problem.startswith("its member keeps should be a method, not 3.")


def test_a_value_where_a_method_is_wanted_is_refused():
    (problem,) = problems("scorer", with_members("scorer", forwards=3))
    assert problem.startswith("its member forwards should be a method, not 3.")


def test_what_is_no_part_is_refused():
    assert problems("scorer", object())[0] == (
        "it is no scorer: it cannot be called. A scorer is called with (replay, layers)."
    )

    class Half(LlamaAdapter):
        collate = property()

        def colate(self, model, samples):
            return {}

    missing, *_ = problems("adapter", Half())
    assert missing.startswith("it is no adapter: it has no collate. Did you mean 'colate'?")


@pytest.mark.parametrize("kind", KINDS)
def test_the_built_ins_keep_the_contract(kind):
    registry = load_registry(installed=False)
    for name in registry.names(kind):
        factory = registry.find(kind, name)
        try:
            part = factory()
        except (TypeError, EcoflapError):  # one that needs a parameter
            continue
        assert problems(kind, part, getattr(factory, "__dataclass_fields__", ())) == [], name


@pytest.mark.parametrize("kind", KINDS)
def test_every_optional_member_is_declared_with_a_type_and_described(kind):
    options = KINDS[kind].options
    assert options.__doc__
    for name, member in vars(options).items():
        member = getattr(member, "__func__", member)
        if isfunction(member):
            assert getdoc(member)
            assert "return" in member.__annotations__
        elif not name.startswith("_"):
            assert name in options.__annotations__
            assert f":cvar {name}:" in options.__doc__


def test_what_a_pruner_needs_are_statistics():
    (problem,) = problems("pruner", with_members("pruner", needs=(dict,)))
    assert problem.startswith("its member needs has dict, which is no statistic: it has no add, merge, to.")


def test_a_statistic_that_misspells_its_gradients_is_refused():
    class Misspelt(Gram):
        def add_gradients(self, gradient): ...

    (problem,) = problems("pruner", with_members("pruner", needs=(Misspelt,)))
    assert problem.startswith("its statistic Misspelt has 'add_gradients'. Did you mean 'add_gradient'?")


class Static(Gram):
    @staticmethod
    def add(inputs): ...


def test_a_statistic_may_have_static_methods():
    assert problems("pruner", with_members("pruner", needs=(Static,))) == []


class NoWidth(Gram):
    def __init__(self):
        super().__init__(3)


class TwoInputs(Gram):
    def add(self, inputs, tokens): ...


class Damped(Gram):
    def __init__(self, in_features, *, damping):
        super().__init__(in_features)


@pytest.mark.parametrize(
    ("need", "said"),
    [
        (NoWidth, "__init__ of its statistic NoWidth takes (), and is called with (in_features)."),
        (TwoInputs, "add of its statistic TwoInputs takes (inputs, tokens), and is called with (inputs)."),
        (Damped, "__init__ of its statistic Damped takes (in_features, damping), and is called with (in_features)."),
    ],
)
def test_a_statistic_that_cannot_be_called_as_it_is_going_to_be_is_refused(need, said):
    assert problems("pruner", with_members("pruner", needs=(need,))) == [said]


def test_an_ability_of_the_old_signature_is_refused():
    class Older(LlamaAdapter):
        def tokens_of(self, text):
            return ()

    (problem,) = problems("adapter", Older())
    assert problem.startswith("its tokens_of takes (text), and is called with (model, text)")


def test_a_slot_that_is_empty_is_no_member():
    class Slotted:
        __slots__ = ("samples",)

    slotted = Slotted()
    assert not has_member(slotted, "samples")
    slotted.samples = 3
    assert has_member(slotted, "samples")


def test_a_kind_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(EcoflapError, match=r"no kind of part named 'prunner'\. Did you mean 'pruner'\?"):
        problems("prunner", Prunes())


class NeedsOne:
    """A pruner that names its one statistic without the comma."""

    needs = ColumnNorm

    def __call__(self, weight, seen, budget, layer):
        raise NotImplementedError


def test_the_commonest_slips_are_told_with_what_to_write():
    (told,) = problems("pruner", NeedsOne())
    assert "its member needs should be a valid tuple: (ColumnNorm,), not" in told
    (told,) = problems("pruner", NeedsOne)
    assert told.startswith("NeedsOne is a class, and a part is one of its instances: give NeedsOne(…).")
