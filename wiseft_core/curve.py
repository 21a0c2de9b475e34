"""The WiSE-FT curve as a picture: metrics over alpha, and the first two against each other.

Curve room. matplotlib is imported inside the functions, and only its objects are used: no window, no pyplot, and its
settings are the built-in ones, whatever the user's are, so that the same evaluations give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from wiseft_core.errors import ConfigError, Unsupported, show
from wiseft_core.evaluation import Evaluation, Metric, best, pareto
from wiseft_core.placement import Box, place_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY, INK = "#0072B2", "#D55E00", "#8C8C8C", "#262626"
"""Two colours of Okabe and Ito's, which colour-blind people tell apart; the marks differ in shape too."""
DPI: Final = 150
SETTINGS: Final = {
    "axes.edgecolor": GREY,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "wiseft",
    "text.parse_math": False,  # a dollar in a metric's name is a dollar
    "xtick.color": INK,
    "ytick.color": INK,
}
LABEL: Final[dict[str, Any]] = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": 8}
LEADER: Final = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
NAME_LIMIT: Final = 26
LABEL_ALWAYS: Final = 12
"""Up to so many points, each has its alpha beside it; of more, those whose label finds a free place."""


def check_plot(path: Path) -> str:
    """The kind of picture that `path` asks for: "png" or "svg".

    Raises:
        ConfigError: Another suffix, or no folder to write it into.
        Unsupported: matplotlib is not installed.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("png", "svg"):
        got = path.suffix or "no suffix"
        raise ConfigError(f"plot {path}", expected="a file name that ends in .png or .svg", got=got, hint="name it so")
    if path.is_dir() or not path.parent.is_dir():
        got = "a folder" if path.is_dir() else f"no folder {path.parent}"
        raise ConfigError(f"plot {path}", expected="a file in a folder that is there", got=got, hint="make the folder")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise Unsupported(
            f"plot {path} — nothing to draw it with",
            expected="matplotlib",
            got=str(error),
            hint="pip install 'wiseft_core[plot]'",
        ) from None
    return kind


def render_curve(evaluations: Sequence[Evaluation], metrics: Sequence[Metric], kind: str) -> bytes:
    """The picture as the bytes of a file: each metric over alpha, and with two or more the first against the second.

    Axes are turned so that up and right are better. Failed evaluations are marked on the alpha axis.

    Args:
        evaluations: In any order.
        metrics: At least one. The first chooses the best, the first two make the curve and the Pareto set.
        kind: "png" or "svg".
    """
    ordered = sorted(evaluations, key=lambda e: float(e.alpha))
    with _settings():
        figure = _drawn(ordered, metrics)
        file = io.BytesIO()
        stamp = {"Software": None} if kind == "png" else {"Date": None, "Creator": None}
        figure.savefig(file, format=kind, dpi=DPI, metadata=stamp)
    return file.getvalue()


@contextmanager
def _settings() -> Iterator[None]:
    """matplotlib's built-in settings and ours on top, for as long as it draws: some can be given in no other way."""
    import matplotlib.style

    with matplotlib.style.context(["default", SETTINGS]):
        yield


def _drawn(ordered: Sequence[Evaluation], metrics: Sequence[Metric]) -> Figure:
    """The figure: a panel for each metric, stacked, and to their right the curve; the legend below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    two, rows = len(metrics) > 1, len(metrics)
    size = (10.0, max(4.8, 1.8 * rows + 0.6)) if two else (6.4, 4.2)
    figure = Figure(size, dpi=DPI, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows, 2 if two else 1, width_ratios=(0.8, 1) if two else None)
    panels: list[Axes] = []
    for row, metric in enumerate(metrics):
        panels.append(figure.add_subplot(grid[row, 0], sharex=panels[0] if panels else None))
        _over_alpha(panels[-1], ordered, metric, metrics[0])
        panels[-1].tick_params("x", labelbottom=row == rows - 1)
    panels[-1].set_xlabel("alpha (0 is the base, 1 the tuned model)")
    curve = figure.add_subplot(grid[:, 1]) if two else None
    if curve is not None:
        _against(curve, ordered, metrics[0], metrics[1])
    marks = {label: mark for axes in figure.axes for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(marks.values()), list(marks), loc="outside lower center", ncols=len(marks) or 1)
    figure.draw_without_rendering()  # settles the layout: labels are placed on what is seen
    figure.set_layout_engine("none")
    if curve is not None:
        _label_points(curve, ordered, metrics[0], metrics[1])
    return figure


def _over_alpha(axes: Axes, ordered: Sequence[Evaluation], metric: Metric, first: Metric) -> None:
    """One metric over alpha, the best evaluation by the first metric starred, failed ones on the axis."""
    done = [(_drawable(float(e.alpha)), _drawable(e.metrics[metric.name])) for e in ordered if e.metrics is not None]
    failed = [_drawable(float(e.alpha)) for e in ordered if e.metrics is None]
    axes.plot(*_columns(done), "o-", color=BLUE, markersize=4.5, linewidth=1.4)
    winner = best(ordered, first)
    if winner is not None and winner.metrics is not None:
        _star(axes, winner, (_drawable(float(winner.alpha)), _drawable(winner.metrics[metric.name])), first)
    if failed:
        on_axis: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False, "label": "failed"}
        axes.plot(failed, [0.0] * len(failed), "X", color=INK, markersize=6, linestyle="none", **on_axis)
    axes.margins(y=0.12)
    axes.set_title(_axis(metric), loc="left", fontsize=9, color=INK)
    if metric.direction == "min":
        axes.invert_yaxis()


def _against(axes: Axes, ordered: Sequence[Evaluation], first: Metric, second: Metric) -> None:
    """The second metric over the first, joined in the order of alpha, the Pareto set filled and the best starred."""
    winner, front = best(ordered, first), pareto(ordered, first, second)
    axes.plot(*_columns(_points(ordered, first, second)), "-", color=GREY, linewidth=1.2, zorder=1)
    marks: dict[str, Any] = {"linestyle": "none", "markersize": 7, "markeredgecolor": BLUE, "markeredgewidth": 1.4}
    rest = [e for e in ordered if e is not winner]
    for label, face, group in (
        ("in the Pareto set", BLUE, [e for e in rest if e in front]),
        ("not in it", "white", [e for e in rest if e.metrics is not None and e not in front]),
    ):
        if group:
            axes.plot(*_columns(_points(group, first, second)), "o", color=face, label=label, **marks)
    if winner is not None:
        _star(axes, winner, _points([winner], first, second)[0], first, filled=winner in front)
    axes.margins(0.14)
    axes.set_xlabel(_axis(first))
    axes.set_ylabel(_axis(second))
    axes.set_title("up and right is better", loc="right", fontsize=8, color=INK, style="italic")
    if first.direction == "min":
        axes.invert_xaxis()
    if second.direction == "min":
        axes.invert_yaxis()


def _star(axes: Axes, winner: Evaluation, point: tuple[float, float], first: Metric, *, filled: bool = True) -> None:
    """The mark of the best evaluation."""
    label = f"best by {_plain(first.name)}: alpha {_short(winner)}"
    look: dict[str, Any] = {"markersize": 12, "markeredgecolor": ORANGE, "linestyle": "none", "zorder": 3}
    axes.plot(*_columns([point]), "*", color=ORANGE if filled else "white", label=label, **look)


def _points(evaluations: Sequence[Evaluation], first: Metric, second: Metric) -> list[tuple[float, float]]:
    """Both metrics of each evaluation that has them."""
    pairs = [(e.metrics[first.name], e.metrics[second.name]) for e in evaluations if e.metrics is not None]
    return [(_drawable(x), _drawable(y)) for x, y in pairs]


def _drawable(value: float) -> float:
    """`value`, or the nearest that matplotlib can put on an axis without an overflow."""
    return max(-1e300, min(value, 1e300))


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """All x and all y."""
    return [x for x, _ in points], [y for _, y in points]


def _axis(metric: Metric) -> str:
    """What an axis says."""
    better = {"max": "higher is better", "min": "lower is better, axis inverted"}
    return f"{_plain(metric.name)} ({better[metric.direction]})"


def _short(evaluation: Evaluation) -> str:
    """An alpha as a label."""
    return f"{float(evaluation.alpha):.6g}"


def _plain(name: str) -> str:
    """A metric's name as the built-in font can spell it, and short enough for its place."""
    spelt = show(name).encode("latin-1", "backslashreplace").decode("latin-1")
    return spelt if len(spelt) <= NAME_LIMIT else spelt[: NAME_LIMIT - 1] + "…"


def _label_points(axes: Axes, ordered: Sequence[Evaluation], first: Metric, second: Metric) -> None:
    """Each point's alpha beside it; the ends and the best choose their places before the others."""
    done = [e for e in ordered if e.metrics is not None]
    points = _points(done, first, second)
    texts = [_short(e) + {0.0: " (base)", 1.0: " (tuned)"}.get(float(e.alpha), "") for e in done]
    labels = [axes.annotate(text, at, (0, 0), **LABEL) for text, at in zip(texts, points, strict=True)]
    extents = [label.get_window_extent() for label in labels]
    sizes = [(extent.width + 8, extent.height + 4) for extent in extents]  # with air: 0.7 beside 1 is not 0.71
    seen = [(float(x), float(y)) for x, y in map(axes.transData.transform, points)]
    winner = best(done, first)
    order = sorted(range(len(done)), key=lambda at: (float(done[at].alpha) not in (0, 1), done[at] is not winner, at))
    places = place_labels(seen, sizes, Box(*axes.bbox.extents), order, every=len(done) <= LABEL_ALWAYS)
    for label, text, point, place in zip(labels, texts, points, places, strict=True):
        label.remove()
        if place is not None:
            offset = (place.dx * 72 / DPI, place.dy * 72 / DPI)
            axes.annotate(text, point, offset, color=INK, arrowprops=LEADER if place.far else None, **LABEL)
