"""The frame of a page: one HTML file with its style and its script inside, and nothing fetched from anywhere."""

from __future__ import annotations

import functools
from importlib import resources

from xpnet.report.text import escape


@functools.cache
def _part(name: str) -> str:
    return resources.files("xpnet.report").joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str) -> str:
    """A whole HTML document."""
    # The policy makes sure of it: a browser refuses to fetch anything for this page.
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
    """A part of the page with a heading; nothing where there is no content."""
    if not content:
        return ""
    below = f'<p class="note">{note}</p>' if note else ""
    return f'<section class="{kind}"><h2>{escape(title)}</h2>{below}{content}</section>\n'


def table(head: str, body: str, kind: str = "plain") -> str:
    """A table that scrolls by itself where it is wider than the page. Head: the cells of one row; body: rows."""
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
