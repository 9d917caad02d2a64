"""What docs/ says is true: its Python runs, its commands are known, its links lead somewhere,
and its examples reach answers known otherwise.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import FULL, ROOT, blocks, broken_links, check_command, commands, namespace_of, run_block
from test_plugins import install, read_toml

import ddice
from ddice.cli import main
from ddice.data import Transitions
from ddice.dice_backends import PiecewiseF
from ddice.diffusion.guidance import Guidance
from ddice.diffusion.networks import MLP
from ddice.diffusion.schedule import VariancePreserving
from ddice.diffusion.solvers import FEW_STEPS, PUBLISHED
from ddice.extractors import GuideThenSelect, SelectOnly

DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
WITH_CODE = [page for page in DOCS if blocks(page.read_text(), "python")]


def run_page(name: str, maze: str, folder: Path, patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the Python of docs/`name`.md from top to bottom in `folder`; what it leaves behind."""
    patch.chdir(folder)
    patch.syspath_prepend(folder)
    patch.setenv("DDICE_CACHE", str(folder / "cache"))
    namespace = namespace_of(f"page_{name}", patch, {})
    for number, code in enumerate(blocks((ROOT / "docs" / f"{name}.md").read_text(), "python")):
        run_block(code, f"docs/{name}.md, block {number}", namespace, {FULL: maze})
    return namespace


@pytest.mark.gate
@pytest.mark.filterwarnings(
    "ignore:.*rows dropped", "ignore:.*no `?timeouts", "ignore:the guidance network is constant"
)
@pytest.mark.parametrize("name", [page.stem for page in WITH_CODE])
def test_python_runs(
    name: str, small_maze: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pages assert what they claim, where that is one line."""
    run_page(name, small_maze, tmp_path, monkeypatch)


def test_the_mistakes_of_check_are_found(
    small_maze: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_page("check", small_maze, tmp_path, monkeypatch)
    capsys.readouterr()
    assert main(["data", "check", "walk.npz", "--action-bounds", "[-1, 1]"]) == 0
    assert capsys.readouterr().out == blocks((ROOT / "docs/check.md").read_text(), "text")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_the_index_has_every_page() -> None:
    listed = re.findall(
        r"^\| \[(\w+\.md)\]", (ROOT / "docs/README.md").read_text(), flags=re.MULTILINE
    )
    assert sorted(listed) == [page.name for page in DOCS if page.name != "README.md"]


def test_the_defaults_of_the_concepts() -> None:
    """The numbers that docs/concepts.md gives for its symbols are those of the code."""
    page = (ROOT / "docs/concepts.md").read_text()
    guidance = Guidance()
    assert f"[t_min, 1], t_min = {VariancePreserving().t_min:g} |" in page
    assert f"[0, 1), {PiecewiseF().discount:g} |" in page
    assert f">= 1, {guidance.noises_per_action} | `Guidance` |" in page
    assert f">= 1, {GuideThenSelect().solver.evaluations} | solvers |" in page
    assert f"`log_floor` ({guidance.log_floor:g})" in page
    assert f"`exponent_cut` ({guidance.exponent_cut:g})" in page
    assert (
        f"K is small with guidance ({GuideThenSelect().candidates}) and larger without "
        f"({SelectOnly().candidates})" in page
    )
    assert (
        f"`PUBLISHED` takes {PUBLISHED.evaluations}, `FEW_STEPS` {FEW_STEPS.evaluations}." in page
    )


def test_broken_links_are_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# A heading, it's here\n\n```sh\n# no heading\n```\n")
    page.write_text(
        "[a](other.md) ![b](gone.png) [c](other.md#a-heading-its-here) "
        "[d](other.md#no-heading) [e](https://example.org/x) [f](#top)\n"
    )
    assert broken_links(page) == ["gone.png", "other.md#no-heading", "#top"]


@pytest.mark.parametrize(
    "command", sorted({line for page in PAGES for line in commands(page.read_text())})
)
def test_commands_are_known(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # for --config benchmarks/...
    check_command(command)


@pytest.mark.parametrize(
    "command",
    [
        "ddice trian",
        "ddice train --backend.temprature 1",
        "ddice evaluate runs/a --epsiodes 1",
        "ddice data check a.npz --gaol fixed",
    ],
)
def test_unknown_commands_are_seen(command: str) -> None:
    with pytest.raises((ValueError, SystemExit)):
        check_command(command)


def test_make_targets_and_scripts_exist() -> None:
    """`make target` and `python path.py` of the pages' sh blocks."""
    targets = set(re.findall(r"^(\w+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    lines = [
        line
        for page in PAGES
        for block in blocks(page.read_text(), "sh")
        for line in block.splitlines()
    ]
    assert {line.split()[1] for line in lines if line.startswith("make ")} <= targets
    assert [
        line
        for line in lines
        if line.startswith("python ") and not (ROOT / line.split()[1]).exists()
    ] == []


TAU, BETA, GAMMA = 0.8, 1.5, 0.5


def expectile(values: np.ndarray, tau: float) -> float:
    """The e at which tau E[(x - e)+] = (1 - tau) E[(e - x)+], by bisection."""
    low, high = values.min(), values.max()
    for _ in range(60):
        middle = (low + high) / 2
        above = (
            tau * np.maximum(values - middle, 0).mean()
            > (1 - tau) * np.maximum(middle - values, 0).mean()
        )
        low, high = (middle, high) if above else (low, middle)
    return float(low)


@dataclass(frozen=True)
class Known:
    """A small problem and, for each of its rows, V, Q and exp(BETA (Q - V)) of IQL in closed
    form.
    """

    data: Transitions
    value: np.ndarray
    q: np.ndarray
    weights: np.ndarray


def three_states() -> Known:
    """Five actions in each of the states -1, 0 and 1. Episodes go from -1 to 1 and end there, or
    are cut after a step from 0 to 1.
    """
    kinds = np.tile([-1.0, 1.0, 0.0], 40)  # two rows of one episode, one of the next
    actions = np.repeat(np.tile(np.linspace(-1, 1, 5), 8), 3)
    rewards = np.select([kinds == -1, kinds == 0], [actions, 1 - actions], 2 * actions**2)
    last = expectile(rewards[kinds == 1], TAU)
    q = rewards + GAMMA * last * (
        kinds != 1
    )  # past the cut too; a termination has nothing behind it
    value = np.select(
        [kinds == state for state in (-1, 0, 1)],
        [expectile(q[kinds == state], TAU) for state in (-1, 0, 1)],
    )
    arrays = {
        "observations": kinds[:, None],
        "next_observations": np.ones((120, 1)),
        "actions": actions[:, None],
        "rewards": rewards,
        "terminations": kinds == 1,
        "truncations": kinds == 0,
    }
    return Known(
        ddice.load_dataset(arrays, action_bounds=(-1, 1)), value, q, np.exp(BETA * (q - value))
    )


def test_the_critic_reaches_known_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The expectiles, Q and weights of docs/own_critic.md, with cuts and terminations."""
    namespace = namespace_of("page_own_critic", monkeypatch, {})
    run_block(
        blocks((ROOT / "docs/own_critic.md").read_text(), "python")[0],
        "docs/own_critic.md",
        namespace,
    )
    known = three_states()
    settings = {
        "expectile": TAU,
        "beta": BETA,
        "discount": GAMMA,
        "polyak": 0.1,
        "learning_rate": 1e-3,
        "batch_size": 960,
        "width": 32,
    }
    weights, q = namespace["iql"](known.data, steps=1000, **settings)
    batch = known.data.full()
    np.testing.assert_allclose(
        q(batch.observations, batch.actions).numpy(), np.stack([known.q] * 2), atol=0.02
    )
    np.testing.assert_allclose(weights.numpy(), known.weights, rtol=0.1)


def test_the_critic_is_short() -> None:
    """A page promises a baseline that can be read; the weights reach both extractors."""
    assert len(blocks((ROOT / "docs/own_critic.md").read_text(), "python")[0].splitlines()) <= 60


def test_the_backend_reaches_known_ratios(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The same answers from docs/own_backend.md, and from its conformance check a failure where
    one belongs.
    """
    monkeypatch.chdir(tmp_path)
    namespace = namespace_of("page_own_backend", monkeypatch, {})
    run_block(
        blocks((ROOT / "docs/own_backend.md").read_text(), "python")[0],
        "docs/own_backend.md",
        namespace,
    )
    known = three_states()
    small = MLP(hidden=(32, 32))
    settings = {
        "expectile": TAU,
        "temperature": 1 / BETA,
        "discount": GAMMA,
        "polyak": 0.1,
        "value": small,
        "critic": small,
        "batch_size": 960,
    }
    backend = namespace["MyIql"](**settings).fit(
        known.data, steps=1000, progress=False, device="cpu"
    )
    batch = known.data.full()
    np.testing.assert_allclose(
        backend.value(batch.observations).detach().numpy(), known.value, atol=0.02
    )
    np.testing.assert_allclose(backend.ratio(batch).numpy(), known.weights, rtol=0.1)


def test_the_backend_is_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the page's module and pyproject.toml installed, the command line knows the kind and
    its field.
    """
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/own_backend.md").read_text()
    run_block(
        blocks(page, "python")[0],
        "docs/own_backend.md",
        namespace_of("page_own_backend", monkeypatch, {}),
    )
    install(tmp_path / "site", read_toml(blocks(page, "toml")[0])["project"])
    (tmp_path / "ddice_my_iql.py").rename(tmp_path / "site" / "ddice_my_iql.py")
    monkeypatch.syspath_prepend(tmp_path / "site")
    try:
        assert main(["plugins"]) == 0
        listed = capsys.readouterr().out
        check_command("ddice train --backend.kind my_iql --backend.expectile 0.8")
        with pytest.raises(ValueError, match="expectile"):
            check_command("ddice train --backend.kind my_iql --backend.expectile 1.8")
    finally:
        sys.modules.pop("ddice_my_iql", None)
    assert "my_iql" in listed
    assert "ddice-my-iql 0.1.0" in listed
