"""The command line: one file a command. Replies go to stdout, everything else to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from llava_native.cli.describe import describe
from llava_native.cli.devices import devices
from llava_native.cli.encode import encode
from llava_native.errors import LlavaError

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llava-native")
def cli() -> None:
    """Ask a LLaVA model about pictures, in this process."""


for command in (describe, devices, encode):
    cli.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit status: 0, 1 failure, 2 usage, 130 interrupted.

    Parameters
    ----------
    arguments : sequence of str, optional
        Default: those of this process.
    """
    try:
        status = cli.main(arguments, prog_name="llava-native", standalone_mode=False)
    except click.ClickException as exc:
        exc.show()
        return exc.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("\nllava-native: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader of our output is gone; keep the interpreter from complaining about it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LlavaError, OSError, MemoryError, UnicodeError) as exc:
        print(f"llava-native: {exc or type(exc).__name__}", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0
