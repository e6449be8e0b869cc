"""Runs cases of bad input in a child process, one after the other, and tells what became of each.

The child answers each case's name with one line of JSON. When it dies, the case that it died in is
known, and the next case gets a new child.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from . import damage

TIMEOUT_S = 120  # of one case, on a machine that has other things to do
ADDRESS_SPACE = 16 << 30  # so that a case that asks for a terabyte is refused everywhere alike


class Scene:
    """Good objects for a case to misuse; made when it asks for them, closed after it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: list[Any] = []

    def keep(self, thing: Any) -> Any:
        """Close `thing` after the case."""
        self._made.append(thing)
        return thing

    @property
    def text_path(self) -> Path:
        return self.folder / "text.gguf"

    @property
    def mmproj_path(self) -> Path:
        return self.folder / "mmproj.gguf"

    def load(self, **options: Any) -> Any:
        """Load another text model."""
        from llava_native import Model

        return self.keep(Model(self.text_path, **options))

    @cached_property
    def model(self) -> Any:
        return self.load()

    @cached_property
    def encoder(self) -> Any:
        from llava_native import ImageEncoder

        return self.keep(ImageEncoder(self.mmproj_path, n_threads=1))

    def context(self, **options: Any) -> Any:
        """Make a context of 64 tokens and two sequences, or otherwise."""
        from llava_native import Context

        return self.keep(Context(self.model, **{"n_ctx": 64, "n_seq_max": 2, "n_threads": 1} | options))

    @cached_property
    def ctx(self) -> Any:
        return self.context()

    @cached_property
    def llava(self) -> Any:
        from llava_native import Llava

        return self.keep(Llava(self.model, self.encoder, n_ctx=300, n_threads=1))

    def sampler(self, **params: Any) -> Any:
        """Make a sampler on `model`."""
        from llava_native import Sampler, SamplingParams

        return self.keep(Sampler(self.model, SamplingParams(**params)))

    def file(self, name: str, data: bytes) -> Path:
        """Write a file."""
        path = self.folder / name
        path.write_bytes(data)
        return path

    def close(self) -> None:
        """Close everything, the last first."""
        while self._made:
            self._made.pop().close()
        for name in ("model", "encoder", "ctx", "llava"):
            self.__dict__.pop(name, None)


@dataclass(frozen=True)
class Case:
    """Something that a user may do.

    Attributes
    ----------
    run : callable
        Does it, given a `Scene`.
    raises : type or None
        The exact exception; None where the input is odd but fine.
    says : str
        What the message contains.
    """

    name: str
    run: Callable[[Scene], Any]
    raises: type[BaseException] | None
    says: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a case: `died` is a signal's name, an exit status or a timeout."""

    raised: str | None = None
    message: str = ""
    left_alive: str = ""
    died: str | None = None


class Gauntlet:
    """A child process that runs the cases of a module, by their names.

    Parameters
    ----------
    module : str
        Whose `CASES` the child runs.
    folder : Path
        For the files of the cases.
    """

    def __init__(self, module: str, folder: Path) -> None:
        damage.good_text(folder / "text.gguf")
        damage.good_mmproj(folder / "mmproj.gguf")
        self._command = [sys.executable, "-m", "support.gauntlet", module, str(folder)]
        self._errors = folder / "stderr"
        self._child: subprocess.Popen[str] | None = None
        self.deaths = 0

    def __call__(self, name: str) -> Outcome:
        """Run one case."""
        if self._child is None:
            self._child = self._start()
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        watchdog = threading.Timer(TIMEOUT_S, child.kill)
        watchdog.start()
        try:
            child.stdin.write(json.dumps(name) + "\n")
            child.stdin.flush()
            line = child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        if line.endswith("\n"):
            try:
                return Outcome(**json.loads(line))
            except ValueError:
                return Outcome(died=f"it printed {line!r}")
        self._child = None
        self.deaths += 1
        with child:
            status = child.wait()
        reason = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return Outcome(died=f"{reason}\n{self._errors.read_text(errors='replace')[-2000:]}")

    def _start(self) -> subprocess.Popen[str]:
        tests = Path(__file__).parents[1]
        with self._errors.open("w") as errors:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": str(tests), "PYTHONFAULTHANDLER": "1"},
            )

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            with self._child as child:
                assert child.stdin is not None
                child.stdin.close()
                assert child.wait(TIMEOUT_S) == 0, self._errors.read_text()
            self._child = None


def _run(case: Case, folder: Path) -> Outcome:
    """Run a case in this process."""
    from llava_native import _native

    raised, message = None, ""
    before = _native.live_counts()  # a module of cases may hold rows of its own
    scene = Scene(folder)
    try:
        case.run(scene)
    except BaseException as exc:
        raised, message = f"{type(exc).__module__}.{type(exc).__qualname__}", str(exc)
    try:
        scene.close()
    except BaseException as exc:
        return Outcome(raised, message, f"close() raised {exc!r}")
    del scene
    gc.collect()
    left = {kind: n for kind, n in _native.live_counts().items() if n != before[kind]}
    return Outcome(raised, message[:2000], str(left or ""))


def _main(module: str, folder: str) -> None:
    import importlib
    import resource

    from llava_native import devices
    from llava_native.machine import gpus

    # the shadow of the memory alone is larger, and so are the addresses that a GPU's driver reserves
    if "libasan" not in os.environ.get("LD_PRELOAD", "") and not gpus(devices()):
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    cases = {case.name: case for case in importlib.import_module(module).CASES}
    for line in sys.stdin:
        outcome = _run(cases[json.loads(line)], Path(folder))
        print(json.dumps(vars(outcome)), flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
