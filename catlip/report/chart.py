"""Line and point charts as SVG in the page's own colours, light and dark."""

import math
from dataclasses import dataclass
from html import escape

from catlip.report.page import Html

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 260, 72, 40, 26, 16
LEGEND = 4  # names in a row


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) with a name; joined by a line, or dots of their own."""

    name: str
    points: list[tuple[float, float]]
    dots: bool = False
    soft: bool = False  # in the background
    titles: tuple[str, ...] = ()  # of dots, shown when the mouse rests on them
    spread: tuple[float, ...] = ()  # of each point: how far a bar reaches above and below it


def chart(series: list[Series], x_label: str, y_label: str, *, log_x: bool = False, zero: bool = False) -> Html:
    """One picture. log_x: positive x on a logarithmic axis. zero: the y axis starts at 0."""
    shown = [s for s in series if s.points]
    if not shown:
        return Html("")
    xs = [math.log10(x) if log_x else x for s in shown for x, _ in s.points]
    ys = [edge for s in shown for i, (_, y) in enumerate(s.points) for edge in (y - _reach(s, i), y + _reach(s, i))]
    low_y, high_y = (0.0 if zero else min(ys)), max(ys)
    y_ticks = _ticks(low_y, high_y)
    low_y, high_y = min(low_y, y_ticks[0]), max(high_y, y_ticks[-1])
    low_x, high_x = min(xs), max(xs)
    top = TOP + 16 * ((len(shown) - 1) // LEGEND)
    wide, tall = max(high_x - low_x, 1e-12), max(high_y - low_y, 1e-12)

    def place(x: float, y: float) -> tuple[float, float]:
        across = ((math.log10(x) if log_x else x) - low_x) / wide
        return LEFT + (WIDTH - LEFT - RIGHT) * across, top + (HEIGHT - top - BOTTOM) * (1 - (y - low_y) / tall)

    parts = [_grid_line(place(_un(low_x, log_x), tick)[1], _number(tick)) for tick in y_ticks]
    for tick in _log_ticks(low_x, high_x) if log_x else _ticks(low_x, high_x):
        if low_x - 1e-9 <= (math.log10(tick) if log_x else tick) <= high_x + 1e-9:
            x = place(tick, low_y)[0]
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 20}" text-anchor="middle">{_number(tick)}</text>')
    colours = iter(["var(--accent)", "var(--good)", "#c2571a", "#8a4fbf", "#b8860b", "#c23b78", "#3a9ea5", "#7a6a5a"])
    for i, s in enumerate(shown):
        colour = "var(--bad)" if s.soft else next(colours, "var(--ink)")
        parts.append(_dots(s, place, colour) if s.dots else _line(s, place, colour))
        if len(shown) > 1:
            x, y = LEFT + 8 + 190 * (i % LEGEND), 16 + 16 * (i // LEGEND)
            parts.append(f'<text x="{x}" y="{y}" style="fill:{colour}">{escape(s.name)}</text>')
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 3}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text x="14" y="{HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {HEIGHT / 2})">'
        f"{escape(y_label)}</text>"
    )
    label = escape(f"{y_label} against {x_label}")
    return Html(
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="{label}" '
        f'style="font-size:12px;fill:var(--soft)">{"".join(parts)}</svg>'
    )


def _un(x: float, log_x: bool) -> float:
    return 10**x if log_x else x


def _grid_line(y: float, text: str) -> str:
    return (
        f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="var(--line)"/>'
        f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _line(s: Series, place, colour: str) -> str:
    points = " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in s.points)
    width = 1 if s.soft else 2
    line = f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
    return line + _bars(s, place, colour)


def _reach(s: Series, i: int) -> float:
    return s.spread[i] if s.spread else 0.0


def _bars(s: Series, place, colour: str) -> str:
    found = []
    for i, (x, y) in enumerate(s.points):
        (at, low), (_, high) = place(x, y - _reach(s, i)), place(x, y + _reach(s, i))
        found.append(f'<path d="M{at:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-opacity=".5"/>')
    return "".join(found) if s.spread else ""


def _dots(s: Series, place, colour: str) -> str:
    found = []
    for i, (x, y) in enumerate(s.points):
        title = f"<title>{escape(s.titles[i])}</title>" if i < len(s.titles) else ""
        cx, cy = place(x, y)
        found.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3" fill="{colour}" fill-opacity=".55">{title}</circle>')
    return "".join(found)


def _ticks(low: float, high: float) -> list[float]:
    """Some five round numbers that cover the span."""
    span = high - low
    if span <= 0:
        return [low, low + max(abs(low) * 0.1, 1e-3)]
    raw = span / 4
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
    first = math.floor(low / step)
    return [round(i * step, 12) for i in range(first, math.ceil(high / step - 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten; over less than two decades, two and five of each too. low, high: logarithms."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    return [m * 10.0**p for p in powers for m in ((1,) if high - low > 2 else (1, 2, 5))]


def _number(value: float) -> str:
    if value and (abs(value) < 0.01 or abs(value) >= 1e7):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e").replace("e+", "e")
    return f"{value:,.6g}"
