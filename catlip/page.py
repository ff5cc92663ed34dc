"""Parts of a page, and the page: one self-contained HTML file, for light and dark screens. Nothing is loaded from
elsewhere, and the only script is that of a search.

Text from outside is escaped here. Charts are drawn by matplotlib as SVG whose colours are the page's CSS variables.
"""

import base64
import html
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catlip.atomic import write_text

if TYPE_CHECKING:
    from PIL.Image import Image

TALL = 40  # rows of a table, from which on it scrolls

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#e3e7ec;--card:#fff;--back:#f6f7f9;--good:#1a7f4b;
--bad:#8a94a3;--c0:#2f5fd0;--c1:#c2571a;--c2:#1a7f4b;--c3:#8a4fbf;--c4:#b8860b;--c5:#c23b78;--c6:#2a8f96;--c7:#7a6a5a}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#9aa5b4;--line:#303845;--card:#1b212b;--back:#12161d;
--good:#4cc38a;--bad:#7d8797;--c0:#82a6ff;--c1:#f0935c;--c2:#4cc38a;--c3:#c79bf0;--c4:#e3b94a;--c5:#f08ab8;--c6:#5fc9d0;
--c7:#b8a898}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:2rem 1.2rem 4rem}h1{font-size:1.6rem;margin:.2rem 0 .4rem}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem}p,li{max-width:75ch}
h1,p,li,summary{overflow-wrap:anywhere}.soft{color:var(--soft)}
.scroll{--under:var(--back);overflow-x:auto;width:fit-content;max-width:100%;
background:linear-gradient(to left,var(--under) 30%,transparent) right/3rem 100% no-repeat local,
linear-gradient(to left,var(--line),transparent) right/1rem 100% no-repeat var(--under)}
.framed{--under:var(--card);border:1px solid var(--line);border-radius:8px}
.tall{max-height:26rem;overflow-y:auto}.tall th{position:sticky;top:0;z-index:1;background:var(--card)}
table{border-collapse:collapse}
th,td{padding:.4rem .9rem;text-align:right;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th:first-child,td:first-child,.text td,.text th{text-align:left}tr:last-child td{border-bottom:0}
td{white-space:nowrap}.text td{white-space:normal;overflow-wrap:anywhere}
th,td:first-child{white-space:normal;overflow-wrap:break-word;max-width:min(24rem,45vw)}
tr>:first-child{position:sticky;left:0;background:var(--card)}th{font-weight:600;color:var(--soft)}
input{font:inherit;color:inherit;background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:.35rem .7rem;width:20rem;max-width:100%}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(var(--w),100%),1fr));gap:.8rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem;font-size:13px;
overflow-wrap:anywhere}.card img{width:100%;max-height:calc(.9*var(--w));object-fit:contain;border-radius:6px;
background:#fff}
.card .caption{color:var(--soft);margin:.35rem 0}.tag{display:inline-block;border:1px solid var(--line);
border-radius:999px;padding:0 .5em;margin:.1em .15em .1em 0}.good{color:var(--good);border-color:currentColor}
.bad{color:var(--bad)}code,pre{font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}pre{background:var(--card);
border:1px solid var(--line);border-radius:8px;padding:.7rem;overflow-x:auto}details{margin:.4rem 0}
summary{cursor:pointer;margin-bottom:.4rem}svg{display:block;width:860px;min-width:640px;max-width:100%;height:auto;stroke-linejoin:round}
"""


_SEARCH = """
const rows=[...document.querySelectorAll("#searched tr")].slice(1),words=rows.map(r=>r.textContent.toLowerCase());
document.getElementById("search").addEventListener("input",e=>{const w=e.target.value.trim().toLowerCase();let n=0;
rows.forEach((r,i)=>{r.hidden=!words[i].includes(w);n+=!r.hidden});
document.getElementById("shown").textContent=n.toLocaleString("en")+" of "+rows.length.toLocaleString("en")})
"""


@dataclass(frozen=True, slots=True)
class Html:
    """Text that is HTML already."""

    text: str


def escape(text: str, most: int = 0) -> str:
    """Text as HTML, of so many characters at most. What is no Unicode, as the file names of another encoding are,
    becomes question marks."""
    return html.escape(_plain(text, most))


def _plain(text: str, most: int) -> str:
    """Whoever writes a name or a caption does not decide how long a page is."""
    text = text[: most - 3] + "..." if most and len(text) > most else text
    return text.encode(errors="replace").decode()


def join(parts: list[Html]) -> Html:
    return Html("\n".join(part.text for part in parts))


def page(title: str, *parts: Html) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>\n{join(list(parts)).text}\n</main>"
        f"</body></html>"
    )


def write(path: Path, text: str) -> Path:
    """A page in its file, whole, and in a folder that is made if there is none; the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def heading(text: str) -> Html:
    return Html(f"<h2>{escape(text)}</h2>")


def paragraph(text: str, soft: bool = False) -> Html:
    return Html(f"<p{' class=soft' if soft else ''}>{escape(text)}</p>")


def code(text: str) -> Html:
    return Html(f"<pre>{escape(text)}</pre>")


def table(name: str, header: list[str], rows: list[list[str]], *, text: bool = False) -> Html:
    """name: for screen readers. text: the cells are words, which begin on the left and may be long, and no numbers."""
    cells = "".join(f'<th scope="col">{escape(cell, 100)}</th>' for cell in header)
    head = f"<tr>{cells}</tr>" if any(header) else ""
    width = max((len(row) for row in rows), default=0)
    full = ([*row, *[""] * (width - len(row))] for row in rows)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell, 1000)}</td>" for cell in row) + "</tr>" for row in full)
    kind, tall = " class=text" if text else "", ' tall" tabindex="0' if len(rows) > TALL else ""
    return Html(f'<div class="scroll framed{tall}"><table aria-label="{escape(name)}"{kind}>{head}{body}</table></div>')


def searchable(name: str, header: list[str], rows: list[list[str]]) -> Html:
    """A table with a field above it: only rows that hold what is typed are shown."""
    inside, count, name = table(name, header, rows).text, f"{len(rows):,}", escape(f"Search {name}")
    return Html(
        f'<p><input type="search" id="search" placeholder="{name}" aria-label="{name}" aria-controls="searched"> '
        f'<span class="soft" role="status" id="shown">{count}</span></p><div id="searched">{inside}</div>'
        f"<script>{_SEARCH}</script>"
    )


def tags(words: list[str], good: set[str] | None = None) -> Html:
    """Words in little frames; those in `good` green, the others grey. Without `good`, plain."""
    style = {True: "tag good", False: "tag bad"}
    cells = (f'<span class="{style[w in good] if good is not None else "tag"}">{escape(w, 100)}</span>' for w in words)
    return Html("".join(cells) or '<span class="soft">none</span>')


def image(data: bytes, alt: str) -> Html:
    """An encoded image: JPEG, PNG, WebP or GIF. alt: what it shows."""
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp", b"GI": "gif"}
    kind = kinds.get(data[:2], "jpeg")
    return Html(f'<img alt="{escape(alt, 200)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')


def drawing(pixels: "Image", alt: str, quality: int = 85) -> Html:
    """A PIL image, as JPEG."""
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=quality)
    return image(buffer.getvalue(), alt)


def card(picture: Html, caption: str, lines: list[tuple[str, Html]]) -> Html:
    rows = "".join(f'<div><span class="soft">{escape(name)}</span> {value.text}</div>' for name, value in lines)
    return Html(f'<div class="card">{picture.text}<div class="caption">{escape(caption, 400)}</div>{rows}</div>')


def grid(cards: list[Html], width: int = 170) -> Html:
    """Cards in as many columns as there is room for. width: pixels of a card, at least."""
    return Html(f'<div class="grid" style="--w:{width}px">{join(cards).text}</div>')


def legend(entries: list[tuple[str, tuple[int, ...]]]) -> Html:
    """Names, each with a patch of its colour (red, green, blue)."""
    cells = (
        f'<span class="tag"><span style="color:rgb({",".join(str(int(part)) for part in rgb)})">&#9632;</span> '
        f"{escape(name, 100)}</span>"
        for name, rgb in entries
    )
    return Html(f"<p>{''.join(cells)}</p>")


def folded(title: str, inside: Html) -> Html:
    """A part that opens on a click."""
    return Html(f"<details><summary>{escape(title)}</summary>{inside.text}</details>")


@dataclass(frozen=True, slots=True)
class Series:
    """Points (x, y) of one name in a chart: joined by a line, or a dot each."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    soft: bool = False  # grey, in the background
    titles: Sequence[str] = ()  # of dots, shown when the mouse rests on them
    spread: Sequence[float] = ()  # of each point: how far an error bar reaches above and below it


# Colours that matplotlib is given, and what stands for them in the page, where light and dark screens differ.
_COLOURS = {"#010101": "--ink", "#010102": "--soft", "#010103": "--line", "#010104": "--bad", "#010105": "--good"}
_COLOURS |= {f"#0201{i:02x}": f"--c{i}" for i in range(8)}
_INK, _SOFT, _LINE, _BAD, _GOOD, *_CYCLE = _COLOURS


def chart(
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    zero: bool = False,
    cut: tuple[float, str] | None = None,
    height: float = 2.9,
) -> Html:
    """A chart as SVG; nothing if there is no point to draw.

    zero: the y axis begins at 0. cut: a dashed line at this x, and what it says. height: in inches; the width is 8.6.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown = [one for one in series if len(one.points)]
    if not shown:
        return Html("")
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "catlip", "text.parse_math": False, "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8.6, height), layout="constrained")
        axes: Any = figure.add_subplot()
        colours = iter(_CYCLE)
        for number, one in enumerate(shown):
            _draw(axes, one, number, _BAD if one.soft else next(colours, _INK))
        _style(axes, x_label, y_label, log_x, log_y)
        if zero:
            axes.set_ylim(bottom=0)
        if cut is not None:
            _cut(axes, *cut)
        if len(shown) > 1:
            figure.legend(loc="outside upper left", ncols=4, frameon=False, labelcolor="linecolor")
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return Html(f'<div class="scroll">{_embedded(buffer.getvalue(), f"{y_label} against {x_label}")}</div>')


def _draw(axes: Any, one: Series, number: int, colour: str) -> None:
    x, y = zip(*one.points, strict=True)
    name = _plain(one.name, 40)
    if one.dots:
        drawn = axes.scatter(x, y, s=20, color=colour, alpha=0.6, linewidths=0, clip_on=False, label=name)
        # A collection has no tooltips, but links, which become tooltips below.
        drawn.set_urls([f"title:{escape(title)}" for title in one.titles])
    elif one.spread:
        drawn = axes.errorbar(x, y, yerr=one.spread, color=colour, elinewidth=1, marker="o", ms=3, label=name)[0]
    else:
        # One measurement is a point; a line would be invisible.
        marker = "o" if len(x) == 1 else None
        (drawn,) = axes.plot(x, y, color=colour, linewidth=1 if one.soft else 1.8, marker=marker, label=name)
    drawn.set_gid(f"series-{number}")


def _cut(axes: Any, x: float, says: str) -> None:
    axes.axvline(x, color=_GOOD, linestyle="--", linewidth=1)
    across = axes.transAxes.inverted().transform(axes.transData.transform((x, 1)))[0]
    side, shift = ("right", -6) if across > 0.5 else ("left", 6)  # where there is room
    place = {"xy": (x, 0.97), "xycoords": ("data", "axes fraction"), "xytext": (shift, 0)}
    axes.annotate(says, **place, textcoords="offset points", color=_GOOD, ha=side, va="top")


def _style(axes: Any, x_label: str, y_label: str, log_x: bool, log_y: bool) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    for axis, logarithmic in ((axes.xaxis, log_x), (axes.yaxis, log_y)):
        low, high = axis.get_view_interval()
        if logarithmic:
            axis.axes.set_xscale("log") if axis is axes.xaxis else axis.axes.set_yscale("log")
            low, high = axis.get_view_interval()
            few = high / max(low, 1e-300) < 100  # less than two decades: 2 and 5 of each, too
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _number(value)))
    axes.set_xlabel(x_label, color=_SOFT)
    axes.set_ylabel(y_label, color=_SOFT)
    axes.tick_params(colors=_SOFT, length=0)
    axes.grid(axis="y", color=_LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_LINE)


def _number(value: float) -> str:
    if abs(value) >= 1e6:
        return f"{value / 1e6:,.5g}M"
    if value and abs(value) < 0.01:
        power = math.floor(math.log10(abs(value)))
        return f"{value / 10**power:.3g}e{power}"
    return f"{value:,.6g}"


def _embedded(svg: str, label: str) -> str:
    """matplotlib's file as a part of a page: the page's font and colours, no style that would reach beyond it."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|version|width|height|target)="[^"]*"', "", svg, count=5)
    svg = re.sub(r"font-family: [^;\"]*; ", "", svg)
    svg = re.sub(r'<a xlink:href="title:([^"]*)"[^>]*>(.*?)</a>', r"<g><title>\1</title>\2</g>", svg, flags=re.DOTALL)
    svg = re.sub("|".join(_COLOURS), lambda found: f"var({_COLOURS[found[0]]})", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(label)}"', 1)
