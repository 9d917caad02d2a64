"""The examples run, as they are, with tiny budgets; and with their own they do what they say."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from pages import broken_links

FOLDER = Path(__file__).parents[1] / "examples"
SCRIPTS = {"own_env", "own_critic", "sweep", "robot", "compare"}


@pytest.fixture(autouse=True)
def _own_folder(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    monkeypatch.chdir(tmp_path_factory.mktemp("examples"))
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield
    for name in SCRIPTS & (set(sys.modules) - before):
        del sys.modules[name]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recordings of eight episodes."""
    reach = importlib.import_module("reach")
    monkeypatch.setattr(reach, "record", lambda record=reach.record: record(episodes=8))


def script(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_every_example_is_listed_and_tested() -> None:
    page = (FOLDER / "README.md").read_text()
    files = {path.name for path in FOLDER.iterdir() if path.suffix in (".py", ".ipynb")}
    assert set(re.findall(r"\[([\w.]+)\]\(\1\)", page)) == files
    assert files == {f"{name}.py" for name in SCRIPTS | {"reach"}} | {"tour.ipynb"}
    assert broken_links(FOLDER / "README.md") == []


def test_the_recording_is_what_was_played() -> None:
    """Rewards and next observations follow from the dynamics; an episode is 30 steps."""
    reach = script("reach")
    rows = reach.record(episodes=3)
    assert rows["truncations"].nonzero()[0].tolist() == [29, 59, 89]
    assert not rows["terminations"].any()
    after = np.clip(rows["observations"] + reach.STEP * rows["actions"], -1, 1)
    np.testing.assert_allclose(rows["next_observations"], after, atol=1e-6)
    np.testing.assert_allclose(
        rows["rewards"], -np.linalg.norm(after - reach.GOAL, axis=1), atol=1e-6
    )
    inside = ~rows["truncations"][:-1]
    assert (rows["next_observations"][:-1][inside] == rows["observations"][1:][inside]).all()


def test_own_env(few: None) -> None:
    before, after = script("own_env").main(steps=2, episodes=2)
    assert -60 < before < 0
    assert -60 < after < 0
    assert Path("runs/own_env/policy/policy.safetensors").exists()


def test_own_critic(few: None) -> None:
    """Better than expected weighs more than 1, worse less."""
    import ddice

    module = script("own_critic")
    data = ddice.load_dataset(script("reach").record(), action_bounds=(-1, 1))
    assert set(module.main(steps=2, episodes=2)) == {"diffusion", "gaussian"}
    returns = data.returns_to_go(data.rewards, module.DISCOUNT).numpy()
    weights = module.weights_of(data)
    assert np.corrcoef(np.log(weights), returns)[0, 1] > 0.2


@pytest.mark.slow
def test_sweep(few: None) -> None:
    module = script("sweep")
    assert tuple(module.main(steps=2, episodes=2)) == module.TEMPERATURES


def test_robot(few: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    module = script("robot")
    monkeypatch.setattr(module, "PERIOD", 0)
    assert 0 <= module.main(steps=2, ticks=3) < np.sqrt(8) + 1
    assert Path("runs/robot/policy.onnx").exists()


@pytest.mark.slow
def test_compare(few: None, capsys: pytest.CaptureFixture[str]) -> None:
    difference = script("compare").main(steps=2, episodes=2)
    assert len(difference.first.returns) == 2
    assert "| piecewise_f | guide_then_select |" in capsys.readouterr().out


def test_the_notebook(few: None) -> None:
    pytest.importorskip("matplotlib")
    notebook = json.loads((FOLDER / "tour.ipynb").read_text())
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    short = code[0].replace("STEPS, EPISODES = 2000, 30", "STEPS, EPISODES = 2, 2")
    assert short != code[0]
    namespace: dict[str, object] = {}
    for number, text in enumerate([short, *code[1:]]):
        exec(compile(text, f"tour.ipynb, cell {number}", "exec"), namespace)
    assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
def test_the_policy_of_own_env_is_better_than_the_behaviour() -> None:
    before, after = script("own_env").main()
    assert after > before + 3


@pytest.mark.slow
def test_the_sweep_at_full_length() -> None:
    assert max(script("sweep").main().values()) > -20
