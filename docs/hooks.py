"""What mkdocs does beside its plugins: formulas become MathML, which browsers draw without a script or a network."""

import pathlib
import re
from typing import Any

from latex2mathml import converter

_BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$`([^`\n]+)`\$")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Replaces formulas, written as GitHub reads them."""
    markdown = _BLOCK.sub(lambda match: f"<div>{converter.convert(match[1], display='block')}</div>", markdown)
    # In a span, for at the beginning of a line <math> alone would end the paragraph.
    return _INLINE.sub(lambda match: f"<span>{converter.convert(match[1])}</span>", markdown)


def on_config(config: Any) -> Any:
    """Leaves out of the menu the pages that are still to come."""
    config.nav = _there(config.nav, pathlib.Path(config.docs_dir))
    return config


def _there(entry, folder):
    if isinstance(entry, list):
        return [kept for kept in (_there(part, folder) for part in entry) if kept]
    if isinstance(entry, dict):
        return {name: kept for name, below in entry.items() if (kept := _there(below, folder))}
    return entry if (folder / entry).exists() else None
