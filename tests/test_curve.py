"""The picture of a sweep: the same bytes each time, every alpha in it, up and right better, nothing of the user's."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from wiseft_core.curve import check_plot, render_curve
from wiseft_core.errors import ConfigError, EvaluationFailed, Unsupported
from wiseft_core.evaluation import Evaluation, Metric, parse_metrics

FOUR_LINES = re.compile(r"\w+: .+\n  expected  (?!-\n).+\n  got       (?!-\n).+\n  hint      (?!-$).+")
TWO = parse_metrics(["acc:max", "shifted:max"])
FAILED = EvaluationFailed("x")


def swept(count, metrics=TWO, *, failed=()):
    """Evaluations from alpha 0 to 1, the first metric rising, the others rising and falling."""
    found = []
    for at in range(count):
        alpha = at / (count - 1)
        values = {m.name: 0.5 + 0.4 * alpha - place * 0.35 * alpha**2 for place, m in enumerate(metrics)}
        done = at not in failed
        found.append(Evaluation(f"{alpha:g}", None, values if done else None, None if done else FAILED))
    return found


def texts(svg):
    """All texts of an SVG."""
    return ["".join(node.itertext()) for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def places(svg, text):
    """Where a text is, the left-most first."""
    found = []
    for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if node.text == text:
            found.append((float(node.get("x")), float(node.get("y"))))
    return sorted(found)


@pytest.mark.parametrize("count", [5, 11])
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_same_evaluations_give_the_same_bytes(kind, count):
    """Twice, in any order, in another process and under a user's own settings: one picture."""
    picture = render_curve(swept(count), TWO, kind)
    assert render_curve(swept(count)[::-1], TWO, kind) == picture
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path", "savefig.dpi": 20, "axes.facecolor": "red"}):
        assert render_curve(swept(count), TWO, kind) == picture
    code = "import sys; from test_curve import *; sys.stdout.buffer.write(render_curve(swept({}), TWO, {!r}))"
    path = f"import sys; sys.path[:0] = {sys.path!r}; "
    done = subprocess.run([sys.executable, "-c", path + code.format(count, kind)], capture_output=True, check=True)
    assert done.stdout == picture
    assert matplotlib.__version__.encode() not in picture
    assert b"dc:date" not in picture


def test_png_is_a_picture_of_its_size():
    """Signature, end and size: ten inches wide at 150 dpi, taller with more metrics."""
    for metrics, size in ((TWO[:1], (960, 630)), (TWO, (1500, 720)), ([*TWO, Metric("loss", "min")], (1500, 900))):
        picture = render_curve(swept(5, metrics), metrics, "png")
        assert picture.startswith(b"\x89PNG\r\n\x1a\n")
        assert picture.endswith(b"IEND\xaeB`\x82")
        assert struct.unpack(">II", picture[16:24]) == size


@pytest.mark.parametrize("count", [2, 5, 11])
def test_svg_names_every_alpha_both_ends_and_both_metrics(count):
    """Each alpha is a text, base and tuned are named, axes say what is better, the best is told."""
    said = texts(render_curve(swept(count), TWO, "svg"))
    inner = [e.alpha for e in swept(count)[1:-1]]
    assert set(inner) <= set(said)
    assert {"0 (base)", "1 (tuned)", "acc (higher is better)", "shifted (higher is better)"} <= set(said)
    assert {"best by acc: alpha 1", "up and right is better"} <= set(said)
    assert "failed" not in said


def test_up_and_right_is_better_for_losses_too():
    """The axis of a metric that should be small is turned round, and says so; the better ticks are right and up."""
    metrics = parse_metrics(["loss:min", "err:min"])
    svg = render_curve(
        [Evaluation("0", None, {"loss": 3.0, "err": 30.0}), Evaluation("1", None, {"loss": 1.0, "err": 10.0})],
        metrics, "svg",
    )  # fmt: skip
    (base,), (tuned,) = places(svg, "0 (base)"), places(svg, "1 (tuned)")
    assert tuned[0] > base[0]
    assert tuned[1] < base[1]  # SVG counts from the top
    assert {"loss (lower is better, axis inverted)", "err (lower is better, axis inverted)"} <= set(texts(svg))
    ups = render_curve(
        [Evaluation("0", None, {"loss": 3.0, "err": 30.0}), Evaluation("1", None, {"loss": 1.0, "err": 10.0})],
        parse_metrics(["loss:max", "err:max"]), "svg",
    )  # fmt: skip
    (base,), (tuned,) = places(ups, "0 (base)"), places(ups, "1 (tuned)")
    assert tuned[0] < base[0]
    assert tuned[1] > base[1]


def test_failed_evaluations_are_shown_and_named():
    """A failure has its mark and a line in the legend; its alpha is no point of the curve."""
    said = texts(render_curve(swept(5, failed={1}), TWO, "svg"))
    assert "failed" in said
    assert "0.25" not in said
    assert "0.75" in said


def test_one_metric_has_one_panel():
    """The metric over alpha, the best named, and no Pareto set."""
    said = texts(render_curve(swept(5, TWO[:1]), TWO[:1], "svg"))
    assert "best by acc: alpha 1" in said
    assert not any("Pareto" in text for text in said)
    assert "alpha (0 is the base, 1 the tuned model)" in said


ODD = {
    "nothing": [],
    "all failed": [Evaluation("0", None, None, FAILED), Evaluation("1", None, None, FAILED)],
    "one": [Evaluation("0.5", None, {"acc": 1.0, "shifted": 2.0})],
    "equal": [Evaluation(a, None, {"acc": 0.1, "shifted": 0.1}) for a in ("0", "0.5", "1")],
    "one bit apart": [Evaluation(a, None, {"acc": x, "shifted": x}) for a, x in (("0", 1.0), ("1", 1 + 2**-52))],
    "huge": [Evaluation(a, None, {"acc": x, "shifted": -x}) for a, x in (("-1e+300", 1.7e308), ("1e+308", -1.7e308))],
    "tiny": [Evaluation(a, None, {"acc": x, "shifted": -x}) for a, x in (("0", 5e-324), ("5e-324", 1e-320))],
    "a hundred": swept(101),
}


@pytest.mark.parametrize("kind", ["png", "svg"])
@pytest.mark.parametrize("metrics", [TWO[:1], TWO], ids=["one metric", "two"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_sweeps_are_drawn_without_a_warning(odd, metrics, kind):
    """Nothing to draw, points on one spot, the ends of float64, a hundred points: a picture each time."""
    assert len(render_curve(ODD[odd], metrics, kind)) > 5000


@pytest.mark.parametrize("name", ["$x_{y$", "精度", "\x1b[31m\n", "<&>", "Größe", "eval/" * 30])
def test_names_are_drawn_as_they_are_spelt(name):
    """No mathematics, no missing glyph, no control character, no markup; what is too long is cut."""
    metrics = [Metric(name, "max"), Metric("other", "max")]
    said = "\n".join(texts(render_curve(swept(3, metrics), metrics, "svg")))
    spelt = name.encode("latin-1", "backslashreplace").decode("latin-1")
    spelt = spelt.replace("\x1b", "\\x1b").replace("\n", "\\n")
    assert spelt[:25] in said


def test_drawing_changes_no_setting_and_imports_no_pyplot():
    """matplotlib's settings are as before, the backend that is yet to be chosen among them, and pyplot stays out."""
    code = "import sys, matplotlib; from test_curve import *\n"
    code += "settings = lambda: {name: dict.__getitem__(matplotlib.rcParams, name) for name in matplotlib.rcParams}\n"
    code += "before = settings()\n"
    code += "render_curve(swept(3), TWO, 'png'), render_curve(swept(3), TWO, 'svg')\n"
    code += "assert settings() == before\nassert 'matplotlib.pyplot' not in sys.modules"
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    subprocess.run([sys.executable, "-c", path + code], check=True)


def test_plots_that_can_be_written(tmp_path):
    """The suffix chooses the kind, in any case; a file that is there may be replaced."""
    assert check_plot(tmp_path / "curve.png") == "png"
    assert check_plot(tmp_path / "curve.v2.SVG") == "svg"
    (tmp_path / "old.png").touch()
    assert check_plot(tmp_path / "old.png") == "png"


@pytest.mark.parametrize("name", ["curve.pdf", "curve", ".png", "png", "no/curve.png", "folder.png", "file/curve.png"])
def test_plots_that_cannot(name, tmp_path):
    """Another kind, no folder to write into, or a folder in the way, in four lines, before anything runs."""
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        check_plot(tmp_path / name)
    assert FOUR_LINES.fullmatch(str(caught.value))
    assert name in caught.value.where


def test_without_matplotlib_there_is_the_line_to_install_it(tmp_path, monkeypatch):
    """A missing matplotlib is refused by name, and nothing else."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unsupported) as caught:
        check_plot(tmp_path / "curve.png")
    assert FOUR_LINES.fullmatch(str(caught.value))
    assert "pip install 'wiseft_core[plot]'" in caught.value.hint
