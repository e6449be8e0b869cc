"""URLs: which texts are some, which of them can be asked for an image, and how messages show them."""

from __future__ import annotations

from typing import Any, Final, TypeGuard
from urllib.parse import SplitResult, urlsplit

from llava_native.errors import InvalidInputError

__all__ = ["PORTS", "is_data_url", "is_web_url", "shown", "split_url"]

PORTS: Final = {"http": 80, "https": 443}
_SHOWN: Final = 200


def is_data_url(image: Any) -> TypeGuard[str]:
    """Tell whether this is a ``data:`` URL, and not a path or an image."""
    return isinstance(image, str) and image[:5].lower() == "data:"


def is_web_url(image: Any) -> TypeGuard[str]:
    """Tell whether this is a URL of http or https, and not a path or an image."""
    return isinstance(image, str) and image[:8].lower().startswith(("http://", "https://"))


def split_url(url: str) -> SplitResult:
    """Return the parts of a URL of http or https that can be asked for; nothing is sent.

    Raises
    ------
    InvalidInputError
        It is none, or holds a password.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise InvalidInputError(f"{shown(url)} is not a valid URL: {exc}") from exc
    if parts.scheme not in PORTS:
        raise InvalidInputError(f"{shown(url)} is not a URL of http, https or data")
    if not host:
        raise InvalidInputError(f"{shown(url)} names no host")
    if "@" in parts.netloc:
        raise InvalidInputError(f"the URL of {host} holds a user name or password, which is not sent")
    return parts


def shown(url: str, n: int = _SHOWN) -> str:
    """Return the first `n` characters of a URL, for a message."""
    return url if len(url) <= n else url[:n] + "…"
