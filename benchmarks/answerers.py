"""Who answers in `bench_engine.py`: llava_native, a llama-server, a llama-cpp-python."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import math
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import harness

WORKER = Path(__file__).with_name("llama_cpp_worker.py")


class Side(Protocol):
    """Whoever answers."""

    def ask(self, picture: bytes, question: str, n: int) -> Iterator[float]:
        """Yield the moment of each token's arrival."""

    def close(self) -> None:
        """End it."""


class Ours:
    """llava_native, in this process."""

    def __init__(self, files: dict[str, Path], threads: int) -> None:
        from llava_native import Llava

        self._llava = Llava(files["text"], files["mmproj"], n_ctx=4096, n_threads=threads)
        model = self._llava.model
        self._never = {t: -math.inf for t in range(model.n_vocab) if model.is_eog(t)}

    def ask(self, picture: bytes, question: str, n: int) -> Iterator[float]:
        """Yield the moment of each token's arrival."""
        options: dict[str, Any] = {"max_tokens": n, "temperature": 0, "logit_bias": self._never}
        with self._llava.stream(question, image=picture, **options) as stream:
            for _ in stream:
                yield time.perf_counter()

    def close(self) -> None:
        """Free the models."""
        self._llava.close()


class Server:
    """A llama-server of its own."""

    def __init__(self, tool: Path, files: dict[str, Path], threads: int, flags: Sequence[str]) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        pair = ["-m", files["text"], "--mmproj", files["mmproj"]]
        command = [tool, *pair, "-np", 4, "-c", 16384, "-t", threads, "--port", self._port, *flags]
        self._process = subprocess.Popen(
            [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 300
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.close()
                raise harness.BenchError("llama-server did not start")
            time.sleep(0.5)

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def ask(self, picture: bytes, question: str, n: int) -> Iterator[float]:
        """Yield the moment of each token's arrival."""
        url = "data:image/png;base64," + base64.b64encode(picture).decode()
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ]
        body = {
            "messages": [{"role": "user", "content": content}], "max_tokens": n, "temperature": 0,
            "ignore_eos": True, "stream": True, "cache_prompt": True,
        }  # fmt: skip
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=900)
        kind = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), kind)
        with connection.getresponse() as response:
            if response.status != 200:
                raise harness.BenchError(f"llama-server says {response.status}: {response.read(500)!r}")
            for line in response:
                if line.startswith(b"data: {") and json.loads(line[6:])["choices"]:
                    delta = json.loads(line[6:])["choices"][0]["delta"]
                    if "role" not in delta and delta:
                        yield time.perf_counter()
        connection.close()

    def close(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()


class LlamaCppPython:
    """llama-cpp-python in a process, and with a Python, of its own; it answers one caller at a time."""

    def __init__(self, python: Path, files: dict[str, Path], threads: int) -> None:
        command = [python, WORKER, files["text"], files["mmproj"], threads]
        self._process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._expect("ready")

    def _expect(self, *words: str) -> str:
        """Read a line of the worker's."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line not in words:
            self.close()
            raise harness.BenchError(f"llama-cpp-python said {line!r} instead of {' or '.join(words)}")
        return line

    def ask(self, picture: bytes, question: str, n: int) -> Iterator[float]:
        """Yield the moment of each token's arrival."""
        assert self._process.stdin is not None
        asked = {"picture": base64.b64encode(picture).decode(), "question": question, "n": n}
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        while self._expect("token", "end") == "token":
            yield time.perf_counter()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
