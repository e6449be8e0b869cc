"""``llava-native create``, ``list``, ``cp`` and ``rm``: named models."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from llava_native.cli.options import complain, visible

__all__ = ["cp", "create", "list_models", "rm"]


@click.command()
@click.argument("name")
@click.option("-f", "--file", "modelfile", default="Modelfile", show_default=True, type=click.Path())
def create(name: str, modelfile: str) -> None:
    """Give a NAME to the model that an Ollama Modelfile describes.

    The model's files are referred to where they lie, not copied. A model of that name is replaced.
    """
    from llava_native import store

    made, warnings = store.create(name, modelfile)
    for warning in warnings:
        complain(warning)
    print(f"created {made.name}: {made.model.path}", file=sys.stderr)
    if made.mmproj is None:
        print("it has no image encoder: add a FROM line with its mmproj to ask about images", file=sys.stderr)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="As a JSON array.")
def list_models(as_json: bool) -> int:
    """List the models that have a name."""
    from llava_native import store
    from llava_native.errors import ModelNotFoundError, StoreError

    rows: list[dict[str, Any]] = []
    failures = 0
    for name in store.names():
        try:
            found = store.find(name)
        except ModelNotFoundError:  # removed meanwhile
            continue
        except StoreError as exc:
            complain(exc)
            failures += 1
            continue
        mmproj = found.mmproj.path if found.mmproj else None
        row: dict[str, Any] = {"name": name, "size": found.size, "created": found.created}
        rows.append({**row, "model": found.model.path, "mmproj": mmproj})
    if as_json:
        print(json.dumps(rows, indent=2))
    elif rows:
        width = max(len(str(row["name"])) for row in rows)
        for row in rows:
            size, when = _size(row["size"]), row["created"][:10]
            print(visible(f"{row['name']:<{width}}  {size:>8}  {when}  {row['model']}"))
    else:
        print("no model has a name yet: llava-native create NAME -f MODELFILE", file=sys.stderr)
    return 1 if failures else 0


@click.command()
@click.argument("name")
@click.argument("new")
def cp(name: str, new: str) -> None:
    """Give the model NAME a second name, NEW."""
    from llava_native import store

    store.copy(name, new)


@click.command()
@click.argument("names", nargs=-1, required=True)
def rm(names: tuple[str, ...]) -> int:
    """Forget NAMES. The models' files stay where they are."""
    from llava_native import store
    from llava_native.errors import InvalidInputError, ModelNotFoundError

    failures = 0
    for name in names:
        try:
            store.remove(name)
        except (InvalidInputError, ModelNotFoundError) as exc:
            complain(exc)
            failures += 1
    return 1 if failures else 0


def _size(n_bytes: int) -> str:
    size = float(n_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
