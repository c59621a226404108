"""WikiText as lm-eval reads it: whole pages, and the spaces of its tokenisation undone.

The page borders, the substitutions and their order are lm-eval's task `wikitext`, version 2: the
bits per byte of other models are only comparable if the text is the same to the byte.
"""

from __future__ import annotations

import re

JOINED = ((" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."))
PUNCTUATION = tuple((f" {sign} ", f"{sign} ") for sign in ":;.!?,")
BRACKETS = (
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
)
LAST = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def pages(text: str) -> list[str]:
    """The pages of a WikiText file: each begins with a line ` = Title = `.

    What stands before the first title is left out if it is blank, and so is the line end between
    two pages.
    """
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        title = line.replace("= = =", "===").replace("= =", "==").strip()
        if title.startswith("= ") and title.endswith(" ="):
            if "".join(lines).strip():
                found.append("\n".join(lines))
            lines = []
        lines.append(line)
    return [*found, "\n".join(lines)]


def detokenize(page: str) -> str:
    """The page as running text; words and bytes are counted in the page as it was."""
    page = page.replace("s '", "s'")
    for old, new in (*JOINED, *PUNCTUATION):
        page = page.replace(old, new)
    for pattern, new in BRACKETS:
        page = re.sub(pattern, new, page)
    for old, new in LAST:
        page = page.replace(old, new)
    return page
