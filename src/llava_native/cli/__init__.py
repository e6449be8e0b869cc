"""The command line: one file a command. Replies go to stdout, everything else to stderr."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

import click

from llava_native.cli.chat import chat
from llava_native.cli.describe import describe
from llava_native.cli.devices import devices
from llava_native.cli.encode import encode
from llava_native.cli.llava_cli import llava_cli
from llava_native.cli.models import cp, create, list_models, rm
from llava_native.cli.options import complain
from llava_native.cli.pull import pull
from llava_native.cli.run import run
from llava_native.cli.show import show
from llava_native.errors import LlavaError

__all__ = ["main", "main_llava_cli"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llava-native")
def cli() -> None:
    """Ask a LLaVA model about pictures, in this process."""


for command in (chat, cp, create, describe, devices, encode, list_models, pull, rm, run, show):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 1 failure, 2 usage, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of this process.
    """
    return _run(cli, "llava-native", arguments)


def main_llava_cli(arguments: Sequence[str] | None = None) -> int:
    """Run ``llava-cli`` and return its exit status, as `main` does."""
    return _run(llava_cli, "llava-cli", arguments)


def _run(program: click.Command, name: str, arguments: Sequence[str] | None) -> int:
    _prepare_streams()
    try:
        status = program.main(arguments, prog_name=name, standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        print(f"\n{name}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output is gone; keep the interpreter from complaining about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LlavaError, OSError, MemoryError, UnicodeError, ImportError) as exc:
        complain(str(exc) or type(exc).__name__, name)
        return 1
    return status if isinstance(status, int) else 0


def _prepare_streams() -> None:
    """Take and write names of files as the bytes that they are; a stream that was closed takes everything."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # else a message for stderr would go to stdout
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape" if name == "stdout" else "backslashreplace")
