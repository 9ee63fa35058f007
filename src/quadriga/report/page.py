"""The frame of a report: one HTML file with its style and script inside, without any request."""

from __future__ import annotations

from html import escape
from importlib import resources


def page(title: str, body: str) -> str:
    """Return a whole page.

    Args:
        title: Title, as plain text.
        body: Content, as HTML.
    """
    package = resources.files("quadriga.report")
    style = package.joinpath("page.css").read_text(encoding="utf-8")
    script = package.joinpath("page.js").read_text(encoding="utf-8")
    # The policy forbids every request: the page consists of this file alone.
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style></head><body><main>
{body}
</main>
<script>
{script}</script></body></html>
"""
