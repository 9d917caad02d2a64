"""Comparisons by name: what they hold, and what they say before anything runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddice.cli import main
from ddice.runs.comparison import Comparison
from ddice.runs.comparison.suites import SUITES
from ddice.runs.comparison.table import render_published
from ddice.runs.presets import PRESETS


@pytest.fixture(autouse=True)
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)


def read(name: str) -> Comparison:
    return Comparison.model_validate(SUITES[name].comparison(Path("files")))


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_without_its_data_says_what_to_do_for_each(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--suite", name, "--run", str(tmp_path / "run")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("error: the suite lacks data, and nothing was begun")
    assert [line.split(":")[0].strip() for line in lines[1:]] == list(read(name).datasets)
    words = ("put http", "ddice data make", "ddice data collect", "minari download", "make_env_and")
    assert all(any(word in line for word in words) for line in lines[1:])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["d4rl-locomotion", "d4rl-antmaze"])
def test_the_tasks_of_the_paper_have_the_recipes_of_its_presets(name: str) -> None:
    """But for the folder of the files; five seeds, the one backend and extractor of the method."""
    tasks = read(name).tasks
    assert len(tasks) == {"d4rl-locomotion": 9, "d4rl-antmaze": 6}[name]
    for task in tasks:
        preset = PRESETS[f"official/{task.name}"]
        source = preset.data.model_copy(update={"source": f"files/{task.name}.hdf5"})
        assert task.recipe == preset.model_copy(update={"data": source})
        assert task.backends == {"piecewise_f": preset.backend}
        assert task.extractors == {"guide_then_select": preset.extractor}
    assert len(list(read(name).cells())) == len(tasks) * 2 * 5


def test_published_scores_stand_beside_ours() -> None:
    """Two of them, from the paper's table 1."""
    lines = render_published(read("d4rl-locomotion").datasets).splitlines()
    assert len(lines) == 2 + 9 * 2
    source = "arXiv 2407.20109, table 1"
    assert f"| hopper-medium-v2 | Diffusion-DICE | 100.2 | {source} |" in lines
    assert f"| walker2d-medium-replay-v2 | best other method | 95.5 | {source} |" in lines
    assert render_published(read("pointmaze").datasets) == ""


def test_antmaze_has_nowhere_to_play_until_it_is_said(tmp_path: Path) -> None:
    suite = SUITES["d4rl-antmaze"]
    for source in suite.sources.values():
        (tmp_path / source).touch()
    with pytest.raises(ValueError, match=r"to play antmaze-umaze-v2, .*29 observations"):
        suite.require(Comparison.model_validate(suite.comparison(tmp_path)))
    fields = suite.comparison(tmp_path)
    fields["recipe"]["data"]["env"] = "mine:AntMaze-v0"
    suite.require(Comparison.model_validate(fields))


def test_a_suite_has_its_own_preset(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--suite", "mujoco", "--preset", "maze", "--run", "r"]
    assert main(command) == 1
    assert "a suite has a preset of its own: leave --preset out" in capsys.readouterr().err
