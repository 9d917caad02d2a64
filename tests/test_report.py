"""The page of a comparison: numbers worked out by hand, the same bytes for the same results, and
what a browser makes of it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ddice.cli import main
from ddice.core.storage import append_line, write_json
from ddice.data.spec import ReferenceScores
from ddice.dice_backends import OptiDice, PiecewiseF
from ddice.extractors import GuideThenSelect, SelectOnly, WeightedBC
from ddice.policies.evaluation import Evaluation
from ddice.runs.comparison import Comparison, Result, Results
from ddice.runs.comparison.grid import BEHAVIOUR
from ddice.runs.comparison.store import MadeOn
from ddice.runs.report import write_report
from ddice.runs.report.material import alone, read_material

COMPARISON = Comparison(
    backends={"a": PiecewiseF(), "b <1>": OptiDice()},
    extractors={"bc": WeightedBC(), "select": SelectOnly(candidates=4)},
    pairs={"b <1>": ("bc",)},
    seeds=(0, 1),
)


def row(backend: str | None, extractor: str, seed: int, scores: list[float]) -> Result:
    return Result(
        key=f"{backend}/{extractor}/{seed}/{scores}",
        backend=backend,
        extractor=extractor,
        seed=seed,
        evaluation=Evaluation(
            env_id="Maze-v3",
            label="normalised by hand",
            reference=ReferenceScores(random=0.0, expert=100.0, source="hand"),
            seed=0,
            deterministic=False,
            returns=tuple(scores),
            scores=tuple(scores),
            lengths=(50,) * len(scores),
            successes=tuple(score > 50 for score in scores),
            final_successes=None,
            seconds=2.0,
            policy_seconds=0.2,
        ),
        clip_rate=0.25,
        diagnostics={"mean_ratio": 1.1, "effective_sample_size": 0.3 + 0.1 * seed},
        train_seconds=7.0,
        fingerprint="f00d",
        alarms=("V has run ahead",) if extractor == "bc" else (),
        made_on=MadeOn(
            code="c0de",
            versions={"torch": "2.9"},
            python="3.11",
            system="Linux",
            device="cpu",
            name="a processor",
            cores=2,
            threads=1,
        ),
    )


ROWS = [
    row(None, BEHAVIOUR, 0, [10.0, 20.0]),
    row(None, BEHAVIOUR, 1, [20.0, 30.0]),
    row("a", "bc", 0, [30.0, 40.0]),
    row("a", "bc", 1, [41.0, 51.0]),
    row("a", "select", 0, [60.0, 70.0]),
    row("a", "select", 1, [71.0, 81.0]),
    row("b <1>", "bc", 0, [0.0, 0.0]),
]


def store(folder: Path, rows: list[Result]) -> Path:
    """A run folder as a comparison leaves it, with a learning curve and alarms of one policy."""
    folder.mkdir()
    write_json(folder / "comparison.json", COMPARISON.model_dump(mode="json"))
    for one in rows:
        Results(folder / "results.jsonl").append(one)
    for seed, scores in enumerate(([5.0, 45.0, 30.0], [7.0, 50.0, 40.0])):
        metrics = folder / f"seed-{seed}/a-bc/metrics"
        metrics.mkdir(parents=True)
        for step, score in enumerate(scores, 1):
            line = {"stage": "extractor", "step": 100 * step, "evaluation/score": score}
            append_line(metrics / "extractor.jsonl", json.dumps(line))
        line = {"stage": "backend", "step": 100, "alarms/value_bias": 1.5 + seed}
        append_line(metrics / "backend.jsonl", json.dumps(line))
    made = {"started": "2026-01-01T00:00:00+00:00", "command": "ddice compare --run x", "cores": 2}
    append_line(folder / "made_with.jsonl", json.dumps(made))
    return folder


class Page(HTMLParser):
    """The tables of a page as text, bold cells, and all that it could load."""

    def __init__(self, text: str):
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.bold: list[str] = []
        self.loads: list[str] = []
        self._inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("td", "th", "strong"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._inside and self._inside[-1] == tag:
            self._inside.pop()

    def handle_data(self, text: str) -> None:
        if "td" in self._inside or "th" in self._inside:
            self.tables[-1][-1][-1] += text.strip()
            if self._inside[-1] == "strong":
                self.bold.append(text)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A policy that was scored again, and one that the comparison has no more.
    before = [row("a", "bc", 0, [99.0, 99.0]), row("c", "bc", 0, [1.0, 1.0])]
    folder = store(tmp_path_factory.mktemp("report") / "run", [*before, *ROWS])
    return write_report(folder)


def test_the_tables_by_hand(written: Path) -> None:
    page = Page(written.read_text())
    over_seeds, scores, ratios, protocol, machines, processes = page.tables
    assert scores[0] == [
        "backend",
        "extractor",
        "score",
        "IQM",
        "each seed",
        "minus behaviour",
        "minus best other",
        "success, %",
        "best seen",
        "ms a decision",
        "training, s",
        "repeat",
    ]
    # 0 of 4 episodes: Wilson's upper end is z^2 / (4 + z^2) = 0.4899. 0.2 s over 100 decisions.
    assert scores[1][:-1] == [
        "",
        BEHAVIOUR,
        "20.0 (7.1)",
        "20.0 [15.0, 25.0]",
        "15.0 25.0",
        "",
        # 50 and 51 behind, standard error 1/2, Student's factor 12.706.
        "-50.5 [-56.9, -44.1]",
        "0 [0, 49]",
        "",
        "2.00",
        "14",
    ]
    # Best seen: 45 and 50, which is not the last checkpoint's.
    assert scores[2][2:-1] == [
        "40.5 (7.8)",
        "40.5 [35.0, 46.0]",
        "35.0 46.0",
        "+20.5 [14.1, 26.9]",
        "-30.0 [-30.0, -30.0]",
        "25 [5, 70]",
        "47.5",
        "2.00",
        "14",
    ]
    # One seed: the differences are over its two episodes, -10 and -20.
    assert scores[4][:7] == [
        "b <1>",
        "bc",
        "0.0",
        "0.0",
        "0.0",
        "-15.0 [-78.5, 48.5] of episodes",
        "-65.0 [-128.5, -1.5] of episodes",
    ]
    # The mean over tasks, and the score: a + select is ahead of all others by 30 and more.
    assert page.bold == ["70.5 [65.0, 76.0]", "70.5 (7.8)"]
    assert over_seeds[2][:2] == ["a", "bc"]
    # To 100: 65 and 54 short. Each of two seeds beats both of the behaviour policy.
    assert over_seeds[2][5:8] == ["59.5 [54.0, 65.0]", "1.00 [1.00, 1.00]", "+20.5 [14.1, 26.9]"]
    assert ratios[2][2:4] == ["1.10", "0.35"]
    assert ratios[0][-3:] == ["value bias", "the alarms ask", "repeat"]
    assert ratios[2][-3] == "2.000"
    assert [line[-2] for line in ratios[1:]] == ["", "V has run ahead", "", "V has run ahead"]
    assert protocol[1][2:6] == ["f00d", "Maze-v3", "0, 1", "2"]
    versions = "python 3.11, torch 2.9"
    assert machines[1:] == [["7", "a processor, Linux", "cpu", "2, 1", versions, "c0de"]]
    assert processes[1][1] == "ddice compare --run x"


def test_datasets_and_methods_of_others(tmp_path: Path) -> None:
    """Two tasks, and a method of others on one of them: it stands there, not in the aggregate."""
    sources = {"one": {"recipe": {"data": {"source": "a.npz"}}}}
    sources["two"] = {"recipe": {"data": {"source": "b.npz"}}, "published": {"them": 12.5}}
    fields = {"backends": ["optidice"], "extractors": ["weighted_bc"], "datasets": sources}
    sources["two"]["published_by"] = "a paper"
    comparison = Comparison.model_validate(fields)
    write_json(tmp_path / "comparison.json", comparison.model_dump(mode="json"))
    for name, score in (("one", 10.0), ("two", 30.0)):
        behaviour = row(None, BEHAVIOUR, 0, [score, score])
        policy = row("optidice", "weighted_bc", 0, [2 * score, 4 * score])
        for one in (behaviour, policy):
            named = one.model_copy(update={"dataset": name})
            Results(tmp_path / "results.jsonl").append(named)
    columns = "dataset,extractor,seed,evaluation_seed,returns,reference_random,reference_expert"
    other = tmp_path / "others.csv"
    other.write_text(f'{columns}\ntwo,theirs,0,0,"[40, 60]",0,100\n')
    assert main(["report", str(tmp_path), "--with", str(other)]) == 0
    text = (tmp_path / "report.html").read_text()
    aggregate, one, _, two, *_ = Page(text).tables
    # Ahead by 20 and 60 on average; episodes 10, 30 and 30, 90: variances of means 100 and 900,
    # freedom 1000^2 / (100^2 + 900^2) = 1.2, rounded down; (40 -+ 12.706 sqrt(1000) / 2).
    assert aggregate[2][:5] == ["optidice", "weighted_bc", "60.0", "60.0", "60.0"]
    assert aggregate[2][7] == "+40.0 [-160.9, 240.9] of episodes"
    assert [line[1] for line in one[1:]] == [BEHAVIOUR, "weighted_bc"]
    assert two[3][1:3] == ["theirs", "50.0"]
    assert two[3][-1] == "of others"
    assert two[3][5] == "+20.0 [-107.1, 147.1] of episodes"
    assert "Published in a paper, not run here: them 12.5." in text


def test_what_is_not_there_is_said(written: Path) -> None:
    text = written.read_text()
    assert "Cells of the grid without a result: 1<" in text
    assert "b &lt;1&gt; + bc, seed 1" in text
    assert "has no more: 1." in text
    assert "the sign of a true difference of 2 to 5 points comes out wrong in 19 %" in text


def test_nothing_is_loaded_from_anywhere(written: Path) -> None:
    page = Page(written.read_text())
    assert page.loads
    assert all(place.startswith("#") for place in page.loads)
    assert "<image" not in written.read_text()  # a browser would blur a raster of a few cells
    assert "@import" not in written.read_text()
    assert not re.search(r"url\((?!#)", written.read_text())


def test_the_command_of_a_row_repeats_its_recipe(written: Path) -> None:
    """The configuration of each policy alone has the recipes of the comparison, cell by cell."""
    known = {(cell.backend, cell.extractor, cell.seed): cell.recipe for cell in COMPARISON.cells()}
    [task] = read_material(written.parent).tasks
    for group, recipe in task.recipes.items():
        again = alone(recipe, group, COMPARISON.seeds)
        found = {(cell.backend, cell.extractor, cell.seed): cell.recipe for cell in again.cells()}
        for seed in COMPARISON.seeds:
            assert found[(*group, seed)] == known[(*group, seed)]
    page = Page(written.read_text())
    commands = [line[-1].removeprefix("command") for line in page.tables[1][1:]]
    assert len(set(commands)) == 4
    for command in commands:
        config = re.fullmatch(r"ddice compare --config (\S+\.json) --run again", command)
        content = json.loads((written.parent / config[1]).read_text())
        assert Comparison.model_validate(content)


def test_guided_extractors_do_not_change_the_behaviour_policy() -> None:
    """It is sampled as the first extractor samples; alone it must not fall back on another."""
    guided = GuideThenSelect()
    comparison = Comparison(extractors={"guided": guided, "bc": WeightedBC()}, seeds=(3,))
    cell = next(comparison.cells())
    again = alone(cell.recipe, (None, BEHAVIOUR), (3,))
    assert next(again.cells()).recipe == cell.recipe


def test_the_same_results_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    """Whatever the order in which they came, and wherever the folder lies."""
    rows = Results(written.with_name("results.jsonl")).rows
    other = write_report(store(tmp_path / "elsewhere", [*rows[:2], *reversed(rows[2:])]))
    assert other.read_bytes() == written.read_bytes()
    pictures = sorted((written.parent / "report").glob("*.png"))
    assert len(pictures) == 10
    for picture in pictures:
        assert (other.parent / "report" / picture.name).read_bytes() == picture.read_bytes()


def test_folders_that_hold_no_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "holds no comparison: expected a folder" in capsys.readouterr().err
    write_json(tmp_path / "comparison.json", COMPARISON.model_dump(mode="json"))
    assert main(["report", str(tmp_path)]) == 1
    assert "with at least one policy done" in capsys.readouterr().err
    Results(tmp_path / "results.jsonl").append(row("c", "bc", 0, [1.0]))
    assert main(["report", str(tmp_path)]) == 1
    assert "no result of the comparison in comparison.json" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_what_is_missing_is_named(
    missing: str, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ImportError, match=r"a report needs .*pip install 'ddice\[report\]'"):
        write_report(written.parent)


# Frames of a phone's and a large screen's width, and a click on the score: what a reader does.
ASK = """
<script>
const frames = [400, 1600].map(width => {
  const frame = document.createElement("iframe");
  Object.assign(frame, { width, height: 900, srcdoc: document.getElementById("page").textContent });
  document.body.append(frame);
  return frame;
});
addEventListener("load", () => {
  const inner = frames.map(frame => frame.contentDocument);
  const roots = inner.map(page => page.documentElement);
  const overflows = roots.map(root => root.scrollWidth - root.clientWidth);
  const table = inner[0].querySelectorAll("table")[1];
  const orders = [0, 1].map(() => {
    table.querySelectorAll("th button")[2].click();
    return [...table.tBodies[0].rows].map(row => row.cells[2].textContent);
  });
  const drawings = [...inner[0].querySelectorAll("svg")];
  const drawn = drawings.every(one => one.getBoundingClientRect().height > 100);
  document.title = JSON.stringify({ overflows, orders, drawn });
});
</script>
"""


def test_a_browser_shows_and_sorts_it(written: Path, tmp_path: Path) -> None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    browser = next((found for name in names if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser is there: none of {', '.join(names)}")
    # The page as text in a page that looks at it; a script's end in it would end its own element.
    text = written.read_text().replace("</script", "<\\/script")
    outer = tmp_path / "outer.html"
    unfold = '.textContent.replaceAll("<\\\\/script", "</" + "script")'
    ask = ASK.replace(".textContent });", f"{unfold} }});")
    outer.write_text(f'<body><script type="text/plain" id="page">{text}</script>{ask}</body>')
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user"]
    command = [browser, *flags, "--virtual-time-budget=10000", "--dump-dom", outer.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
    answer = json.loads(re.search(r"<title>(.*?)</title>", shown)[1])
    assert answer["overflows"] == [0, 0]
    assert answer["drawn"]
    down = ["70.5 (7.8)", "40.5 (7.8)", "20.0 (7.1)", "0.0"]
    assert answer["orders"] == [down, down[::-1]]
