"""The documentation site: `uv run --group docs sphinx-build -W docs site`, site/index.html. Needs no network."""

import dataclasses
import json
import re
import typing
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from tyro._docstrings import get_field_docstring  # where `--help` has its texts from

import catlip
from catlip import cli

project, author, release = "catlip", "the catlip authors", catlip.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # links to #headings are checked
myst_enable_extensions = ["attrs_inline"]
html_theme, html_title = "furo", f"catlip {release}"
html_copy_source = html_show_copyright = False
html_static_path, html_css_files = ["static"], ["site.css"]
highlight_language = "none"  # of a block without a language
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
python_maximum_signature_line_length = 88


HERE = Path(__file__).parent
# Public names, in the order of a reader's way; the rest of catlip.__all__ must be empty.
GROUPS = {
    "Data": "open Dataset Sample pack subset mix with_classes",
    "Labels": "Labeler Vocabulary",
    "Training": "pretrain head adapt finetune detect segment align train TrainConfig Task Run",
    "Encoders": "load Encoder load_detector load_segmenter",
    "Measuring": "probe zero_shot retrieve ground bias atlas",
    "Weights out": "export convert embed predict",
}


RECORDS = {"RESULTS.md": "results.md", "LOG.md": "log.md", "CHANGELOG.md": "changelog.md"}  # beside docs/


def write_pages(app: Sphinx) -> None:
    """The pages that come from elsewhere: every verb's settings, every public name, what was measured and learned, and
    the notebooks."""
    pages = {"verbs.md": verbs_page(), "api.md": api_page()}
    for source, name in RECORDS.items():
        pages[name] = (HERE.parent / source).read_text(encoding="utf-8").replace("](docs/", "](../")
    for source, name in RECORDS.items():
        pages = {page: text.replace(f"]({source})", f"]({name})") for page, text in pages.items()}
    pages = {f"reference/{name}": text for name, text in pages.items()}
    for notebook in (HERE / "notebooks").glob("*.ipynb"):
        pages[f"notebooks/{notebook.stem}.md"] = notebook_page(notebook)
    for name, text in pages.items():
        path = HERE / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def notebook_page(notebook: Path) -> str:
    """A notebook's text and code; it is stored without outputs."""
    parts = [f"{{download}}`This page as a notebook <{notebook.name}>`"]
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).replace(".ipynb)", ".md)")
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join([parts[1], parts[0], *parts[2:]])


def verbs_page() -> str:
    parts = [
        "# Verbs",
        "Every setting of every verb, from the same source as `catlip VERB --help`. What stands in capitals behind a "
        "verb may be given without its flag. Each verb also takes `--json` and `--quiet`; `zeroshot`, `retrieve` and "
        "`probe` take `--format clip-benchmark`.",
    ]
    for name, verb in cli.VERBS.items():
        _, kind = verb.opened()
        usage = " ".join(["catlip", name, *(setting.upper() for setting in verb.first), "..."])
        table = [("setting", "value: default", "what"), ("---",) * 3, *rows(kind)]
        parts += [f"## catlip {name}", f"`{usage}`", " ".join((kind.__doc__ or "").split())]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in table))
    return "\n\n".join(parts)


def rows(kind: Any, value: Any = None) -> list[tuple[str, str, str]]:
    """(flag, type and default, what it says) of each field, those of settings inside settings too."""
    found, hints = [], typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        default = getattr(value, field.name, default_of(field))
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            found += rows(type(default), default)
            continue
        says = get_field_docstring(kind, field.name, ()) or ""
        flag = field.name.replace("_", "-")
        named = f"`--{flag}` `--no-{flag}`" if hints[field.name] is bool else f"`--{flag}`"
        told = "needed" if default is dataclasses.MISSING else f"`{default}`" if default not in ("", None) else ""
        cells = (named, ": ".join(filter(None, (sort_of(hints[field.name]), told))), " ".join(says.split()))
        found.append(tuple(cell.replace("|", "\\|") for cell in cells))
    return found


def sort_of(hint: Any) -> str:
    """A type in words: what may stand behind the flag."""
    parts = [part for part in typing.get_args(hint) if part is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return " ".join(f"`{part}`" for part in parts)
    if type(None) in typing.get_args(hint) and len(parts) == 1:
        return sort_of(parts[0])
    if typing.get_origin(hint) in (tuple, list) and parts:
        return f"{sort_of(parts[0])} ..."
    words = {str: "text", int: "whole number", float: "number", bool: "yes or no"}
    return words.get(hint, str(getattr(hint, "__name__", hint)).replace("typing.", ""))


def default_of(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def api_page() -> str:
    named = [name for names in GROUPS.values() for name in names.split()]
    assert sorted(named) == sorted(catlip.__all__), set(named) ^ set(catlip.__all__)
    parts = [
        "# Python\n",
        "Every public name of the package. Settings of a function are those of its verb ([verbs](verbs.md)).\n",
    ]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        for name in names.split():
            sort = "autoclass" if isinstance(getattr(catlip, name), type) else "autofunction"
            parts.append(f"```{{eval-rst}}\n.. {sort}:: catlip.{name}\n```\n")
    return "\n".join(parts)


def within_site(app: Sphinx, name: str, source: list[str]) -> None:
    """Links out of docs/ and to notebooks, which the repository's pages need, lead to the site's copies."""
    for file, page in RECORDS.items():
        source[0] = source[0].replace(f"](../{file}", f"](reference/{page}")
    source[0] = source[0].replace(".ipynb)", ".md)")


def house_docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Our docstrings are Markdown with `name: what it is` for parameters; Sphinx reads reStructuredText."""
    made: list[str] = []
    inside = False  # a block of parameters, which begins after an empty line and has hanging indents
    for before, line in zip(["", *lines], lines, strict=False):
        found = re.match(r"([a-z]\w*(?:, [a-z]\w*)*): (.*)", line)
        if found and (inside or not before.strip()):
            inside = True
            made.append(f":param {found[1].replace(', ', ',')}: {found[2]}")  # several names are one word to Sphinx
            continue
        if inside and line.strip() and not line.startswith(" "):
            inside = False
            made.append("")
        made.append(line)
    lines[:] = [re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", line) for line in made]


def setup(app: Sphinx) -> None:
    app.connect("source-read", within_site)
    app.connect("autodoc-process-docstring", house_docstring)
    app.connect("builder-inited", write_pages)
