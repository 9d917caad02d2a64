"""The figures of a report. A colour is an extractor, a dash or a marker a backend, in all of
them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ddice.core import statistics
from ddice.pictures.style import GREY, INK, SERIES, VALUE_MAP, panels
from ddice.runs.comparison.curves_plot import ScoreCurve
from ddice.runs.comparison.differences import difference, seed_differences
from ddice.runs.comparison.groups import Group, behaviour_of, group_name, run_means
from ddice.runs.report.material import Task
from ddice.runs.report.tables import Aggregate, latency

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT = 4.4, 3.3  # inches
ROW = 0.36  # inches of a policy
DASHES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
THRESHOLDS = 201  # of a profile
BAND_RUNS = 10  # of fewer runs a band reaches from 0 to 1 nearly everywhere


class Look:
    """How each policy is drawn."""

    def __init__(self, groups: Sequence[Group]):
        own = [group for group in groups if group[0] is not None]
        self.extractors = list(dict.fromkeys(extractor for _, extractor in own))
        self.backends = list(dict.fromkeys(backend for backend, _ in own))

    def colour(self, group: Group) -> str:
        if group[0] is None:
            return GREY
        return SERIES[self.extractors.index(group[1]) % len(SERIES)]

    def dash(self, group: Group) -> Any:
        return "-" if group[0] is None else DASHES[self.backends.index(group[0]) % len(DASHES)]

    def marker(self, group: Group) -> str:
        return "*" if group[0] is None else MARKERS[self.backends.index(group[0]) % len(MARKERS)]

    def legend(self, figure: Figure, axes: Any, groups: Sequence[Group], lines: bool) -> None:
        """Below the axes: colours, then dashes or markers where there are several."""
        behaviour = next((group for group in groups if group[0] is None), None)
        if behaviour is not None:
            style = {"linestyle": "-"} if lines else {"marker": "*", "linestyle": ""}
            axes.plot([], [], color=GREY, label=behaviour[1], **style)
        for number, extractor in enumerate(self.extractors):
            colour = SERIES[number % len(SERIES)]
            axes.plot([], [], color=colour, linewidth=4, label=extractor)
        for number, backend in enumerate(self.backends if len(self.backends) > 1 else []):
            if lines:
                dash = DASHES[number % len(DASHES)]
                axes.plot([], [], color=INK, linestyle=dash, linewidth=1.2, label=backend)
            else:
                marker = MARKERS[number % len(MARKERS)]
                axes.plot([], [], marker, color=INK, markersize=5, label=backend)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8)


def _label(group: Group) -> str:
    return group_name(group).replace(" + ", "\n")


def _rows(count: int) -> tuple[Figure, Any]:
    """A figure with a row for each policy, the first on top."""
    figure, grid = panels(1, 1, width=WIDTH, height=ROW * count + 0.9)
    axes = grid[0, 0]
    axes.set_ylim(count - 0.5, -0.5)
    axes.grid(axis="x")
    return figure, axes


def scores_figure(task: Task, look: Look) -> Figure:
    """A bar at the mean, a dot for each seed."""
    figure, axes = _rows(len(task.groups))
    for place, (group, rows) in enumerate(task.groups.items()):
        scores = run_means(rows)[:, 0]
        axes.barh(place, scores.mean(), height=0.7, color=look.colour(group), alpha=0.45)
        axes.plot(scores, np.full(len(scores), place), "o", color=INK, markersize=3.5)
    axes.set_yticks(range(len(task.groups)), list(map(_label, task.groups)), fontsize=8)
    axes.set_xlabel("score")
    return figure


def shown_differences(task: Task) -> list[Group]:
    """The policies that have pairs with the behaviour policy."""
    behaviour = behaviour_of(task.groups)
    return [
        group
        for group, rows in task.groups.items()
        if rows is not behaviour and seed_differences(rows, behaviour)
    ]


def differences_figure(task: Task, look: Look) -> Figure:
    """To the behaviour policy: the mean, Student's interval, a dot for each seed."""
    behaviour, shown = behaviour_of(task.groups), shown_differences(task)
    figure, axes = _rows(len(shown))
    seen = [0.0]
    for place, group in enumerate(shown):
        pairs = seed_differences(task.groups[group], behaviour)
        seeds = np.array([episodes.mean() for episodes in pairs.values()])
        seen += seeds.tolist()
        found = difference(task.groups[group], behaviour)
        if found is not None and np.isfinite(found.low):
            colour = look.colour(group)
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=3, alpha=0.6)
        axes.plot(seeds, np.full(len(seeds), place), "o", color=INK, markersize=3.5)
        axes.plot(seeds.mean(), place, "|", color=INK, markersize=13, markeredgewidth=1.6)
    axes.axvline(0, color=GREY, linewidth=1)
    # Intervals of few seeds are wide: what the seeds did stays readable, and lines leave the frame.
    low, high = min(seen), max(seen)
    margin = 0.35 * (high - low) + 1
    axes.set_xlim(low - margin, high + margin)
    axes.set_yticks(range(len(shown)), list(map(_label, shown)), fontsize=8)
    axes.set_xlabel("score - behaviour policy's")
    return figure


def heat_figure(task: Task) -> Figure:
    """Backends x extractors, coloured by score."""
    groups = [(backend, extractor) for backend, extractor in task.groups if backend is not None]
    backends = list(dict.fromkeys(backend for backend, _ in groups))
    extractors = list(dict.fromkeys(extractor for _, extractor in groups))
    scores = np.full((len(backends), len(extractors)), np.nan)
    for backend, extractor in groups:
        place = backends.index(backend), extractors.index(extractor)
        scores[place] = run_means(task.groups[backend, extractor]).mean()
    figure, grid = panels(1, 1, width=WIDTH, height=0.42 * len(backends) + 1.6)
    axes = grid[0, 0]
    # Not imshow: a page would blur its picture of a few pixels.
    drawn = axes.pcolormesh(np.ma.masked_invalid(scores), cmap=VALUE_MAP)
    axes.invert_yaxis()
    for row, column in zip(*np.nonzero(np.isfinite(scores)), strict=True):
        red, green, blue, _ = drawn.cmap(drawn.norm(scores[row, column]))
        # Rec. 601's luma: dark text where the cell is light.
        light = 0.299 * red + 0.587 * green + 0.114 * blue > 0.5
        text = {"ha": "center", "va": "center", "fontsize": 9}
        colour = "#000000" if light else "#ffffff"
        axes.text(column + 0.5, row + 0.5, f"{scores[row, column]:.1f}", color=colour, **text)
    names = [extractor.replace("_", "\n") for extractor in extractors]
    axes.set_xticks(np.arange(len(extractors)) + 0.5, names, fontsize=8)
    axes.set_yticks(np.arange(len(backends)) + 0.5, backends, fontsize=8)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def latency_figure(task: Task, look: Look) -> Figure:
    """Score against the time of a decision; whiskers from the lowest to the highest seed."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    figure, grid = panels(1, 1, width=WIDTH, height=HEIGHT + 0.4)
    axes = grid[0, 0]
    for group, rows in task.groups.items():
        scores, colour = run_means(rows)[:, 0], look.colour(group)
        at = latency(rows)
        if at is None:
            continue
        axes.plot([at, at], [scores.min(), scores.max()], color=colour, linewidth=1, alpha=0.7)
        axes.plot(at, scores.mean(), look.marker(group), color=colour, markersize=7)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("ms a decision")
    axes.set_ylabel("score")
    axes.grid()
    look.legend(figure, axes, list(task.groups), lines=False)
    return figure


def curve_figure(
    task: Task, curves: Sequence[ScoreCurve], extractor: str, stage: str, look: Look
) -> Figure:
    """Of one extractor: a line for each backend, a band from the lowest to the highest seed, a ring
    at the last checkpoint over all episodes.
    """
    figure, grid = panels(1, 1, width=WIDTH, height=HEIGHT)
    axes = grid[0, 0]
    own = [one for one in curves if (one.extractor, one.stage) == (extractor, stage)]
    for number, curve in enumerate(own):
        colour = SERIES[number % len(SERIES)]
        dash = look.dash((curve.backend, curve.extractor))
        low, high = curve.scores.min(0), curve.scores.max(0)
        axes.fill_between(curve.steps, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(curve.steps, curve.scores.mean(0), dash, color=colour, label=curve.backend)
        axes.plot(curve.steps[-1], curve.last.mean(), "o", color=colour, markerfacecolor="none")
    behaviour = behaviour_of(task.groups)
    if behaviour:
        mean = run_means(behaviour).mean()
        axes.axhline(mean, color=GREY, linestyle="-.", linewidth=1, label="behaviour policy")
    axes.set_xlabel(f"steps of the stage {stage!r}")
    axes.set_ylabel("score")
    axes.grid(axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def interval_figure(
    policies: Sequence[Aggregate], statistic: Callable[[np.ndarray], float], name: str, look: Look
) -> Figure:
    """One aggregate of every policy, with its 95 % stratified bootstrap interval."""
    figure, axes = _rows(len(policies))
    for place, policy in enumerate(policies):
        colour = look.colour(policy.group)
        low, high = statistics.stratified_interval(policy.scores, statistic)
        axes.barh(place, high - low, left=low, height=0.6, color=colour, alpha=0.55)
        middle = statistic(policy.scores)
        axes.plot([middle, middle], [place - 0.3, place + 0.3], color=INK, linewidth=1.6)
    axes.use_sticky_edges = False  # the ends of the bars are no edges of the picture
    labels = [_label(policy.group) for policy in policies]
    axes.set_yticks(range(len(policies)), labels, fontsize=8)
    axes.set_xlabel(name)
    return figure


def profile_figure(policies: Sequence[Aggregate], look: Look) -> Figure:
    """The share of runs above a score, with pointwise 95 % bands where `BAND_RUNS` make them say
    something.
    """
    figure, grid = panels(1, 1, width=WIDTH, height=HEIGHT + 0.6)
    axes = grid[0, 0]
    every = np.concatenate([policy.scores.ravel() for policy in policies])
    margin = 0.05 * np.ptp(every) + 1e-9
    thresholds = np.linspace(every.min() - margin, every.max() + margin, THRESHOLDS)
    for policy in policies:
        colour = look.colour(policy.group)
        share = statistics.performance_profile(policy.scores, thresholds)
        if policy.scores.size >= BAND_RUNS:
            low, high = statistics.profile_interval(policy.scores, thresholds)
            axes.fill_between(thresholds, low, high, color=colour, alpha=0.1, linewidth=0)
        axes.plot(thresholds, share, color=colour, linestyle=look.dash(policy.group), linewidth=1.3)
    axes.set_xlabel("score")
    axes.set_ylabel("share of runs above it")
    axes.grid()
    look.legend(figure, axes, [policy.group for policy in policies], lines=True)
    return figure


def ratio_figure(sizes: Mapping[Group, Sequence[float]], task: Task, look: Look) -> Figure:
    """Score against the effective sample size of the ratios, a point for each seed."""
    figure, grid = panels(1, 1, width=WIDTH, height=HEIGHT + 0.4)
    axes = grid[0, 0]
    for group, found in sizes.items():
        scores = run_means(task.groups[group])[:, 0]
        colour = look.colour(group)
        axes.plot(found, scores, look.marker(group), color=colour, markersize=6, alpha=0.8)
    behaviour = behaviour_of(task.groups)
    if behaviour:
        axes.axhline(run_means(behaviour).mean(), color=GREY, linestyle="-.", linewidth=1)
    axes.set_xlabel("effective sample size of the ratios")
    axes.set_ylabel("score")
    axes.grid()
    look.legend(figure, axes, list(sizes), lines=False)
    return figure
