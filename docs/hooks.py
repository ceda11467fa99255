"""A mkdocs hook that converts formulas to MathML, which browsers draw without a script or a network."""

import re

from latex2mathml import converter

_BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"\$`([^`\n]+)`\$")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Returns the page with its formulas, in GitHub's notation, as MathML."""
    markdown = _BLOCK.sub(lambda match: f"<div>{converter.convert(match[1], display='block')}</div>", markdown)
    # In a span, since <math> at the beginning of a line would end the paragraph.
    return _INLINE.sub(lambda match: f"<span>{converter.convert(match[1])}</span>", markdown)
