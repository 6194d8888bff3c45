"""The frame of a page: one self-contained HTML file, with its style and script."""

from __future__ import annotations

import functools
from importlib import resources

from xpnet.report.text import escape


@functools.cache
def _part(name: str) -> str:
    return resources.files("xpnet.report").joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str) -> str:
    """Return a whole HTML document."""
    # With this policy a browser fetches nothing for the page.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_part('style.css')}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n<script>\n{_part('script.js')}</script>\n</body>\n</html>\n"
    )


def section(title: str, content: str, note: str = "", kind: str = "") -> str:
    """Return a section with a heading; "" if there is no content."""
    if not content:
        return ""
    below = f'<p class="note">{note}</p>' if note else ""
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{below}{content}</section>\n'


def table(head: str, body: str, kind: str = "plain") -> str:
    """Return a table that scrolls on its own if it is wider than the page; `head` holds the cells of one row, `body` rows."""
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
