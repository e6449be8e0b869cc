"""``data:`` URLs (RFC 2397): images inside messages."""

from __future__ import annotations

import binascii
import time
from typing import Any, Final, TypeGuard

from llava_native.errors import ImageDecodeError, ImageTooLargeError

__all__ = ["MAX_BYTES", "decode_data_url", "is_data_url"]

MAX_BYTES: Final = 32 * 2**20
_QUANTUM: Final = 1 << 17  # characters of base64 that are decoded before other threads have their turn
_SHOWN: Final = 40  # characters of a URL in a message


def is_data_url(image: Any) -> TypeGuard[str]:
    """Tell whether this is a ``data:`` URL, and not a path or an image."""
    return isinstance(image, str) and image[:5].lower() == "data:"


def decode_data_url(url: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the bytes in a ``data:`` URL; white space and missing padding are forgiven.

    Parameters
    ----------
    url : str
    max_bytes : int
        Refuse more. Default 32 MiB.

    Raises
    ------
    ImageDecodeError
        It holds nothing, or its base64 is damaged.
    ImageTooLargeError
        More than `max_bytes`.
    """
    from urllib.parse import unquote_to_bytes

    shown = url if len(url) <= _SHOWN else url[:_SHOWN] + "…"
    head, comma, body = url[5:].partition(",")
    if not comma:
        raise ImageDecodeError(f"the data URL {shown} has no comma before its data")
    if len(body) > 4 * max_bytes:  # before anything is copied; %XX takes three characters a byte
        raise ImageTooLargeError(f"the data URL holds more than the {max_bytes} bytes that are allowed")
    data = unquote_to_bytes(body)
    if head.lower().rstrip().endswith(";base64"):
        try:
            data = _decode_base64(data)
        except binascii.Error as exc:
            raise ImageDecodeError(f"the data URL {shown} holds no valid base64: {exc}") from exc
    if len(data) > max_bytes:
        raise ImageTooLargeError(f"the data URL holds {len(data)} bytes; {max_bytes} are allowed")
    if not data:
        raise ImageDecodeError(f"the data URL {shown} holds no data")
    return data


def _decode_base64(text: bytes) -> bytes:
    """Decode base64 of either alphabet, a part at a time: a photograph would hold the GIL for 15 ms."""
    packed = b"".join(text.split()).replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    packed += b"=" * (-len(packed) % 4)
    data = bytearray()
    for start in range(0, len(packed), _QUANTUM):
        data += binascii.a2b_base64(packed[start : start + _QUANTUM], strict_mode=True)
        time.sleep(0)
    return bytes(data)
