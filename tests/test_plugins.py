"""Parts of other packages: found by entry points, imported only when asked for, checked by the
same suites, and never broken in silence.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import small
from pydantic import TypeAdapter, ValidationError

from ddice.cli import main
from ddice.core import plugins
from ddice.dice_backends import AnyBackend, PiecewiseF
from ddice.extractors import AnyExtractor, GuideThenSelect
from ddice.runs.comparison import Comparison
from ddice.runs.recipe import Recipe
from ddice.runs.training import train
from ddice.testing import BACKEND_CHECKS, EXTRACTOR_CHECKS, check_backend, check_extractor

EXAMPLE = Path(__file__).parent / "plugin_example"
BACKEND = {
    "kind": "advantage_weighted",
    "value": small.NETWORK,
    "advantage": {"network": small.NETWORK},
    "batch_size": 16,
    "clip": 2.0,
}
EXTRACTOR = {"kind": "filtered_bc", "gaussian": {"network": small.NETWORK}}


def read_toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # Python 3.10, where pytest brings its backport
        import tomli as tomllib  # type: ignore[no-redef]
    return tomllib.loads(text)


def install(folder: Path, project: dict[str, Any]) -> None:
    """What an installer leaves behind: METADATA and entry_points.txt in a .dist-info folder."""
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    lines = [
        line
        for group, entries in project["entry-points"].items()
        for line in (f"[{group}]", *(f"{k} = {v}" for k, v in entries.items()), "")
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages with the example in it."""
    folder = tmp_path / "site"
    install(folder, read_toml((EXAMPLE / "pyproject.toml").read_text())["project"])
    shutil.copy(EXAMPLE / "ddice_example.py", folder)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("ddice_example", None)


def offer(folder: Path, name: str, group: str, kind: str, value: str, module: str = "") -> None:
    """Install one more package, with one entry point."""
    install(folder, {"name": name, "version": "1.0", "entry-points": {group: {kind: value}}})
    (folder / f"{value.partition(':')[0]}.py").write_text(module)


def backend(fields: dict[str, Any]) -> Any:
    return TypeAdapter(AnyBackend).validate_python(fields)


@pytest.mark.parametrize("check", BACKEND_CHECKS, ids=lambda c: c.__name__)
def test_the_example_backend_conforms(check: Any, site: Path) -> None:
    check_backend(backend(BACKEND), checks=[check])


@pytest.mark.parametrize("check", EXTRACTOR_CHECKS, ids=lambda c: c.__name__)
def test_the_example_extractor_conforms(check: Any, site: Path) -> None:
    check_extractor(TypeAdapter(AnyExtractor).validate_python(EXTRACTOR), checks=[check])


def test_a_recipe_of_plugins_survives_json(site: Path) -> None:
    recipe = Recipe.model_validate({"backend": BACKEND, "extractor": EXTRACTOR})
    assert type(recipe.backend).__name__ == "AdvantageWeighted"
    assert (recipe.backend.clip, recipe.extractor.kind) == (2.0, "filtered_bc")
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe
    assert recipe.model_dump(mode="json")["backend"]["clip"] == 2.0
    again = recipe.model_dump(mode="json")
    again["backend"]["clip"] = 3.0
    assert Recipe.model_validate(again).digest() != recipe.digest()
    comparison = Comparison.model_validate(
        {"backends": "advantage_weighted,piecewise_f", "extractors": {"filtered_bc": EXTRACTOR}}
    )
    assert [config.kind for config in comparison.backends.values()] == [
        "advantage_weighted",
        "piecewise_f",
    ]
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison


def test_objects_are_taken_as_they_are(site: Path) -> None:
    import ddice_example

    own = ddice_example.AdvantageWeighted(clip=1.0)
    assert Recipe(backend=own).backend is own
    assert Recipe(backend=PiecewiseF(temperature=2.0)).backend == PiecewiseF(temperature=2.0)
    for mixed_up in (
        {"extractor": own},
        {"backend": GuideThenSelect()},
        {"extractor": PiecewiseF()},
    ):
        with pytest.raises(ValidationError):
            Recipe(**mixed_up)
    for wrong in (3, None, "piecewise_f", [], {"kind": 3}):
        with pytest.raises(ValidationError):
            Recipe.model_validate({"backend": wrong})


def test_what_is_built_in_is_written_as_before() -> None:
    recipe = Recipe(backend=PiecewiseF(temperature=2.0), extractor=GuideThenSelect(candidates=3))
    assert recipe.model_dump(mode="json")["backend"] == PiecewiseF(temperature=2.0).model_dump(
        mode="json"
    )
    assert json.loads(recipe.model_dump_json())["extractor"] == GuideThenSelect(
        candidates=3
    ).model_dump(mode="json")
    assert recipe.model_dump()["backend"]["temperature"] == 2.0
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_only_the_kind_that_is_asked_for_is_imported(site: Path) -> None:
    offer(
        site,
        "other",
        "ddice.backends",
        "unrelated",
        "ddice_unrelated:Backend",
        "raise RuntimeError('imported')",
    )
    backend({"kind": "piecewise_f"})
    assert "ddice_example" not in sys.modules
    backend(BACKEND)
    assert "ddice_example" in sys.modules
    assert "ddice_unrelated" not in sys.modules


BROKEN = {
    "import error": (
        "import no_such_module",
        r"'bad' \(bad 1\.0, ddice_bad:Bad\) cannot be imported: ModuleNotFoundError: No module "
        r"named 'no_",
    ),
    "any error": (
        "raise RuntimeError('no licence')",
        r"cannot be imported: RuntimeError: no licence",
    ),
    "no such name": ("", r"cannot be imported: AttributeError: .*has no attribute 'Bad'"),
    "no configuration": (
        "Bad = 3",
        r"must be a subclass of ddice\.dice_backends\.base\.BackendConfig, got 3",
    ),
    "another kind": (
        "from ddice.dice_backends import PiecewiseF as Bad",
        r'needs a field kind: Literal\["bad"\] = "bad", got kind \'piecewise_f\'',
    ),
    "abstract": (
        "from ddice.dice_backends import BackendConfig as Bad",
        r"must be a final subclass of ddice\.dice_backends\.base\.BackendConfig: this one is abs",
    ),
}


@pytest.mark.parametrize(("module", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_what_is_wrong_with_a_plugin_is_shown(
    module: str, message: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offer(site, "bad", "ddice.backends", "bad", "ddice_bad:Bad", module)
    with pytest.raises(ValidationError, match=message):
        backend({"kind": "bad"})
    assert main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    sys.modules.pop("ddice_bad", None)
    assert len(lines) == 3
    assert any(
        line.startswith("ddice.backends  bad  (bad 1.0, ddice_bad:Bad)  BROKEN: the plugin 'bad' ")
        for line in lines
    )
    example = (
        "ddice.backends  advantage_weighted  (ddice-example 0.3.1, "
        "ddice_example:AdvantageWeighted)  V by temporal differences, ratio exp("
    )
    assert any(line.startswith(example) for line in lines)
    assert any(
        line.startswith(
            "ddice.extractors  filtered_bc  (ddice-example 0.3.1, ddice_example:FilteredBC)  A "
            "Gaussian"
        )
        for line in lines
    )


def test_a_kind_that_two_packages_offer(site: Path) -> None:
    for name in ("one", "two"):
        offer(site, name, "ddice.backends", "double", f"ddice_{name}:Double")
    with pytest.raises(
        ValidationError,
        match=(
            r"several packages offer the kind 'double': .*one 1\.0, "
            r"ddice_one:Double.*Uninstall all but one"
        ),
    ):
        backend({"kind": "double"})


def test_an_extractor_plugin_must_be_one(site: Path) -> None:
    offer(
        site,
        "mixed",
        "ddice.extractors",
        "advantage_weighted",
        "ddice_example:AdvantageWeighted",
        (EXAMPLE / "ddice_example.py").read_text(),
    )
    with pytest.raises(
        ValidationError, match=r"must be a subclass of ddice\.extractors\.base\.ExtractorConfig"
    ):
        TypeAdapter(AnyExtractor).validate_python({"kind": "advantage_weighted"})


def test_an_unknown_kind_names_plugins_too(site: Path) -> None:
    with pytest.raises(
        ValidationError,
        match=(
            r"unknown kind 'advantage_wated': did you mean 'advantage_weighted'.*known are "
            r"advantage_weighted, d"
        ),
    ):
        backend({"kind": "advantage_wated"})


def test_without_plugins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "entry_points", lambda group: ())
    assert main(["plugins"]) == 0
    assert (
        capsys.readouterr().out
        == f"no package offers entry points of {', '.join(plugins.GROUPS)}\n"
    )
    with pytest.raises(ValidationError, match="unknown kind 'advantage_weighted'"):
        backend(BACKEND)


def test_options_of_a_plugin(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train by the command line; a mistake in a plugin's field is named as it was typed."""
    flags = small.flags(
        small.write_npz(tmp_path / "data.npz"),
        {**small.FIELDS, "backend": BACKEND, "extractor": EXTRACTOR},
    )
    flags += [
        "--data.source",
        str(tmp_path / "data.npz"),
        "--data.env",
        small.ENV,
        "--device",
        "cpu",
    ]
    assert main(["train", "--no-progress", "--run", str(tmp_path / "run"), *flags]) == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["backend"]["clip"] == 2.0
    assert (tmp_path / "run" / "policy" / "policy.json").exists()
    capsys.readouterr()
    assert main(["train", "--no-progress", *flags, "--backend.clip", "-1"]) == 1
    assert (
        capsys.readouterr().err == "error: backend.clip: Input should be greater than 0 (got -1)\n"
    )
    assert main(["train", "--no-progress", *flags, "--backend.clop", "1"]) == 1
    assert (
        "unknown field of AdvantageWeighted 'clop': did you mean 'clip'?" in capsys.readouterr().err
    )
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    assert "--backend.kind  {piecewise_f," in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:.*rows dropped")
def test_a_recipe_of_plugins_trains(site: Path, tmp_path: Path) -> None:
    recipe = small.recipe(
        small.write_npz(tmp_path / "data.npz"),
        backend=BACKEND,
        extractor=EXTRACTOR,
        evaluation={"episodes": 0},
    )
    trained, _ = train(recipe, progress=False, say=lambda text: None)
    again, _ = train(recipe, progress=False, say=lambda text: None)  # from the cache
    assert trained.policy.config.notes["backend"] == "advantage_weighted"
    data = recipe.data.load().full()
    assert (trained.backend.log_ratio(data) == again.backend.log_ratio(data)).all()


def test_an_entry_point_without_a_package() -> None:
    assert plugins.origin(EntryPoint("a", "b:C", "ddice.backends")) == "an unknown package, b:C"
