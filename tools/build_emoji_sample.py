"""Build the emoji sample that `catlip demo` trains on: three artists' pictures of the same emoji, captioned.

The demo needs a few thousand captioned pictures that may be redistributed, that load without a network and
that let the same words be tested on pictures drawn by someone else. Emoji are that: every one has an English
name and keywords, and several artists have drawn them all under open licences. The result is committed
(`catlip/demo/sample`); this script is kept so that anyone can see how it was made and make it again. The same
inputs and the same versions of Pillow and librsvg give the same bytes.

What it needs, and how to get it:
    apt-get install fonts-noto-color-emoji librsvg2-bin      # the Noto font; rsvg-convert draws the SVG files
    npm pack openmoji@17.0.0 && mkdir openmoji && tar xzf openmoji-17.0.0.tgz -C openmoji
    npm pack @twemoji/svg@15.0.0 && mkdir twemoji && tar xzf twemoji-svg-15.0.0.tgz -C twemoji

How to run it (pinned are the versions that made the committed files, with librsvg 2.54.7):
    uv run --with fonttools==4.68.0 --with pillow==13.0.0 tools/build_emoji_sample.py \
        --openmoji openmoji/package --twemoji twemoji/package \
        --noto /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf --out catlip/demo/sample

Each tar is in WebDataset form: KEY.webp, then KEY.txt with the name on line 1 and the keywords on line 2.
KEY is the emoji's code points in hex without the variation selector FE0F, and is the same for all artists.
Licences of the output: `catlip/demo/sample/LICENSES.md`.
"""

import argparse
import gzip
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image, ImageStat

SIDE = 64  # pixels
WEBP_QUALITY = 90  # used where lossless would be larger
BLANK = 10  # standard deviation of the grey levels below which a picture on white shows nearly nothing
GROUPS = {
    "activities",
    "animals-nature",
    "food-drink",
    "objects",
    "people-body",
    "smileys-emotion",
    "symbols",
    "travel-places",
}
# Signs whose picture is only lettering or a typographic mark: a caption names nothing that can be seen.
LETTERING = {"alphanum", "currency", "gender", "keycap", "math", "punctuation"}
TYPOGRAPHIC = {0xA9, 0xAE, 0x2122, 0x3030, 0x303D}  # copyright, registered, trade mark, wavy dash, part mark
JOINER, SELECTOR = 0x200D, 0xFE0F
GENDER_SIGNS = {0x2640, 0x2642}
MAN, WOMAN = 0x1F468, 0x1F469
CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"

Artist = Callable[[tuple[int, ...]], Image.Image | None]


@dataclass(frozen=True)
class Emoji:
    """One emoji: its code points without variation selectors, its English name and its keywords."""

    codepoints: tuple[int, ...]
    name: str
    keywords: tuple[str, ...]

    @property
    def key(self) -> str:
        return "-".join(f"{point:x}" for point in self.codepoints)

    @property
    def text(self) -> bytes:
        return f"{self.name}\n{', '.join(self.keywords)}\n".encode()


def keywords(entry: dict[str, str], name: str) -> tuple[str, ...]:
    """Return an entry's keywords: lower case, each once, those without a letter left out.

    Only Unicode's own keywords: OpenMoji's additions often name what no picture shows (a boxer, a town).
    """
    listed = entry["tags"].replace(CURLY, "'").lower().split(",")
    words = dict.fromkeys(" ".join(word.split()) for word in listed)
    return tuple(word for word in words if any(map(str.isalpha, word))) or (name.lower(),)


def is_wanted(entry: dict[str, str], codepoints: tuple[int, ...]) -> bool:
    """Say whether an entry has something to see and is no skin tone or gender variant."""
    if entry["skintone"] or entry["group"] not in GROUPS or entry["subgroups"] in LETTERING:
        return False
    gendered = JOINER in codepoints and (
        GENDER_SIGNS.intersection(codepoints) or MAN in codepoints or WOMAN in codepoints
    )
    return not gendered and not TYPOGRAPHIC.intersection(codepoints)


def read_emoji(openmoji: Path) -> list[Emoji]:
    """Read the wanted emoji from OpenMoji's data file, in the order of their keys."""
    found = []
    for entry in json.loads((openmoji / "data" / "openmoji.json").read_text(encoding="utf-8")):
        points = tuple(int(part, 16) for part in entry["hexcode"].split("-"))
        points = tuple(point for point in points if point != SELECTOR)
        if is_wanted(entry, points):
            name = entry["annotation"].replace(CURLY, "'")
            found.append(Emoji(points, name, keywords(entry, name)))
    return sorted(found, key=lambda emoji: emoji.key)


def draw_svg(path: Path) -> Image.Image:
    """Draw an SVG file on a white square."""
    command = ["rsvg-convert", "--width", str(SIDE), "--height", str(SIDE), "--keep-aspect-ratio"]
    command += ["--background-color", "white", str(path)]
    png = subprocess.run(command, check=True, capture_output=True).stdout
    return on_white(Image.open(io.BytesIO(png)))


def on_white(picture: Image.Image) -> Image.Image:
    """Centre a picture on a white square and scale the square to the sample's size."""
    picture = picture.convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def svg_artist(folder: Path) -> Artist:
    """Return an artist whose pictures are SVG files named by code points, with or without FE0F."""
    files = {}
    for path in sorted(folder.glob("*.svg")):
        points = (int(part, 16) for part in path.stem.split("-"))
        files[tuple(point for point in points if point != SELECTOR)] = path

    def draw(codepoints: tuple[int, ...]) -> Image.Image | None:
        path = files.get(codepoints)
        return draw_svg(path) if path else None

    return draw


def noto_artist(font_file: Path) -> Artist:
    """Return an artist whose pictures are the bitmaps of a CBDT font, reached through cmap and ligatures."""
    font = TTFont(font_file)
    if "CBDT" not in font:
        raise ValueError(f"--noto {font_file}: not a bitmap (CBDT) colour font")
    glyphs = font.getBestCmap() or {}
    bitmaps = font["CBDT"].strikeData[0]
    ligatures: dict[tuple[str, ...], str] = {}
    for table in font["GSUB"].table.LookupList.Lookup[0].SubTable:
        for first, entries in table.ligatures.items():
            ligatures.update({(first, *entry.Component): entry.LigGlyph for entry in entries})

    def draw(codepoints: tuple[int, ...]) -> Image.Image | None:
        names = tuple(glyphs.get(point, "") for point in codepoints)
        glyph = names[0] if len(names) == 1 else ligatures.get(names)
        if glyph not in bitmaps:
            return None
        return on_white(Image.open(io.BytesIO(bitmaps[glyph].imageData)))

    return draw


def encode(picture: Image.Image) -> bytes:
    """Return the picture as WebP: lossless or high quality, whichever is smaller."""
    forms = []
    for options in ({"lossless": True}, {"quality": WEBP_QUALITY}):
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", method=6, **options)
        forms.append(buffer.getvalue())
    return min(forms, key=len)


def is_blank(picture: Image.Image) -> bool:
    """Say whether a picture is nearly invisible, such as a white square on white."""
    return ImageStat.Stat(picture.convert("L")).stddev[0] < BLANK


def draw_all(emoji: list[Emoji], artists: dict[str, Artist]) -> Iterator[tuple[Emoji, dict[str, bytes]]]:
    """Yield every emoji that all artists have drawn visibly, with its encoded pictures."""
    for one in emoji:
        pictures = {}
        for name, draw in artists.items():
            picture = draw(one.codepoints)
            if picture is None or is_blank(picture):
                break
            pictures[name] = encode(picture)
        else:
            yield one, pictures


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file whose header depends on nothing but its name and size."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o644
    tar.addfile(header, io.BytesIO(data))


def write_sample(out: Path, drawn: list[tuple[Emoji, dict[str, bytes]]], artists: list[str]) -> None:
    """Write one tar per artist and the index of all of them."""
    out.mkdir(parents=True, exist_ok=True)
    index = {}
    for artist in artists:
        path = out / f"{artist}.tar.gz"
        plain = io.BytesIO()
        with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for emoji, pictures in drawn:
                add_member(tar, f"{emoji.key}.webp", pictures[artist])
                add_member(tar, f"{emoji.key}.txt", emoji.text)
        data = gzip.compress(plain.getvalue(), mtime=0)  # two thirds of the tar are padding
        path.write_bytes(data)
        index[path.name] = {"samples": len(drawn), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        print(f"{path}: {len(drawn)} samples, {len(data):,} bytes")
    (out / "index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Read the command line, check that every input is there, and build the sample."""
    parser = argparse.ArgumentParser(description="Build the emoji sample of `catlip demo`.")
    parser.add_argument("--openmoji", type=Path, required=True, help="unpacked npm package openmoji")
    parser.add_argument("--twemoji", type=Path, required=True, help="unpacked npm package @twemoji/svg")
    parser.add_argument("--noto", type=Path, required=True, help="NotoColorEmoji.ttf, the bitmap font")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    args = parser.parse_args()

    colour = args.openmoji / "color" / "svg"
    for option, path in (
        ("--openmoji", args.openmoji / "data" / "openmoji.json"),
        ("--openmoji", colour / "1F34E.svg"),
        ("--twemoji", args.twemoji / "1f34e.svg"),
        ("--noto", args.noto),
    ):
        if not path.is_file():
            raise SystemExit(f"{option}: no file {path}")
    if shutil.which("rsvg-convert") is None:
        raise SystemExit("rsvg-convert is missing: apt-get install librsvg2-bin")

    artists = {"noto": noto_artist(args.noto), "openmoji": svg_artist(colour), "twemoji": svg_artist(args.twemoji)}
    write_sample(args.out, list(draw_all(read_emoji(args.openmoji), artists)), list(artists))


if __name__ == "__main__":
    main()
