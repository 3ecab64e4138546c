"""The status page: one file of HTML with its style and its script in it, and leave for nothing else."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from opara_server.observe.exposition import Content


def status_page() -> Content:
    """It asks for /metrics, /status.json and /bucket.json, and shows what it is told as text, never as HTML."""
    folder = resources.files(__name__)
    style, script = (folder.joinpath(name).read_text() for name in ("page.css", "page.js"))
    page = folder.joinpath("page.html").read_text().replace("/* style */", style).replace("/* script */", script)
    policy = (
        f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    )
    return Content("text/html; charset=utf-8", page.encode(), (("Content-Security-Policy", policy),))


def _digest(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
