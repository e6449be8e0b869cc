"""``data:`` URLs (RFC 2397): images inside messages."""

from __future__ import annotations

import binascii
import io
import time
from collections.abc import Iterator
from typing import Final

from llava_native.errors import ImageDecodeError, ImageTooLargeError
from llava_native.urls import shown

__all__ = ["MAX_BYTES", "check_data_url", "decode_data_url"]

MAX_BYTES: Final = 32 * 2**20
_QUANTUM: Final = 1 << 16  # characters that are decoded before other threads have their turn
_SHOWN: Final = 40  # characters of a URL in a message
_PLAIN: Final = bytes.maketrans(b"-_", b"+/")  # from base64's alphabet for URLs
_SPACE: Final = b" \t\n\v\f\r"


def check_data_url(url: str, max_bytes: int = MAX_BYTES) -> int:
    """Return where the data of a ``data:`` URL begins; nothing is decoded.

    Raises
    ------
    ImageDecodeError
        It holds nothing.
    ImageTooLargeError
        It is longer than `max_bytes` of data can be.
    """
    start = url.find(",", 5) + 1
    if not start:
        raise ImageDecodeError(f"the data URL {shown(url, _SHOWN)} has no comma before its data")
    if start == len(url):
        raise ImageDecodeError(f"the data URL {shown(url, _SHOWN)} holds no data")
    if len(url) - start > 4 * max_bytes:  # %XX takes three characters a byte
        raise ImageTooLargeError(f"the data URL holds more than the {max_bytes} bytes that are allowed")
    return start


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

    Notes
    -----
    Decoded a part at a time: whole, a photograph would hold the GIL for 15 ms and more.
    """
    start = check_data_url(url, max_bytes)
    parts = _unquoted(url, start)
    if url[max(5, start - 64) : start - 1].lower().rstrip().endswith(";base64"):
        parts = _decoded(parts)
    data = io.BytesIO()
    try:
        for part in parts:
            if data.tell() + len(part) > max_bytes:
                raise ImageTooLargeError(
                    f"the data URL holds more than the {max_bytes} bytes that are allowed"
                )
            data.write(part)
            time.sleep(0)
    except binascii.Error as exc:
        raise ImageDecodeError(f"the data URL {shown(url, _SHOWN)} holds no valid base64: {exc}") from exc
    except UnicodeEncodeError:  # it holds the whole URL
        raise ImageDecodeError(f"the data URL {shown(url, _SHOWN)} holds what is no character") from None
    if not data.tell():
        raise ImageDecodeError(f"the data URL {shown(url, _SHOWN)} holds no data")
    return data.getvalue()


def _unquoted(url: str, start: int) -> Iterator[bytes]:
    """Give the bytes that characters and %XX stand for."""
    from urllib.parse import unquote_to_bytes

    cut = ""  # a %XX that goes on in the next part
    for at in range(start, len(url), _QUANTUM):
        part = cut + url[at : at + _QUANTUM]
        end = part.rfind("%", max(0, len(part) - 2))
        cut = part[end:] if end >= 0 and at + _QUANTUM < len(url) else ""
        yield unquote_to_bytes(part[: len(part) - len(cut)])


def _decoded(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Decode base64 of either alphabet."""
    rest, is_padded = b"", False
    for part in parts:
        text, padding, after = part.translate(_PLAIN, _SPACE).partition(b"=")
        if (is_padded and text) or after.strip(b"="):
            raise binascii.Error("there is more after its padding")
        is_padded = is_padded or bool(padding)
        text = rest + text
        n = len(text) // 4 * 4
        rest = text[n:]
        yield binascii.a2b_base64(text[:n], strict_mode=True)
    if rest:
        yield binascii.a2b_base64(rest + b"=" * (4 - len(rest)), strict_mode=True)
