"""Results as a table that others read, and results of others beside ours."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ddice.cli import main
from ddice.data.spec import ReferenceScores
from ddice.policies.evaluation import Evaluation
from ddice.policies.evaluation.playing import episode_seed
from ddice.runs.comparison import Result, Results, render_table
from ddice.runs.comparison.columns import COLUMNS, records
from ddice.runs.comparison.foreign import foreign_results
from ddice.runs.comparison.reading import read_results
from ddice.runs.comparison.store import MadeOn

ROOT = Path(__file__).parents[1]


def result(dataset: str | None, backend: str | None, seed: int, returns: list[float]) -> Result:
    """Random 10, expert 30: a return of 20 scores 50."""
    return Result(
        key=f"{dataset}/{backend}/{seed}",
        dataset=dataset,
        backend=backend,
        extractor="x" if backend else "behaviour policy",
        seed=seed,
        evaluation=Evaluation(
            env_id="Maze-v3",
            label="normalised by hand",
            reference=ReferenceScores(random=10.0, expert=30.0, source="hand"),
            seed=4,
            deterministic=False,
            returns=tuple(returns),
            scores=tuple(5 * (one - 10) for one in returns),
            lengths=(50,) * len(returns),
            successes=None,
            final_successes=None,
            seconds=2.0,
            policy_seconds=0.4,
        ),
        clip_rate=0.25,
        diagnostics={"mean_ratio": 1.5},
        train_seconds=7.0,
        train_cpu_seconds=6.0,
        source="maze.npz",
        fingerprint="abc",
        recipe={"seed": seed},
        made_on=MadeOn(
            code="c0de",
            versions={"torch": "2"},
            python="3.11",
            system="Linux",
            device="cpu",
            name="a processor",
            cores=2,
            threads=1,
        ),
        alarms=("look here",),
    )


ROWS = [
    result("b", "two", 1, [10.0, 20.0]),
    result("b", "two", 0, [30.0, 30.0]),
    result("a", None, 0, [10.0, 10.0]),
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    store = Results(folder / "results.jsonl")
    for row in ROWS:
        store.append(row)
    named = {"datasets": {"a": {}, "b": {}}, "backends": {"two": {}}, "extractors": {"x": {}}}
    (folder / "comparison.json").write_text(json.dumps({**named, "seeds": [0, 1]}))
    return folder


def test_the_last_result_of_every_policy_in_the_order_of_the_comparison(run_folder: Path) -> None:
    again = result("b", "two", 1, [20.0, 20.0])
    Results(run_folder / "results.jsonl").append(again)
    assert read_results(run_folder) == [ROWS[2], ROWS[1], again]


def test_all_columns_by_hand() -> None:
    (record,) = records(ROWS[:1])
    assert record == {
        "dataset": "b",
        "backend": "two",
        "extractor": "x",
        "seed": 1,
        "env_id": "Maze-v3",
        "reference_random": 10.0,
        "reference_expert": 30.0,
        "score": 25.0,
        "success_rate": None,
        "returns": [10.0, 20.0],
        "scores": [0.0, 50.0],
        "lengths": [50, 50],
        "successes": None,
        "final_successes": None,
        "evaluation_seed": 4,
        "episode_seeds": [episode_seed(4, 0), episode_seed(4, 1)],
        "deterministic": False,
        "decision_ms": pytest.approx(4.0),  # 100 decisions in 0.4 s
        "evaluation_seconds": 2.0,
        "train_seconds": 7.0,
        "train_cpu_seconds": 6.0,
        "clip_rate": 0.25,
        "mean_ratio": 1.5,
        "effective_sample_size": None,
        "value": None,
        "temperature": None,
        "alarms": ["look here"],
        "source": '"maze.npz"',
        "fingerprint": "abc",
        "recipe": '{"seed": 1}',
        "learning_curve": "null",
        "code": "c0de",
        "versions": '{"torch": "2"}',
        "python": "3.11",
        "system": "Linux",
        "device": "cpu",
        "processor": "a processor",
        "cores": 2,
        "threads": 1,
        "key": "b/two/1",
    }


def test_every_column_is_documented() -> None:
    page = (ROOT / "docs" / "comparisons.md").read_text()
    missing = [name for name in COLUMNS if f"`{name}`" not in page]
    assert missing == []


def test_a_csv_that_anybody_reads(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_folder / "all.csv"
    assert main(["results", str(run_folder), "--csv", str(path)]) == 0
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(COLUMNS)
    assert [(row["dataset"], row["seed"], row["score"]) for row in rows] == [
        ("a", "0", "0.0"),
        ("b", "0", "100.0"),
        ("b", "1", "25.0"),
    ]
    assert json.loads(rows[2]["returns"]) == [10.0, 20.0]
    assert rows[0]["effective_sample_size"] == ""
    assert capsys.readouterr().out == ""


def test_a_parquet_file(run_folder: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = run_folder / "all.parquet"
    assert main(["results", str(run_folder), "--parquet", str(path)]) == 0
    table = parquet.read_table(path)
    assert table.column_names == list(COLUMNS)
    assert table["returns"].to_pylist() == [[10.0, 10.0], [30.0, 30.0], [10.0, 20.0]]


def test_without_pyarrow_what_to_install_is_said(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert main(["results", str(run_folder), "--parquet", str(run_folder / "p")]) == 1
    assert "pip install 'ddice[parquet]', or take --csv" in capsys.readouterr().err


def test_a_folder_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", str(tmp_path)]) == 1
    assert "holds no results: expected a folder" in capsys.readouterr().err


# -- results of others


def write(path: Path, **cells: Any) -> Path:
    row = {
        "dataset": "b",
        "extractor": "their method",
        "seed": 7,
        "returns": "[10, 30]",
        "reference_random": 10,
        "reference_expert": 30,
        **cells,
    }
    kept = {name: cell for name, cell in row.items() if cell != "no column"}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, kept)
        writer.writeheader()
        writer.writerow(kept)
    return path


def test_a_method_of_others_stands_in_the_table(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "others.csv", backend="theirs", decision_ms=2, lengths="[50, 50]")
    (row,) = foreign_results(path, ROWS)
    assert (row.backend, row.extractor, row.seed) == ("theirs", "their method", 7)
    assert row.evaluation.scores == (0.0, 100.0)
    assert row.evaluation.decisions_per_second == pytest.approx(500)
    assert main(["results", str(run_folder), "--with", str(path)]) == 0
    table = capsys.readouterr().out
    assert "| theirs | their method | 50.0 |  | 50.0 |  |  |  |  | 500 |" in table
    # what they did not measure is empty, not 0
    (row,) = foreign_results(write(path), ROWS)
    assert "| their method | 50.0 |  | 50.0 |  |  |  |  |  |" in render_table([row])
    assert row.evaluation.seed == -1  # so that nothing is taken for a pair with our episodes
    (row,) = foreign_results(write(path, evaluation_seed=4), ROWS)
    assert row.evaluation.seed == 4
    (record,) = records(foreign_results(path, ROWS))
    assert [record[name] for name in ("clip_rate", "decision_ms", "train_seconds")] == [None] * 3


def test_what_we_wrote_is_read_again(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "ours.csv"
    main(["results", str(run_folder), "--csv", str(path)])
    again = foreign_results(path, ROWS)
    ours = read_results(run_folder)
    assert [row.evaluation.scores for row in again] == [row.evaluation.scores for row in ours]
    assert [row.evaluation.lengths for row in again] == [row.evaluation.lengths for row in ours]


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"returns": "no column"}, "lacks the columns returns: expected those"),
        ({"scoer": 1}, "has the columns 'scoer', which nobody reads"),
        ({"dataset": "c"}, "row 2: the dataset 'c' is none of ours: there are 'b', 'a'"),
        ({"seed": "x"}, "expected a whole number as a seed, got 'x'"),
        ({"returns": "71.5"}, r"expected returns as a list of numbers, .*got '71\.5'"),
        ({"returns": "[NaN]"}, "expected returns as a list of numbers"),
        ({"extractor": ""}, "extractor is empty"),
        (
            {"reference_expert": 3234.3},
            "its scores are normalised with random 10, expert 3234.3, ours normalised with random "
            "10, expert 30",
        ),
        ({"reference_random": "", "reference_expert": ""}, "its scores are raw returns, ours norm"),
        ({"reference_random": ""}, "give both reference_random and reference_expert, or none"),
        ({"scores": "[0, 1]"}, r"its scores, on average 0\.5, are not those of its returns, 50"),
        ({"lengths": "[5]"}, "1 lengths for 2 returns"),
        ({"clip_rate": "often"}, "expected a number as clip_rate, got 'often'"),
    ],
)
def test_a_csv_that_does_not_fit(cells: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        foreign_results(write(tmp_path / "others.csv", **cells), ROWS)


def test_a_csv_without_rows(tmp_path: Path) -> None:
    path = tmp_path / "others.csv"
    path.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(ValueError, match="has no rows below its columns"):
        foreign_results(path, ROWS)
