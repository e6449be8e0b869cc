"""``llava-native pull``: fetch a model from the Hugging Face hub and give it a name."""

from __future__ import annotations

import sys
from pathlib import Path

import click

__all__ = ["pull"]


@click.command()
@click.argument("repo")
@click.argument("files", nargs=-1)
@click.option("--quant", help='Which of several text models: "int4", "f16", "Q4_K_M".')
@click.option("--mmproj", help="The image encoder's file or pattern; default: the one of the repository.")
@click.option("--no-mmproj", is_flag=True, help="Only the text model.")
@click.option("--name", help="The name that `run` takes; default: that of the text model's file.")
@click.option("--revision", help="Branch, tag or commit.")
@click.option("--cache-dir", type=click.Path(), help="Instead of the hub's own cache.")
@click.option("--token", envvar="HF_TOKEN", help="For private repositories; default $HF_TOKEN.")
@click.option("--offline", is_flag=True, help="Use what is in the cache.")
def pull(
    repo: str,
    files: tuple[str, ...],
    quant: str | None,
    mmproj: str | None,
    no_mmproj: bool,
    name: str | None,
    revision: str | None,
    cache_dir: str | None,
    token: str | None,
    offline: bool,
) -> None:
    """Fetch a text model and its image encoder from the repository REPO of the Hugging Face hub.

    FILES are the text model and the encoder, or patterns such as "*int4.gguf"; without them the encoder is
    found by itself. Their paths go to stdout.
    """
    from llava_native import hub, store

    if len(files) > 2:
        raise click.UsageError("FILES are one text model and one image encoder")
    if mmproj is not None and (no_mmproj or len(files) > 1):
        raise click.UsageError("the image encoder is given twice")
    filename, encoder = (*files, None, None)[:2]
    name = store.normalise(name) if name is not None else None  # before anything is fetched
    found = hub.download(
        repo,
        filename,
        False if no_mmproj else mmproj or encoder,
        quant=quant,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        offline=offline,
    )
    for path in found:
        if path is not None:
            print(path)
    if name is None:
        name = _name(found.model)
        if name in store.names():
            if Path(before := store.find(name).model.path) != found.model.absolute():
                raise click.ClickException(
                    f"the name {name} is that of {before}: give another one with --name"
                )
            print(f"llava-native: {name} has a name already, and keeps what it was", file=sys.stderr)
            return
    store.register(name, found.model, found.mmproj)
    print(f'ask it: llava-native run {name} "photo.png What is this?"', file=sys.stderr)


def _name(path: Path) -> str:
    """Return the name that a file suggests."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in path.stem)
    return plain.lower().strip("._-") or "model"
