"""The figure of a run's metrics: what is drawn, by numbers that are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddice.cli import main
from ddice.parts.loop import Terminated, TrainingDiverged
from ddice.runs.metrics_figure import (
    LEGEND,
    Panel,
    metrics_figure,
    panels_by_question,
    plot_metrics,
    smooth,
)
from ddice.runs.questions import part_of, reading

Curves = dict[tuple[str, str], list[tuple[int, float]]]


def curve(values: Any) -> list[tuple[int, float]]:
    return [(100 * (place + 1), float(value)) for place, value in enumerate(values)]


def curves() -> Curves:
    """40 points each: a prior, a backend whose ratios oscillate about 1 and whose temperature is
    given, an extractor of somebody's own.
    """
    signs = np.where(np.arange(40) % 2, 1.0, -1.0)
    return {
        ("prior", "loss"): curve(np.linspace(4, 2, 40)),
        ("backend", "mean_ratio"): curve(1 + 0.5 * signs),
        ("backend", "mean_ratio_expected"): curve(np.ones(40)),
        ("backend", "temperature"): curve(np.full(40, 0.25)),
        ("backend", "flow_balance"): curve(1.5 + signs),
        ("extractor", "own"): curve(signs),
    }


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    """Of 40 points two on each side: inside five points, at an end three and four."""
    values = np.arange(40.0) ** 2
    smoothed = smooth(values)
    assert smoothed[10] == pytest.approx(np.mean([64, 81, 100, 121, 144]))
    assert smoothed[0] == pytest.approx((0 + 1 + 4) / 3)
    assert smoothed[1] == pytest.approx((0 + 1 + 4 + 9) / 4)
    assert smoothed[-1] == pytest.approx((37**2 + 38**2 + 39**2) / 3)
    few = np.array([3.0, 1.0, 2.0])
    assert smooth(few).tolist() == few.tolist()


def test_metrics_are_grouped_by_question() -> None:
    found = panels_by_question(curves())
    assert {question: [panel.name for panel in panels] for question, panels in found.items()} == {
        "Does the prior fit?": ["loss"],
        "Do the ratios hold?": ["mean_ratio", "temperature", "flow_balance"],
        "Does the policy learn?": ["own"],
    }


def test_what_it_should_be_stands_beside_what_it_is() -> None:
    ratios = {panel.name: panel for panel in panels_by_question(curves())["Do the ratios hold?"]}
    # the last three are 1.5, 0.5 and 1.5 of the ratios, 2.5, 0.5 and 2.5 of the balance
    assert ratios["mean_ratio"].title == "backend · mean_ratio: 1.17, should be 1"
    assert ratios["flow_balance"].title == "backend · flow_balance: 1.83, should be 1"
    assert ratios["temperature"].title == "backend · temperature: 0.25"
    assert [panel.constant for panel in ratios.values()] == [False, True, False]


def test_a_joint_stage_is_read_as_its_parts() -> None:
    found = panels_by_question(
        {
            ("joint", "backend/mean_ratio"): curve([3, 2, 1]),
            ("joint", "backend/mean_ratio_expected"): curve([1, 1, 1]),
            ("joint", "extractor/loss"): curve([2, 1, 0]),
        }
    )
    (ratio,), (loss,) = found.values()
    assert (ratio.part, ratio.name, loss.part, loss.name) == (
        "backend",
        "mean_ratio",
        "extractor",
        "loss",
    )
    assert ratio.expected is not None
    assert part_of("backend", "best/of_8") == ("backend", "best/of_8")
    assert reading("backend", "evaluation/score") == reading("evaluation", "score")
    assert reading("backend", "evaluation/score").sound


def test_an_unknown_metric_is_asked_with_its_stage() -> None:
    questions = [reading(part, "own").question for part in ("prior", "backend", "extractor", "x")]
    assert questions == [
        "Does the prior fit?",
        "Is the critic sane?",
        "Does the policy learn?",
        "What else was measured?",
    ]
    for stage in ("extractor", "joint"):
        part, name = part_of(stage, "evaluation/score")
        assert (part, name) == (stage, "evaluation/score")
        assert reading(part, name).question == "How well does it play?"


def test_curves_and_texts_of_the_figure() -> None:
    pytest.importorskip("matplotlib")
    figure = metrics_figure(panels_by_question(curves()), "runs/a")
    title, prior, ratios, policy = figure.subfigs
    assert [text.get_text() for text in title.texts] == ["runs/a", LEGEND]
    assert ratios.get_suptitle() == "Do the ratios hold?"
    assert ratios.get_supxlabel() == "one value throughout:  backend · temperature: 0.25"
    assert (prior.get_supxlabel(), policy.get_supxlabel()) == ("", "")
    shown = [axes for axes in ratios.axes if axes.get_visible()]
    assert [axes.get_title(loc="left").split(":")[0] for axes in shown] == [
        "backend · mean_ratio",
        "backend · flow_balance",
    ]
    raw, smoothed, expected = (np.asarray(line.get_ydata()) for line in shown[0].lines)
    np.testing.assert_array_equal(raw, [value for _, value in curves()["backend", "mean_ratio"]])
    np.testing.assert_allclose(smoothed[2:-2], 1 + 0.5 * np.where(np.arange(2, 38) % 2, 0.2, -0.2))
    np.testing.assert_array_equal(expected, np.ones(40))
    assert shown[0].lines[0].get_alpha() < 0.5
    assert shown[0].get_xlabel() == "at the dashed line"


def write(folder: Path) -> None:
    folder.mkdir(parents=True)
    for stage in ("prior", "backend"):
        lines = [
            json.dumps({"stage": stage, "step": step, "loss": 1 / step}) for step in (100, 200)
        ]
        (folder / f"{stage}.jsonl").write_text("\n".join(lines) + "\n")


def test_metrics_are_drawn_or_said_to_be_missing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "empty").mkdir()
    assert not plot_metrics(tmp_path / "empty", tmp_path / "empty.png")
    assert not (tmp_path / "empty.png").exists()
    write(tmp_path / "a" / "metrics")
    assert plot_metrics(tmp_path / "a" / "metrics", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TrainingDiverged("backend: v_loss is nan at step 3; usual causes"), "v_loss is nan"),
        (Terminated("prior stopped at step 3: saved"), "prior stopped at step 3"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_ends_early_is_drawn_too(
    error: BaseException, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    texts = []

    def early(recipe: object, run: str, **options: object) -> None:
        write(Path(run) / "metrics")
        raise error

    def figure(questions: dict[str, list[Panel]], title: str, ended: str) -> Any:
        texts.append((title, ended))
        return metrics_figure(questions, title, ended)

    monkeypatch.setattr("ddice.cli.train.train", early)
    monkeypatch.setattr("ddice.runs.metrics_figure.metrics_figure", figure)
    run = tmp_path / "runs" / "a"
    assert main(["train", "--run", str(run)]) in (1, 130, 143)
    ((title, ended),) = texts
    assert title == "runs/a"
    assert said in ended
    assert ";" not in ended
    assert (run / "metrics.png").exists()
