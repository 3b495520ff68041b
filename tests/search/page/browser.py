"""Names and skips that the tests of the page share."""

import pytest

HOSTILE = ("<img src=x onerror=alert(1)>.mp4", "two\nlines.mp4", "%2e%2e%2fetc.mp4", "a & b \"c\" 'd'?x=1#y.mp4")
NEEDS = "the page needs fastapi, and its tests httpx2: pip install -r requirements-dev.txt"


def skip_without_page() -> None:
    """Skip a module of tests where the libraries of the page are not installed."""
    for package in ("fastapi", "uvicorn", "httpx2"):
        pytest.importorskip(package, reason=NEEDS)
