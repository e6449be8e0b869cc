"""Answers about many pictures, one line of JSON each, in a file that a second run goes on with."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_native.cli.options import complain
from llava_native.writing import named

if TYPE_CHECKING:
    from llava_native.bulk import MapItem
    from llava_native.llava import Llava

__all__ = ["describe_into", "left_to_do"]

_BEGIN = b'{"image": "'  # of each line


def left_to_do(images: Sequence[str], path: Path, resume: bool) -> list[str]:
    """Return the images that have no answer in the file yet; a line that was cut short is taken out.

    Raises
    ------
    click.UsageError
        The file exists, and nobody said that it is to be gone on with; or it holds something else.
    """
    if not path.exists() or not path.stat().st_size:
        return list(images)
    if not resume:
        raise click.UsageError(f"{path} exists: --resume goes on with it")
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    done = set()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            entry = json.loads(line)
            if entry.get("error") is None:  # what failed is tried again
                done.add(entry["image"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as exc:
            raise click.UsageError(f"{path}, line {number}, is no answer of this command") from exc
    if len(whole) < len(data):
        if data[len(whole) : len(whole) + len(_BEGIN)] != _BEGIN[: len(data) - len(whole)]:
            raise click.UsageError(f"{path} ends with something that is no answer of this command")
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return [image for image in images if image not in done]


def describe_into(
    llava: Llava, images: Sequence[str], prompt: str, path: Path, options: dict[str, Any]
) -> int:
    """Append an answer about each image, in the order in which they are done; return how many failed."""
    failures = 0
    bar = click.progressbar(length=len(images), label="describing", file=sys.stderr)
    with (
        named(path),
        path.open("a", encoding="utf-8") as file,
        llava.map(images, prompt, ordered=False, **options) as items,
        bar,
    ):
        for item in items:
            file.write(_line(item) + "\n")
            file.flush()  # a line that was counted stays, whatever happens next
            if item.error is not None:
                failures += 1
                bar.render_finish()
                complain(f"{item.image}: {item.error}")
            bar.update(1)
    return failures


def _line(item: MapItem) -> str:
    line = json.dumps(_entry(item), ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # a file's name may be any bytes
        return json.dumps(_entry(item))
    return line


def _entry(item: MapItem) -> dict[str, Any]:
    if item.result is None:
        return {"image": item.image, "text": None, "error": str(item.error) or type(item.error).__name__}
    result = item.result
    return {
        "image": item.image,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "completion_tokens": result.usage.completion_tokens,
    }
