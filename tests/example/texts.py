"""Two kinds of text that need no download: Unicode's table of characters to train on, and English to keep.

The table comes from Python, 64 code points to a page; some pages are held out. Names never change once they are given,
so that another version of Python has the same pages but for a few new characters.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from real.adapters import SENTENCES

PAGE = 64
END = 0x3000  # from here on the names are numbers: CJK UNIFIED IDEOGRAPH-4E00
LICENCE = Path(__file__).parents[2] / "LICENSE"


def training_pages() -> list[str]:
    """The pages to train on."""
    return [page for at, page in enumerate(pages()) if not held_out(at)]


def held_out_pages() -> list[str]:
    """Every sixteenth page, never trained on."""
    return [page for at, page in enumerate(pages()) if held_out(at)]


def english() -> list[str]:
    """Forty plain sentences, and this project's licence by its sections."""
    return ["\n".join(SENTENCES), *re.split(r"\n\n(?=   \d\. )", LICENCE.read_text())]


def pages() -> list[str]:
    """Lines such as `0041;LATIN CAPITAL LETTER A;Lu`, by pages; those with few characters are left out."""
    found = [[line for code in range(first, first + PAGE) if (line := entry(code))] for first in range(0, END, PAGE)]
    return ["\n".join(page) for page in found if len(page) >= PAGE // 2]


def entry(code: int) -> str:
    """The line of a code point; nothing if it has no name."""
    name = unicodedata.name(chr(code), "")
    return name and f"{code:04X};{name};{unicodedata.category(chr(code))}"


def held_out(page: int) -> bool:
    """Whether a page, by its number, is for evaluation only."""
    return page % 16 == 3
