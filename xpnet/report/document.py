"""The frame of a page: one self-contained HTML file, with its style and script."""

from __future__ import annotations

import base64
import hashlib

from xpnet.report.text import Markup, html, part

# With this policy a browser fetches nothing for the page, and runs no script but the page's own.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def document(title: str, body: str) -> Markup:
    """Return a whole HTML document."""
    script = html("\n{}", part("script.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return html(_PAGE, digest=digest, title=title, style=part("style.css"), body=body, script=script)


def section(title: str, content: str, note: str = "", kind: str = "") -> Markup:
    """Return a section with a heading; "" if there is no content."""
    if not content:
        return html("")
    below = html('<p class="note">{}</p>', note) if note else ""
    return html('<section class="{}"><h2>{}</h2>{}{}</section>\n', kind, title, below, content)


def table(head: str, body: str, kind: str = "plain") -> Markup:
    """Return a table that scrolls on its own if it is wider than the page; `head` holds the cells of one row, `body` rows."""
    return html(
        '<div class="wide"><table class="{}"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>', kind, head, body
    )
