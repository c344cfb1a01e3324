"""Writes docs/recipe.md from the code: ``python -m ecoflap.core.recipe.docs > docs/recipe.md``."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from ecoflap.core.budget.counts import Pattern
from ecoflap.core.recipe.keys import Keys
from ecoflap.core.recipe.part_spec import PartSpec
from ecoflap.core.recipe.schema import CalibrationKeys, Model, Recipe, Score, TowerChoice

_OPENING = """\
# The recipe

A recipe says what is pruned, how much, and by which parts. This page is written by
`python -m ecoflap.core.recipe.docs`; a test holds it to the code.

```yaml
version: 1
model: {source: ./my-model, dtype: bfloat16}
calibration: {use: text, path: corpus.txt, batch_size: 4}
sparsity: 0.5
score: {use: zeroth_order, granularity: block}
allocate: {use: ecoflap, max_sparsity: 0.6}
prune: {use: wanda, compare: row}
export: safetensors
```

A part is written as its name, or as `{use: name, parameter: value}`. Its parameters are those of the code: `ecoflap
list` names them. A part that is not registered is written as an import path, `{use: my_package.pruners:Mine}`, which
is followed with `--allow-code` alone. A parameter that is itself a part is written the same way.

A path is relative to the folder of the file that writes it; on the command line, to the working directory.

The file is read as YAML 1.2: `2:4`, `on` and `yes` are texts, `1e-3` is a number, a key written twice is an error,
and tags are refused, as is a file of more than 500 kB. What an anchor names, `calibration: &data {…}`, may be
repeated, `*data`, or merged, `{<<: *data, samples: 8}`. The whole of the file is checked before anything is loaded,
and all problems are told at once, each with its file, line and column: also several of one part. What is wrong with
the model, or with what a dataset is to read, is told when the recipe itself is right.

`--set key.path=value` changes a recipe from the command line, as in `--set sparsity=0.6 --set prune.use=sparsegpt`.
Another `use` drops the parameters of the part that was there; `null` removes a key of the first table below;
`evaluate.0.samples=4` reaches into a list.

A number under `sparsity` is the share of weights pruned. A pattern `n:m` keeps n weights of every m consecutive inputs
and thereby fixes each layer's budget, so that it goes with no `score` and no `allocate`. `calibration` may be missing
where no part of the recipe but its evaluators looks at data.
"""

_SECTIONS: tuple[tuple[str, str, type[Keys]], ...] = (
    ("Keys", "", Recipe),
    ("`model`", "A bare text is the source.", Model),
    ("`calibration`", "A dataset; beside its own parameters:", CalibrationKeys),
    ("`score`", "A scorer; beside its own parameters:", Score),
    ("`towers.<name>`", "`keep`, or at least one of:", TowerChoice),
)
_WORDS: Mapping[Any, str] = {
    Model: "mapping",
    CalibrationKeys: "part",
    Score: "part",
    PartSpec: "part",
    Pattern: "text",
    str: "text",
    int: "whole number",
    float: "number, text",
    Path: "path",
    bool: "`true`, `false`",
}


def recipe_schema() -> str:
    """Write the page, in Markdown."""
    sections = ["\n".join(_section(*section)) for section in _SECTIONS]
    return "\n".join([_OPENING, *sections])


def _section(title: str, before: str, model: type[Keys]) -> Iterator[str]:
    yield f"## {title}\n"
    if before:
        yield f"{before}\n"
    yield "| key | value | default | what it is |"
    yield "|---|---|---|---|"
    for name, field in model.model_fields.items():
        # The part itself is written by its use: and not under a key.
        if name != model.inline:
            yield f"| `{name}` | {_type(field.annotation)} | {_default(model, name, field)} | {field.description} |"
    yield ""


def _default(model: type[Keys], name: str, field: FieldInfo) -> str:
    if name in ("aggregate", "allocate"):
        return "see right"
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if default is None or default in ((), {}):
        return "this or `pattern`" if (model, name) == (Recipe, "sparsity") else ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inside)
    if origin in (Union, UnionType):
        return ", ".join(_type(branch) for branch in inside if branch is not NoneType)
    if origin is Annotated:
        return _type(inside[0])
    if origin is tuple:
        return f"list of {'number' if inside[0] is float else _type(inside[0])}s"
    return "mapping" if origin is Mapping else _WORDS[annotation]


if __name__ == "__main__":
    print(recipe_schema(), end="")
