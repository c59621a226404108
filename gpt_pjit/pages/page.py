"""Blocks as one HTML file that loads nothing; pictures are SVG that follows light and dark."""

import io
import re
from collections.abc import Iterable
from importlib.resources import files
from typing import Any

from gpt_pjit.core.errors import ConfigError
from gpt_pjit.pages.blocks import Block
from gpt_pjit.pages.pictures import INK, LINE, PALETTE

# What the style sheet sets in place of the colours of the light scheme.
COLORS = {INK: "currentColor", LINE: "var(--line)"}
COLORS |= {color: f"var(--c{place})" for place, color in enumerate(PALETTE)}


def page(title: str, blocks: Iterable[Block], reload_seconds: int = 0) -> str:
    """The HTML text; raises ConfigError where jinja2 or matplotlib is not installed."""
    check_installed("--html")
    import jinja2

    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = files("gpt_pjit.pages").joinpath("page.html.j2").read_text(encoding="utf-8")
    return environment.from_string(text).render(
        title=title,
        blocks=list(blocks),
        reload_seconds=reload_seconds,
        svg=svg,
        light={"ink": INK, "line": LINE}
        | {f"c{place}": color for place, color in enumerate(PALETTE)},
    )


def check_installed(flag: str) -> None:
    """Raises ConfigError where what pages and pictures need is not installed."""
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        remedy = "pip install 'gpt_pjit[pages]', or in a checkout pip install -e '.[pages]'"
        raise ConfigError([f"pages need {error.name}: {remedy}"], flag) from None


def svg(figure: Any) -> str:
    """The figure as an element of a page, whose style sheet sets the colours."""
    import matplotlib

    buffer = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "gpt_pjit"}
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format="svg", transparent=True)
    text = "<svg" + buffer.getvalue().partition("<svg")[2]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every picture of a page
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r" font-family: [^;]*;", "", text)
    for drawn, shown in COLORS.items():
        text = text.replace(drawn, shown)
    return text


def png(figure: Any) -> bytes:
    """The figure in light colours, at twice the size that it has on a page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=192, facecolor="white")
    return buffer.getvalue()
