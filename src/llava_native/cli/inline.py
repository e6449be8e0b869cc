"""Find the images that a prompt names, as in "photo.png What is this?"."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

__all__ = ["split_images"]

_ENDINGS = r"(?:jpe?g|png|webp|gif|bmp|tiff?|p[bgp]m|jp2|avif)"
_QUOTED = re.compile(
    rf"""(?<!\S)(["'])(?P<path>(?:(?!\1)[^\n])*\.{_ENDINGS})\1(?=\s|[,;:.!?)]|$)""", re.IGNORECASE
)
_BARE = re.compile(rf"\.{_ENDINGS}(?![\w/\\-]|\.\w)", re.IGNORECASE)
_END = re.compile(r"\s|[,;:.!?)]+(?:\s|$)|$")  # behind a name that is surely meant as one
_OPENING = "([{<\"'“‘„«‹"  # noqa: RUF001
_URL = re.compile(rf"(?<!\S)https?://\S+?\.{_ENDINGS}(?:[?#]\S*)?(?=\s|$)", re.IGNORECASE)
_WORD = re.compile(r"(?<!\S)(?=\S)")
_MAX_WORDS = 32  # of a path with spaces that is not quoted


def split_images(prompt: str) -> tuple[str, list[str]]:
    """Take the names of images out of a prompt.

    Parameters
    ----------
    prompt : str
        A name ends like an image's file. With spaces in it, it may be quoted, have a backslash before each
        space, or stand as it is where such a file exists. A URL that ends so is one too.

    Returns
    -------
    str
        The rest of the prompt.
    list of str
        Paths and URLs, in their order.

    Raises
    ------
    FileNotFoundError
        A word looks like the name of an image, and there is no such file.
    """
    found = sorted(_matches(prompt))
    rest, at = [], 0
    for start, end, _ in found:
        rest.append(prompt[at:start].strip())
        at = end
    rest.append(prompt[at:].strip())
    return " ".join(part for part in rest if part), [name for _, _, name in found]


def _matches(prompt: str) -> Iterator[tuple[int, int, str]]:
    """Give (start, end, name) of each image."""
    taken: list[tuple[int, int]] = []
    for match in _URL.finditer(prompt):
        taken.append(match.span())
        yield *match.span(), match.group()
    for match in _QUOTED.finditer(prompt):
        if any(start <= match.start() < end for start, end in taken):
            continue
        taken.append(match.span())
        yield *match.span(), _existing(match["path"]) or _missing(match["path"])
    for match in _BARE.finditer(prompt):
        end = match.end()
        if not prompt[: match.start()][-1:].strip():  # ".png" by itself, as in "the .png format"
            continue
        if any(start < end <= stop for start, stop in taken):
            continue
        least = max((stop for _, stop in taken if stop <= end), default=0)
        bare = _bare(prompt, least, end)
        if bare is not None:
            taken.append((bare[0], end))
            yield bare[0], end, bare[1]


def _bare(prompt: str, least: int, end: int) -> tuple[int, str] | None:
    """Return where a name without quotes begins, and the file: the longest that exists."""
    starts = [match.start() for match in _WORD.finditer(prompt, least, end)][-_MAX_WORDS:]
    for start in starts:
        for at in (start, start + 1) if prompt[start] in _OPENING else (start,):
            found = _existing(prompt[at:end])
            if found is not None:
                return at, found
    if not _END.match(prompt, end):
        return None
    # none exists: a name is one word, spaces after a backslash included
    words = (start for start in reversed(starts) if not prompt[:start].endswith("\\ "))
    for start in words:
        if prompt[start] != "." or "/" in prompt[start:end]:  # not "the .png format"
            _missing(prompt[start:end])
        break
    return None


def _existing(name: str) -> str | None:
    """Return the path of the file that a name means."""
    for path in (name, re.sub(r"\\(.)", r"\1", name)):
        try:
            expanded = Path(path).expanduser()
            if expanded.is_file():
                return str(expanded)
        except (OSError, ValueError, RuntimeError):  # too long, or with a NUL: no name
            continue
    return None


def _missing(name: str) -> NoReturn:
    what = "there is no such image (--text takes a prompt as words only)"
    raise FileNotFoundError(errno.ENOENT, what, name)
