"""Pictures as files: PNG with few colours, and SVG whose points and bars tell what they are."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from weakref import WeakKeyDictionary
from xml.etree import ElementTree

import matplotlib
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from PIL import Image

__all__ = ["DPI", "png", "svg", "tell"]

DPI = 200
COLOURS = 64
"""Of a PNG: a handful, and their shades at edges."""
SVG, XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"

_TOLD: WeakKeyDictionary[Artist, list[str]] = WeakKeyDictionary()


def tell(artist: Artist, texts: Sequence[str]) -> None:
    """What the SVG shows under the pointer: a text for each marker of a line, or one for a bar."""
    _TOLD[artist] = list(texts)


def png(figure: Figure) -> bytes:
    drawn, written = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI)
    few = Image.open(drawn).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(written, "png", optimize=True, dpi=(DPI, DPI))
    return written.getvalue()


def svg(figure: Figure) -> bytes:
    """The same picture always gives the same bytes."""
    told = {f"told-{i}": artist for i, artist in enumerate(figure.findobj(lambda artist: artist in _TOLD))}
    for name, artist in told.items():
        artist.set_gid(name)
    written = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "bcos_kernels"}):
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None})
    ElementTree.register_namespace("", SVG.strip("{}"))
    ElementTree.register_namespace("xlink", XLINK.strip("{}"))
    text = re.sub(r"<!DOCTYPE[^>]*>|<metadata>.*?</metadata>", "", written.getvalue().decode(), flags=re.DOTALL)
    root = ElementTree.fromstring(text.encode())
    for element in root.iter(f"{SVG}g"):
        if (name := element.get("id", "")) in told:
            markers = list(element.iter(f"{SVG}use")) or [element]
            for marker, words in zip(markers, _TOLD[told[name]], strict=True):
                ElementTree.SubElement(marker, f"{SVG}title").text = words
    return ElementTree.tostring(root, encoding="utf-8")
