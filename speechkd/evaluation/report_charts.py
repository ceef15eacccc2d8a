"""Line charts, histograms and waveforms as inline SVG, coloured by the page's CSS variables (light and dark theme)."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

Series = list[tuple[int, float]]
_INK = {"#010101": "--ink2", "#020202": "--line"}  # placeholder colours that `inline_svg` replaces by CSS variables
_HUES = [f"#0a0b{number:02x}" for number in range(6)]
_POINTS = 600
_LOGARITHMIC = ("loss", "grad_norm")
"""Metrics that may get a logarithmic axis; schedules, rates and shares stay linear"""
_FIRST = ("loss", "lr", "grad_norm", "samples_per_s", "audio_seconds_per_s", "tokens_per_s", "data_wait_ratio", "padding_ratio")


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. Title and legend are text that the page escapes, so the SVG contains only numbers."""

    title: str
    legend: list[tuple[str, int, float, int]]
    """(metric, hue number, last value, its step)"""
    svg: Markup


def charts_of(series: Mapping[str, Series], marks: Sequence[int] = ()) -> list[Chart]:
    """One chart per metric with at least two points. `a/x_y` is drawn into the chart of `a/x` if both exist (parts of a loss).

    `marks`: steps at which training was continued, drawn as dotted lines.
    """
    long = {name: points for name, points in series.items() if len(points) > 1}
    groups: dict[str, list[str]] = {}
    for name in sorted(long):
        owner = next((other for other in sorted(long) if name.startswith(f"{other}_")), name)
        if name == owner or long[name] != long[owner]:  # skip a part that equals its sum: it would be drawn over it
            groups.setdefault(owner, []).append(name)
    return [_chart(owner, {name: long[name] for name in groups[owner]}, marks) for owner in sorted(groups, key=_order)]


def _order(name: str) -> tuple[int, int, str]:
    leaf = name.rpartition("/")[2]
    return (0 if name.startswith("train/") else 1, _FIRST.index(leaf) if leaf in _FIRST else len(_FIRST), name)


def _chart(title: str, series: Mapping[str, Series], marks: Sequence[int]) -> Chart:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9.5, "text.parse_math": False}):
        figure = Figure(figsize=(4.4, 2.0), layout="constrained")
        axes = figure.add_subplot()
        for hue, points in enumerate(series.values()):
            steps, values = np.array(points, dtype=np.float64).T
            colour = _HUES[hue % len(_HUES)]
            raw_steps, raw = _thin(steps, values)
            smooth = _smooth(raw)
            if smooth is not None:
                axes.plot(raw_steps, raw, color=colour, alpha=0.25, linewidth=0.8)
                raw = smooth
            axes.plot(raw_steps, raw, color=colour, linewidth=1.6)
        for step in marks if title.startswith("train/") else ():
            axes.axvline(step, color=list(_INK)[0], linewidth=0.8, linestyle=":")
        every = np.array([value for points in series.values() for _, value in points])
        every = every[np.isfinite(every)]
        low, high = (every.min(), every.max()) if len(every) else (0.0, 0.0)
        if low > 0 and high / low > 50 and title.rpartition("/")[2] in _LOGARITHMIC:
            axes.set_yscale("log")
        elif high - low <= 1e-9 * max(abs(high), abs(low)):  # constant: do not magnify rounding errors
            axes.set_ylim(*sorted((0.0, 2 * low or 1.0)))
        style_axes(axes)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        picture = io.StringIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    legend = [(name, hue % len(_HUES), points[-1][1], points[-1][0]) for hue, (name, points) in enumerate(series.items())]
    return Chart(title, legend, inline_svg(picture.getvalue()))


def histogram(title: str, values: Sequence[float] | np.ndarray, bars: int = 40) -> Markup:
    """Histogram of `values`; `title` only makes the ids inside the SVG unique."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.size": 9.5, "text.parse_math": False}):
        figure = Figure(figsize=(4.4, 2.0), layout="constrained")
        axes = figure.add_subplot()
        axes.hist(np.asarray(values, dtype=np.float64), bins=bars, color=_HUES[0], linewidth=0)
        style_axes(axes)
        picture = io.StringIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return inline_svg(picture.getvalue())


def style_axes(axes: object) -> None:
    from matplotlib.axes import Axes
    from matplotlib.ticker import MaxNLocator

    assert isinstance(axes, Axes)
    ink, line = _INK
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(line)
    axes.grid(axis="y", color=line, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=ink, length=0, which="both")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.margins(x=0.01)


def inline_svg(svg: str) -> Markup:
    """Keep only the <svg> element, let it fill its box, and replace its colours by CSS variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    for stand_in, variable in [*_INK.items(), *((hue, f"--hue{number}") for number, hue in enumerate(_HUES))]:
        svg = svg.replace(stand_in, f"var({variable})")
    return Markup(svg)  # safe: made by matplotlib from numbers only


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Reduce to at most 600 points by averaging equal runs of steps."""
    if len(steps) <= _POINTS:
        return steps, values
    parts = np.array_split(np.arange(len(steps)), _POINTS)
    return np.array([steps[part].mean() for part in parts]), np.array([values[part].mean() for part in parts])


def _smooth(values: np.ndarray) -> np.ndarray | None:
    """Centred moving average over a twentieth of the points; None for series that are short, not finite, or already smooth."""
    half = len(values) // 40
    if half < 1 or not np.isfinite(values).all() or np.abs(np.diff(values)).sum() <= 3 * np.ptp(values):
        return None
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def waveform(samples_T: Sequence[float] | np.ndarray, columns: int = 160) -> Markup:
    """The envelope of a clip as one filled SVG path in a box of `columns` x 40."""
    samples = np.nan_to_num(np.asarray(samples_T, dtype=np.float32))
    peaks = np.array([np.abs(part).max() if len(part) else 0.0 for part in np.array_split(samples, columns)])
    heights = 19.0 * peaks / max(float(peaks.max()), 1e-6)
    top = " ".join(f"{x},{20 - height:.1f}" for x, height in enumerate(heights))
    bottom = " ".join(f"{x},{20 + height:.1f}" for x, height in reversed(list(enumerate(heights))))
    return Markup(f'<svg viewBox="0 0 {columns - 1} 40" preserveAspectRatio="none"><path d="M{top} {bottom}Z"/></svg>')
