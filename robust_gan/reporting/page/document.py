"""The HTML document: styles in light and dark, and navigation; without external resources."""

import html
import re
from collections.abc import Sequence

_LIGHT = ("#0b65c2", "#c8384e", "#23863f", "#7d4cc9", "#c06a0b", "#12808f", "#a63a86", "#5d6672", "#6f7f14", "#8f5330")
_DARK = ("#5aa9ff", "#ff7b86", "#57c878", "#b794ff", "#f2a854", "#4cc6d6", "#ea85cb", "#a3adba", "#b9c94e", "#d59a73")


def _theme(colours: Sequence[str], **others: str) -> str:
    named = {f"c{index}": colour for index, colour in enumerate(colours)} | others
    return "".join(f"--{name}:{value};" for name, value in named.items())


_STYLE = (
    ":root{color-scheme:light dark;"
    + _theme(
        _LIGHT,
        paper="#fff",
        card="#fff",
        ground="#f5f6f8",
        ink="#1c2128",
        soft="#59636e",
        rule="#dfe3e8",
        heat="#2f7fd1",
        wrong="#d2453f",
        warn="#fff6e0",
        edge="#e3b341",
    )
    + "}@media(prefers-color-scheme:dark){:root{"
    + _theme(
        _DARK,
        paper="#161b22",
        card="#161b22",
        ground="#0d1117",
        ink="#e6edf3",
        soft="#9aa5b1",
        rule="#2d343d",
        heat="#3b82d6",
        wrong="#d9534f",
        warn="#2a2210",
        edge="#8a6a1f",
    )
    + """}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
header,main{max-width:1240px;margin:0 auto;padding:0 24px}
header{padding-top:36px}
h1{font-size:28px;letter-spacing:-.01em;margin:0 0 4px}
h2{font-size:21px;margin:44px 0 10px;padding-top:20px;border-top:1px solid var(--rule)}
h3{font-size:16px;margin:28px 0 6px}
p{margin:6px 0;max-width:110ch}
header p,.quiet,.note{color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:8px;margin:16px 0 0;padding:0;list-style:none}
nav a{color:var(--ink);text-decoration:none;border:1px solid var(--rule);border-radius:99px;padding:3px 12px;
 background:var(--card);font-size:13px}
nav a:hover,nav a:focus-visible{border-color:var(--c0)}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(460px,100%),1fr));gap:18px;margin:16px 0}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:14px 16px;min-width:0}
figure.wide{margin:16px 0;width:fit-content;max-width:100%}
figcaption{font-weight:600;font-size:14px;margin-bottom:8px}
.note{font-size:12.5px;margin:8px 0 0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:13px}
.plain{background:var(--card);border:1px solid var(--rule);margin:12px 0;min-width:60%}
.plain th,.plain td{text-align:left;padding:6px 12px;border-bottom:1px solid var(--rule);white-space:nowrap}
.plain th{color:var(--soft);font-weight:600}
.plain .number{text-align:right}
.heat th{font-weight:500;color:var(--soft);padding:4px 8px;text-align:right;white-space:nowrap}
.heat thead th{text-align:center;vertical-align:bottom;white-space:normal;max-width:150px;
 min-width:34px}
.heat .corner{text-align:right;font-size:11.5px;font-weight:400}
.heat td{padding:6px 8px;min-width:40px;text-align:center;border:2px solid var(--card);border-radius:6px;
 background:color-mix(in oklab,var(--heat) var(--v,0%),var(--ground))}
.heat td.wrong{background:color-mix(in oklab,var(--wrong) var(--v,0%),var(--ground))}
.heat td.high{color:#fff}
.heat small{display:block;font-size:10.5px;opacity:.8;white-space:nowrap}
.heat td.own{outline:2px solid var(--ink);outline-offset:-3px}
.film th{color:var(--soft);font-weight:500;padding:2px 4px;text-align:center}
.film td{padding:3px 4px;text-align:center;vertical-align:top}
.film span{display:block;font-size:12px;line-height:1.3}
.right{color:var(--c2)}.film .wrong{color:var(--c1)}
.px{image-rendering:pixelated;display:block;margin:0 auto;border-radius:3px}
.chart{width:100%;height:auto;display:block}
.chart text{fill:var(--soft);font-size:12px;font-variant-numeric:tabular-nums}
.chart .title{font-size:12.5px}.chart .name{fill:var(--ink)}
.grid{stroke:var(--rule);fill:none}.axis,.tick{stroke:var(--soft);fill:none}
.mark{stroke:var(--soft);stroke-dasharray:3 4;fill:none}
.span{stroke:var(--rule);stroke-width:3;fill:none}
.line{stroke:var(--c);stroke-width:2;fill:none;stroke-linejoin:round}
.series circle,.key circle,.dots circle{fill:var(--c)}
.dots circle{stroke:var(--card);stroke-width:1.5}.dots .single{opacity:.45;stroke:none}
.dots .error{stroke:var(--c);stroke-width:2;opacity:.55;fill:none}
.dots .ring{fill:none;stroke:var(--c);stroke-width:2.5}
.band{fill:var(--c);opacity:.15;stroke:none}
.series:hover .line{stroke-width:4}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;margin:8px 0 0;padding:0;font-size:13px}
.legend li{display:flex;align-items:center;gap:6px}
.key{width:22px;height:8px}
.alarms{background:var(--warn);border:1px solid var(--edge);border-radius:10px;padding:8px 16px;margin:12px 0}
.alarms ul{margin:4px 0;padding-left:20px}
footer{max-width:1240px;margin:0 auto;padding:32px 24px;color:var(--soft);font-size:13px}
@media print{body{background:none}figure{break-inside:avoid}}
"""
)


def compose(title: str, lead: str, sections: Sequence[tuple[str, str]], footer: str) -> str:
    """Returns the whole document.

    Args:
        title: Of the page.
        lead: A line below it.
        sections: Heading and content each; those without content are left out.
        footer: A line at the end.

    >>> document = compose("Report", "Of a run.", [("Runs", "<p>one</p>"), ("Nothing", "")], "")
    >>> document.count("<section"), "://" in document
    (1, False)
    """
    kept = [(f"s{index}-{_plain(name)}", name, content) for index, (name, content) in enumerate(sections) if content]
    links = "".join(f'<a href="#{key}">{html.escape(name)}</a>' for key, name, _ in kept)
    body = "".join(
        f'<section id="{key}"><h2>{html.escape(name)}</h2>{content}</section>' for key, name, content in kept
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<header><h1>{html.escape(title)}</h1><p>{html.escape(lead)}</p><nav>{links}</nav></header>"
        f"<main>{body}</main><footer>{html.escape(footer)}</footer></body></html>\n"
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
