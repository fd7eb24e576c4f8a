"""The reading room: a page of plain files, which asks this server alone and loads nothing from elsewhere."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from mamba_ssm.server.problems import Problem

router = APIRouter(include_in_schema=False)
PAGE = Path(__file__).with_name("page")
# By suffix, for what a system's own table says of .js may be wrong.
KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    # A book's text must never become markup: with this a browser refuses innerHTML and its like altogether.
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@router.get("/")
async def page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE / "index.html", media_type="text/html", headers=HEADERS)


@router.get("/room/{name}")
async def part(name: str) -> FileResponse:
    """Its scripts, its styles and its icon."""
    path = PAGE / name
    if path.parent != PAGE or path.suffix not in KINDS or not path.is_file():
        raise Problem(404, f"the page has no {name!r}")
    return FileResponse(path, media_type=KINDS[path.suffix], headers=HEADERS)
