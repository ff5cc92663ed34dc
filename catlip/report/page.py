"""One self-contained HTML file: no scripts, no network, light and dark. Everything from outside is escaped here."""

import base64
from dataclasses import dataclass
from html import escape

from catlip.atomic import write_text as write  # noqa: F401 - pages are written whole

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5b6675;--line:#e3e7ec;--card:#fff;--back:#f6f7f9;--good:#1a7f4b;
--bad:#8a94a3;--accent:#2f5fd0}
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#9aa5b4;--line:#303845;--card:#1b212b;--back:#12161d;
--good:#4cc38a;--bad:#7d8797;--accent:#82a6ff}}
*{box-sizing:border-box}body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1080px;margin:0 auto;padding:2rem 1.2rem 4rem}h1{font-size:1.6rem;margin:.2rem 0 .4rem}
h2{font-size:1.15rem;margin:2.2rem 0 .6rem}p,li{max-width:75ch}.soft{color:var(--soft)}
table{border-collapse:collapse;background:var(--card);border:1px solid var(--line);border-radius:8px}
th,td{padding:.4rem .9rem;text-align:right;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums}
th:first-child,td:first-child{text-align:left}tr:last-child td{border-bottom:0}td:not(:first-child){white-space:nowrap}
th{font-weight:600;color:var(--soft)}
.scroll{overflow-x:auto}.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(190px,1fr));gap:.8rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:.7rem;font-size:13px;
overflow-wrap:anywhere}.card img{width:100%;max-height:150px;object-fit:contain;border-radius:6px;background:#fff}
.wide{grid-template-columns:1fr}.wide .card img{max-height:none}
.card .caption{color:var(--soft);margin:.35rem 0}.tag{display:inline-block;border:1px solid var(--line);
border-radius:999px;padding:0 .5em;margin:.1em .15em .1em 0}.good{color:var(--good);border-color:currentColor}
.bad{color:var(--bad)}code,pre{font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace}pre{background:var(--card);
border:1px solid var(--line);border-radius:8px;padding:.7rem;overflow-x:auto}details{margin:.4rem 0}
summary{cursor:pointer;margin-bottom:.4rem}svg{max-width:100%;height:auto}
"""


@dataclass(frozen=True, slots=True)
class Html:
    """Text that is HTML already."""

    text: str


def join(parts: list[Html]) -> Html:
    return Html("\n".join(part.text for part in parts))


def page(title: str, *parts: Html) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>{escape(title)}</h1>\n{join(list(parts)).text}\n</main>"
        f"</body></html>"
    )


def heading(text: str) -> Html:
    return Html(f"<h2>{escape(text)}</h2>")


def paragraph(text: str, soft: bool = False) -> Html:
    return Html(f"<p{' class=soft' if soft else ''}>{escape(text)}</p>")


def code(text: str) -> Html:
    return Html(f"<pre>{escape(text)}</pre>")


def table(header: list[str], rows: list[list[str]]) -> Html:
    head = "<tr>" + "".join(f"<th>{escape(cell)}</th>" for cell in header) + "</tr>" if any(header) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return Html(f'<div class="scroll"><table>{head}{body}</table></div>')


def tags(words: list[str], good: set[str] | None = None) -> Html:
    """Words in little frames; those in `good` green, the others grey. Without `good`, plain."""
    style = {True: "tag good", False: "tag bad"}
    cells = (f'<span class="{style[w in good] if good is not None else "tag"}">{escape(w)}</span>' for w in words)
    return Html("".join(cells) or '<span class="soft">none</span>')


def image(data: bytes, alt: str) -> Html:
    kinds = {b"\xff\xd8": "jpeg", b"\x89P": "png", b"RI": "webp", b"GI": "gif"}
    kind = kinds.get(data[:2], "jpeg")
    return Html(f'<img alt="{escape(alt)}" src="data:image/{kind};base64,{base64.b64encode(data).decode()}">')


def card(picture: Html, caption: str, lines: list[tuple[str, Html]]) -> Html:
    rows = "".join(f'<div><span class="soft">{escape(name)}</span> {value.text}</div>' for name, value in lines)
    return Html(f'<div class="card">{picture.text}<div class="caption">{escape(caption)}</div>{rows}</div>')


def grid(cards: list[Html]) -> Html:
    return Html(f'<div class="grid">{join(cards).text}</div>')


def column(cards: list[Html]) -> Html:
    """Cards as wide as the page, one below the other."""
    return Html(f'<div class="grid wide">{join(cards).text}</div>')


def legend(entries: list[tuple[str, tuple[int, ...]]]) -> Html:
    """Names, each with a patch of its colour (red, green, blue)."""
    cells = (
        f'<span class="tag"><span style="color:rgb({",".join(str(int(part)) for part in rgb)})">&#9632;</span> '
        f"{escape(name)}</span>"
        for name, rgb in entries
    )
    return Html(f"<p>{''.join(cells)}</p>")


def folded(title: str, inside: Html) -> Html:
    """A part that opens on a click."""
    return Html(f"<details><summary>{escape(title)}</summary>{inside.text}</details>")
