"""Options: flags to a tree, help that lists every leaf, and mistakes explained in a line."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel, ValidationError

from ddice.core.config import TAGS, kind_of, merge
from ddice.core.plugins import members as built_in
from ddice.dice_backends import AnyBackend, OptiDice, PiecewiseF
from ddice.diffusion.networks import MLP, FourierTime, PublishedScore
from ddice.diffusion.solvers import AnySolver
from ddice.extractors import WeightedBC
from ddice.parts.part import Optimizer
from ddice.runs.comparison import Comparison
from ddice.runs.options import describe_fields, explain, parse_flags, read_config
from ddice.runs.recipe import DataSource, Recipe


def kinds_of(union: Any) -> list[str]:
    return [str(kind_of(member)) for member in built_in(union)]


@pytest.mark.parametrize(
    ("tokens", "tree"),
    [
        ([], {}),
        (["--seed", "1"], {"seed": 1}),
        (["--seed=1"], {"seed": 1}),
        (["--a.b", "1.5", "--a.c=x", "--d", "true"], {"a": {"b": 1.5, "c": "x"}, "d": True}),
        (["--x", "-0.5"], {"x": -0.5}),
        (["--x", "1e-3"], {"x": 0.001}),
        (["--x", "[1, 2]", "--y", '{"kind": "k"}'], {"x": [1, 2], "y": {"kind": "k"}}),
        (["--x", "None", "--y", "null", "--z", "False"], {"x": None, "y": None, "z": False}),
        (["--x", "0,1,2"], {"x": "0,1,2"}),
        (["--x="], {"x": ""}),
        (["--x", "a=b"], {"x": "a=b"}),
        (["--x=a=b"], {"x": "a=b"}),
        (["--batch-size", "2", "--a-b.c-d", "3"], {"batch_size": 2, "a_b": {"c_d": 3}}),
        (["--x", "1", "--x", "2"], {"x": 2}),
    ],
)
def test_flags_become_a_tree(tokens: list[str], tree: dict[str, Any]) -> None:
    assert parse_flags(tokens) == tree


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["seed"], "expected an option such as --seed 1 or --backend.temperature 0.5, got 'seed'"),
        (["--"], "expected an option such as .* got '--'"),
        (["-s", "1"], "expected an option such as .* got '-s'"),
        (["--seed"], "option --seed needs a value"),
        (["--fast", "--seed", "1"], "option --fast needs a value, got the option --seed"),
        (
            ["--a", "1", "--a.b", "2"],
            "option --a.b sets a field of something that another option gave as a whole",
        ),
        (
            ["--a.b", "2", "--a", "1"],
            "option --a gives as a whole what another option sets a field of",
        ),
    ],
)
def test_flags_that_make_no_sense(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_flags(tokens)


@pytest.mark.parametrize(
    ("base", "changes", "merged"),
    [
        ({"a": 1, "b": 2}, {"b": 3}, {"a": 1, "b": 3}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": {"kind": "x", "b": 1}}, {"a": {"kind": "y", "c": 2}}, {"a": {"kind": "y", "c": 2}}),
        (
            {"a": {"kind": "x", "b": 1}},
            {"a": {"kind": "x", "c": 2}},
            {"a": {"kind": "x", "b": 1, "c": 2}},
        ),
        ({"a": {"kind": "x", "b": 1}}, {"a": {"b": 2}}, {"a": {"kind": "x", "b": 2}}),
        ({"a": {"rule": "x", "b": 1}}, {"a": {"rule": "y"}}, {"a": {"rule": "y"}}),
        ({"a": {"rule": "x", "b": 1}}, {"a": {"b": 2}}, {"a": {"rule": "x", "b": 2}}),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": {"b": 1}}, {"a": None}, {"a": None}),
        ({"a": None}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_merge(base: Any, changes: Any, merged: Any) -> None:
    before = json.dumps([base, changes])
    assert merge(base, changes) == merged
    assert json.dumps([base, changes]) == before


def test_fields_that_are_not_named_keep_the_default_of_their_place() -> None:
    """Not the default of their class: PiecewiseF documents a value network with layer norm, an
    MLP as such has none.
    """
    assert PiecewiseF.model_validate({"value": {"hidden": [8]}}).value == MLP(
        hidden=(8,), layer_norm=True
    )
    assert OptiDice.model_validate({"value": {"hidden": [8]}}).value == MLP(
        hidden=(8,), layer_norm=False
    )
    assert WeightedBC.model_validate({"optimizer": {"learning_rate": 1}}).optimizer == Optimizer(
        learning_rate=1, decay="cosine"
    )
    recipe = Recipe.model_validate(
        {
            "prior": {"network": {"width": 3}},
            "extractor": {"guidance": {"network": {"hidden": [4]}}},
        }
    )
    assert (recipe.prior.network.kind, recipe.prior.network.width, recipe.prior.network.blocks) == (
        "residual",
        3,
        3,
    )
    assert recipe.extractor.guidance.network == MLP(
        hidden=(4,), activation="silu", initialisation="kaiming"
    )


def test_another_kind_starts_from_its_own_defaults() -> None:
    recipe = Recipe.model_validate(
        {"prior": {"network": {"kind": "published", "time": {"size": 16}}}}
    )
    assert recipe.prior.network == PublishedScore(time=FourierTime(size=16))
    grid = {
        "backends": {"piecewise_f": {"value": {"hidden": [8]}}},
        "extractors": {"weighted_bc": {"solver": {"evaluations": 3}}},
    }
    comparison = Comparison.model_validate(grid)
    assert comparison.backends["piecewise_f"].value == MLP(hidden=(8,), layer_norm=True)
    assert (
        comparison.extractors["weighted_bc"].solver.kind,
        comparison.extractors["weighted_bc"].solver.evaluations,
    ) == ("single_step", 3)


def test_read_config(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"seed": 3}')
    assert read_config(path) == {"seed": 3}
    path.write_text('{"seed": ')
    with pytest.raises(
        ValueError, match=r"--config .*c\.json is not valid JSON: Expecting value: line 1 column 10"
    ):
        read_config(path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match=r"must hold a JSON object, got list"):
        read_config(path)
    with pytest.raises(FileNotFoundError, match=r"--config .*d\.json does not exist"):
        read_config(tmp_path / "d.json")


# -- the help text, against an independent walk over the models

Leaf = tuple[
    str, tuple[str, ...], Any
]  # dotted name, the kinds chosen on the way, the default in force


def members(annotation: Any) -> list[type[BaseModel]]:
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    options = (
        get_args(annotation)
        if get_origin(annotation) in (Union, types.UnionType)
        else (annotation,)
    )
    return [
        option
        for option in options
        if get_origin(option) is None
        and isinstance(option, type)
        and issubclass(option, BaseModel)
        and not getattr(option, "is_abstract", False)
    ]


def leaves(
    model: type[BaseModel], default: Any = None, prefix: str = "", kinds: tuple[str, ...] = ()
) -> Iterator[Leaf]:
    for name, field in model.model_fields.items():
        if name in TAGS:
            continue
        value = (
            "required"
            if field.is_required()
            else field.get_default(call_default_factory=True)
            if default is None
            else getattr(default, name)
        )
        inner = members(field.annotation)
        if not inner:
            yield f"{prefix}{name}", kinds, value
        elif len(inner) == 1:
            yield from leaves(inner[0], value, f"{prefix}{name}.", kinds)
        else:
            (tag,) = {tag for tag in TAGS for member in inner if tag in member.model_fields}
            shown = value if value == "required" else getattr(value, tag)
            yield f"{prefix}{name}.{tag}", kinds, shown
            for member in inner:
                kind = member.model_fields[tag].default
                yield from leaves(
                    member,
                    value if isinstance(value, member) else None,
                    f"{prefix}{name}.",
                    (*kinds, kind),
                )


def shown(value: Any) -> str:
    """A default as the help text should write it."""
    if isinstance(value, tuple):
        value = [
            item.model_dump(mode="json") if isinstance(item, BaseModel) else item for item in value
        ]
    return json.dumps(value)


@pytest.mark.parametrize("model", [Recipe, Comparison, DataSource])
def test_the_help_lists_every_leaf_with_the_default_in_force(model: type[BaseModel]) -> None:
    lines = describe_fields(model)
    every = list(leaves(model))
    assert len({name for name, _, _ in every}) > (5 if model is DataSource else 80)
    for name, _, default in every:
        mine = [line.strip() for line in lines if line.strip().startswith(f"--{name} ")]
        if default == "required":
            assert any("(required)" in line for line in mine), name
        elif name.split(".")[-1] in TAGS:
            assert any(line.endswith(f"}} = {default}") for line in mine), (name, default, mine)
        else:
            assert any(f" = {shown(default)}" in line for line in mine), (name, default, mine)
    # and nothing else: every line is a leaf, the description of a group of leaves, or the heading
    # of a kind
    known = {f"--{name}" for name, _, _ in every}
    kinds = {
        kind
        for line in lines
        if any(f".{tag}  {{" in line for tag in TAGS)
        for kind in line.partition("{")[2].partition("}")[0].split(",")
    }
    for line in map(str.strip, lines):
        first = line.split()[0]
        group = first.endswith(".*") and any(name.startswith(first[:-1]) for name in known)
        assert first in known or group or (first.endswith(":") and first[:-1] in kinds), line


@pytest.mark.parametrize("model", [Recipe, Comparison])
def test_every_leaf_of_the_default_can_be_set_by_its_flag(model: type[BaseModel]) -> None:
    """Each listed name, with its own default as the value, is accepted and changes nothing."""
    whole = model()
    base = whole.model_dump(mode="json")
    count = 0
    for name, kinds, default in leaves(model, whole):
        in_force = all(kind in json.dumps(base) for kind in kinds)
        if default == "required" or not in_force or name in ("backends", "extractors"):
            continue
        node: Any = base
        for key in name.split("."):
            node = node.get(key, KeyError) if isinstance(node, dict) else KeyError
        if node is KeyError:
            continue  # a field of another kind
        flags = parse_flags([f"--{name}", json.dumps(node)])
        assert model.model_validate(merge(base, flags)) == whole, name
        count += 1
    assert count > 60


def test_the_help_of_a_choice_names_its_kinds_and_what_each_adds() -> None:
    lines = [line.strip() for line in describe_fields(Recipe)]
    kinds = ",".join(kinds_of(AnyBackend))
    start = lines.index(f"--backend.kind  {{{kinds}}} = piecewise_f")
    section = lines[
        start : next(i for i, line in enumerate(lines) if line.startswith("--extractor.kind"))
    ]
    orthogonal = next(i for i, line in enumerate(section) if line.startswith("orthogonal: "))
    assert section[orthogonal + 1].startswith("--backend.trade_off  float = 0.6  ")
    opti = next(i for i, line in enumerate(section) if line.startswith("optidice: "))
    assert any(
        line.startswith("--backend.value.layer_norm  bool = false") for line in section[opti:]
    )  # another default than before
    assert not any(
        line.startswith("--backend.discount") for line in section[opti:]
    )  # the same as before


def test_plain_values_of_every_python() -> None:
    """list[int] is an instance of type before Python 3.11, and no class."""

    class Plain(BaseModel):
        numbers: list[int] = [1]
        table: dict[str, float] = {}

    assert describe_fields(Plain) == ["--numbers  [int] = [1]", "--table  dict = {}"]


# -- mistakes

MISTAKES = [
    ({"sed": 1}, "unknown field of Recipe 'sed': did you mean 'seed'? known are backend, "),
    (
        {"steps": {"prio": 1}},
        "steps: unknown field of Steps 'prio': did you mean 'prior'? known are backend, "
        "extractor, prior",
    ),
    ({"data": {"gaol": 1}}, "data: unknown field of DataSource 'gaol': did you mean 'goal'? "),
    (
        {"backend": {"temprature": 1}},
        "backend: unknown field of PiecewiseF 'temprature': did you mean 'temperature'? ",
    ),
    (
        {"backend": {"kind": "optidice", "divergense": "kl"}},
        "backend: unknown field of OptiDice 'divergense': did you mean 'divergence'? ",
    ),
    (
        {"backend": {"value": {"hiden": [1]}}},
        "backend.value: unknown field of MLP 'hiden': did you mean 'hidden'? ",
    ),
    (
        {"extractor": {"solver": {"evaluation": 3}}},
        "extractor.solver: unknown field of SingleStep 'evaluation': did you mean 'evaluations'? ",
    ),
    (
        {"extractor": {"guidance": {"time": {"kind": "fourier", "sise": 3}}}},
        "extractor.guidance.time: unknown field of FourierTime 'sise': did you mean 'size'? "
        "known are kind, scale, size",
    ),
    (
        {"backend": {"rewards": ["standardise"]}},
        "backend.rewards.0: unknown reward transform 'standardise': did you mean 'standardize'? ",
    ),
    (
        {"backend": {"rewards": [{"kind": "scale", "factr": 2}]}},
        "backend.rewards.0: unknown field of Scale 'factr': did you mean 'factor'? ",
    ),
    (
        {"backend": {"kind": "optidise"}},
        "backend: unknown kind 'optidise': did you mean 'optidice'? known are "
        + ", ".join(sorted(kinds_of(AnyBackend))),
    ),
    (
        {"backend": {"kind": "f_dice", "divergence": "kll"}},
        "backend.divergence: unknown divergence 'kll': did you mean 'kl'? ",
    ),
    (
        {"backend": {"kind": "f_dice", "divergence": {"kind": "kll"}}},
        "backend.divergence: unknown kind 'kll': did you mean 'kl'? ",
    ),
    (
        {"extractor": {"solver": {"kind": "dim"}}},
        "extractor.solver: unknown kind 'dim': did you mean 'ddim'? known are "
        + ", ".join(sorted(kinds_of(AnySolver))),
    ),
    (
        {"backend": "optidice"},
        "backend: expected fields, got 'optidice': a kind is chosen with --backend.kind",
    ),
    (
        {"seed": "x"},
        "seed: Input should be a valid integer, unable to parse string as an integer (got 'x')",
    ),
    (
        {"seed": 1.5},
        "seed: Input should be a valid integer, got a number with a fractional part (got 1.5)",
    ),
    (
        {"data": {"source": 5}},
        "data.source: Input should be a valid string; or Input should be a valid tuple (got 5)",
    ),
    ({"data": {"fraction": 0}}, "data.fraction: Input should be greater than 0 (got 0)"),
    ({"schedule": "jiont"}, "schedule: Input should be 'staged' or 'joint' (got 'jiont')"),
    (
        {"backend": {"temperature": "abc"}},
        "backend.temperature: expected a positive number or a target effective sample size such as",
    ),
    (
        {"backend": {"temperature": -1}},
        "backend.temperature: the temperature must be positive, got -1",
    ),
    (
        {"backend": {"value_weight": "x"}},
        "backend.value_weight: Input should be a valid number, unable to parse string as a "
        "number (got 'x')",
    ),
    (
        {"backend": {"rewards": [{"kind": "scale", "factor": -1}]}},
        "backend.rewards.0.factor: Input should be greater than 0 (got -1)",
    ),
    (
        {"extractor": {"selection": {"rule": "lbc"}}},
        "extractor.selection: unknown rule 'lbc': did you mean 'lcb'? known are lcb, mean, minimum",
    ),
    (
        {"extractor": {"selection": {"rule": "lcb", "temperature": 1.0}}},
        "extractor.selection: unknown field of LowerBoundSelection 'temperature': known are coeff",
    ),
    (
        {"schedule": "joint", "extractor": {"kind": "select_only"}},
        "joint training needs an extractor that learns from the backend: use schedule ",
    ),
]


@pytest.mark.parametrize(
    ("changes", "expected"), MISTAKES, ids=[json.dumps(changes) for changes, _ in MISTAKES]
)
def test_a_mistake_is_explained_in_one_line(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate(merge(Recipe().model_dump(mode="json"), changes))
    text = explain(caught.value, Recipe)
    assert text.startswith(expected)
    assert "\n" not in text
    assert "pydantic" not in text


def test_several_mistakes_are_several_lines() -> None:
    with pytest.raises(ValidationError) as caught:
        Recipe.model_validate({"seed": "x", "steps": {"prior": -1, "backend": "y"}})
    lines = explain(caught.value, Recipe).splitlines()
    assert [line.split(":")[0] for line in lines] == ["steps.prior", "steps.backend", "seed"]


def test_mistakes_in_a_grid_are_named_by_its_keys() -> None:
    with pytest.raises(ValidationError) as caught:
        Comparison.model_validate(
            {
                "backends": {"mine": {"kind": "optidise"}, "optidice": {"discont": 1}},
                "extractors": {"a": {"kind": "weighted_bc", "batch_size": 0}},
            }
        )
    lines = explain(caught.value, Comparison).splitlines()
    assert lines[0].startswith("backends.mine: unknown kind 'optidise': did you mean 'optidice'?")
    assert lines[1].startswith(
        "backends.optidice: unknown field of OptiDice 'discont': did you mean 'discount'?"
    )
    assert lines[2] == "extractors.a.batch_size: Input should be greater than or equal to 1 (got 0)"
    assert len(lines) == 3


DEEP = "[" * 100_000
NESTED = "{" + '"a": {' * 200 + "}" * 201


@pytest.mark.parametrize("text", [DEEP, NESTED])
def test_deep_values_are_refused_in_words(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="option --backend: it is nested more than 64 levels"):
        parse_flags(["--backend", text])
    path = tmp_path / "c.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"--config .*c\.json .*nested more than 64 levels deep"):
        read_config(path)


def test_a_deep_name_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="names a field 100 levels deep"):
        parse_flags(["--" + "a." * 100 + "b", "1"])
    assert parse_flags(["--" + "a." * 5 + "b", "1"])


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices")
def test_a_device_is_no_configuration() -> None:
    with pytest.raises(ValueError, match="is a device, a pipe or a socket"):
        read_config("/dev/zero")
