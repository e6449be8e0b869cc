"""Read Ollama's Modelfiles: what a model is made of, and how it is run.

The reader follows Ollama's own: instructions in any case, ``#`` at the start of a line is a comment, a value
goes to the end of its line, or from ``\"\"\"`` (or ``"``) to the same at the end of a line.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from llava_native.errors import LlavaError, ModelfileError
from llava_native.ollama import to_chat_template
from llava_native.params import SamplingParams

__all__ = ["Instruction", "Modelfile", "parse_modelfile", "read_modelfile"]

MAX_BYTES: Final = 4 << 20  # licences are long
INSTRUCTIONS: Final = (
    "FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE", "RENDERER", "PARSER",
    "REQUIRES",
)  # fmt: skip
_WITH_NAME: Final = ("PARAMETER", "MESSAGE")
_NEEDED: Final = {
    "PARAMETER": "a name and a value", "MESSAGE": "a role and a text", "FROM": "a file or a name",
    "ADAPTER": "a file",
}  # fmt: skip
_ROLES: Final = ("system", "user", "assistant")
_TRUE, _FALSE = ("true", "1", "t"), ("false", "0", "f")


def _boolean(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError("not true or false")
    return text.lower() in _TRUE


# Ollama's parameter -> what reads it, and the option here: of Llava, of an answer, or none ("").
_LOAD: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "num_ctx": (int, "n_ctx"), "num_batch": (int, "n_batch"), "num_gpu": (int, "n_gpu_layers"),
    "num_thread": (int, "n_threads"),
}  # fmt: skip
_ANSWER: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "temperature": (float, "temperature"), "top_k": (int, "top_k"), "top_p": (float, "top_p"),
    "min_p": (float, "min_p"), "typical_p": (float, "typical_p"), "seed": (int, "seed"),
    "repeat_last_n": (int, "repeat_last_n"), "repeat_penalty": (float, "repeat_penalty"),
    "presence_penalty": (float, "presence_penalty"), "frequency_penalty": (float, "frequency_penalty"),
    "mirostat": (int, "mirostat_mode"), "mirostat_tau": (float, "mirostat_tau"),
    "mirostat_eta": (float, "mirostat_eta"), "num_predict": (int, "max_tokens"), "stop": (str, "stop"),
}  # fmt: skip
# Known, and without a meaning here: num_keep is about a context that shifts, and none does here.
_IDLE: Final[dict[str, tuple[Callable[[str], Any], str]]] = {
    "num_keep": (int, ""), "tfs_z": (float, ""), "num_gqa": (int, ""), "main_gpu": (int, ""),
    "low_vram": (_boolean, ""), "f16_kv": (_boolean, ""), "logits_all": (_boolean, ""),
    "vocab_only": (_boolean, ""), "use_mmap": (_boolean, ""), "use_mlock": (_boolean, ""),
    "numa": (_boolean, ""), "embedding_only": (_boolean, ""), "penalize_newline": (_boolean, ""),
    "rope_frequency_base": (float, ""), "rope_frequency_scale": (float, ""),
}  # fmt: skip
LOAD_OPTIONS: Final = frozenset(option for _, option in _LOAD.values())
ANSWER_OPTIONS: Final = frozenset(option for _, option in _ANSWER.values())
_MAX_STOPS: Final = 256
_SILENT: Final = frozenset({"num_keep", "num_gqa", "f16_kv", "low_vram", "use_mmap"})  # nothing is lost


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes
    ----------
    line : int
        Where it begins, from 1.
    command : str
        In capitals.
    name : str
        Of a PARAMETER its name, of a MESSAGE its role, else "".
    value : str
        Without its quotes.
    """

    line: int
    command: str
    name: str
    value: str


@dataclasses.dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says.

    Attributes
    ----------
    path : str
        The file, or what it is called in messages.
    sources, adapters : tuple of Instruction
        The FROM lines, one or more, and the ADAPTER lines.
    chat_template : str or None
        As ``Llava(chat_template=…)`` takes it.
    system : str or None
    messages : tuple of (str, str)
        Roles and texts that every conversation begins with.
    load, answer : dict
        Options of ``Llava``, and of its answers.
    licenses : tuple of str
    warnings : tuple of str
        What was not understood or has no meaning here, each with its line.
    """

    path: str
    sources: tuple[Instruction, ...]
    adapters: tuple[Instruction, ...]
    chat_template: str | None
    system: str | None
    messages: tuple[tuple[str, str], ...]
    load: Mapping[str, Any]
    answer: Mapping[str, Any]
    licenses: tuple[str, ...]
    warnings: tuple[str, ...]


def read_modelfile(path: str | os.PathLike[str]) -> Modelfile:
    """Read a Modelfile.

    Parameters
    ----------
    path : path-like

    Raises
    ------
    ModelfileError
        An instruction is unknown, incomplete or impossible here; its line is named.
    OSError
        As from ``open()``.
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ModelfileError(f"{os.fspath(path)} is larger than {MAX_BYTES >> 20} MiB: it is no Modelfile")
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as exc:
        line = data[: exc.start].count(b"\n") + 1
        raise ModelfileError(f"{os.fspath(path)}:{line}: not a text in UTF-8: it is no Modelfile") from exc
    return parse_modelfile(text, os.fspath(path))


def parse_modelfile(text: str, path: str = "Modelfile") -> Modelfile:
    """Read the text of a Modelfile.

    Parameters
    ----------
    text : str
    path : str
        What to call it in messages.

    Raises
    ------
    ModelfileError
        As `read_modelfile`.
    """
    found = list(_instructions(text, path))
    by_command: dict[str, list[Instruction]] = {command: [] for command in INSTRUCTIONS}
    for instruction in found:
        by_command[instruction.command].append(instruction)
    if not by_command["FROM"]:
        raise ModelfileError(f"{path}: there is no FROM line, which names the model's files")
    load, answer, warnings = _parameters(path, by_command["PARAMETER"])
    for command in ("RENDERER", "PARSER", "REQUIRES"):
        warnings += [f"{path}:{i.line}: {command} has no meaning here" for i in by_command[command]]
    system = by_command["SYSTEM"]
    return Modelfile(
        path,
        tuple(by_command["FROM"]),
        tuple(by_command["ADAPTER"]),
        _template(path, by_command["TEMPLATE"]),
        system[-1].value if system else None,  # as in Ollama, the last one holds
        tuple((i.name, i.value) for i in by_command["MESSAGE"]),
        load,
        answer,
        tuple(i.value for i in by_command["LICENSE"]),
        tuple(warnings),
    )


def _instructions(text: str, path: str) -> Iterator[Instruction]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    at = 0
    while at < len(lines):
        stripped = lines[at].strip()
        start, at = at, at + 1
        if not stripped or stripped.startswith("#"):
            continue
        word, rest = _first_word(stripped)
        command, name = word.upper(), ""
        if command not in INSTRUCTIONS:
            known = ", ".join(INSTRUCTIONS)
            raise _error(path, start + 1, f"unknown instruction {word[:40]!r}; known are {known}")
        if command in _WITH_NAME:
            name, rest = _first_word(rest)
            name = name.lower()
            if command == "MESSAGE" and name not in _ROLES:
                raise _error(path, start + 1, f"a MESSAGE is by {', '.join(_ROLES)}, not {name!r}")
        value, at = _value(lines, rest, at, path)
        if not rest and command in _NEEDED:
            raise _error(path, start + 1, f"{command} needs {_NEEDED[command]}")
        yield Instruction(start + 1, command, name, value)


def _value(lines: list[str], rest: str, at: int, path: str) -> tuple[str, int]:
    """Return a value, which may go on from line `at`, and the line after it."""
    quote = next((mark for mark in ('"""', '"') if rest.startswith(mark)), None)
    if quote is None:
        return rest, at
    first, line = at, lines[at - 1]
    raw = [
        line[line.index(quote) + len(quote) :]
    ]  # not stripped: inside quotes, spaces at a line's end count
    while not raw[-1].rstrip().endswith(quote):
        if at == len(lines):
            raise _error(path, first, f"the {quote} that begins here is closed at the end of no line")
        raw.append(lines[at])
        at += 1
    return "\n".join(raw).rstrip()[: -len(quote)], at


def _first_word(text: str) -> tuple[str, str]:
    parts = text.split(None, 1)
    return (parts[0] if parts else ""), (parts[1] if len(parts) > 1 else "")


def _parameters(path: str, given: list[Instruction]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    load: dict[str, Any] = {}
    answer: dict[str, Any] = {}
    warnings: list[str] = []
    known = _LOAD | _ANSWER | _IDLE
    for parameter in given:
        if parameter.name not in known:
            warnings.append(f"{path}:{parameter.line}: unknown parameter {parameter.name!r}, ignored")
            continue
        read, option = known[parameter.name]
        try:
            value = read(parameter.value)
        except ValueError as exc:
            message = f"{parameter.name} cannot be {parameter.value!r}"
            raise _error(path, parameter.line, message) from exc
        if parameter.name in _LOAD:
            load[option] = _checked_load(path, parameter, option, value)
        elif parameter.name in _ANSWER:
            _set_answer(path, parameter, answer, option, value)
        elif parameter.name not in _SILENT:
            warnings.append(f"{path}:{parameter.line}: {parameter.name} has no meaning here, ignored")
    return load, answer, warnings


def _checked_load(path: str, parameter: Instruction, option: str, value: int) -> int | None:
    if option == "n_gpu_layers":
        if value >= 2**31:
            raise _error(path, parameter.line, f"{parameter.name} cannot be {value}")
        return max(value, -1)
    if option == "n_threads" and value == 0:  # Ollama's own choice
        return None
    if not {"n_ctx": 8}.get(option, 1) <= value <= (512 if option == "n_threads" else 2**31 - 1):
        raise _error(path, parameter.line, f"{parameter.name} cannot be {value}")
    return value


def _set_answer(path: str, parameter: Instruction, answer: dict[str, Any], option: str, value: Any) -> None:
    if option == "stop":
        if not value:
            raise _error(path, parameter.line, "an empty stop would end every answer")
        stops = answer.setdefault("stop", [])
        if len(stops) == _MAX_STOPS:
            raise _error(path, parameter.line, f"more than {_MAX_STOPS} stops")
        stops.append(value)
    elif option == "max_tokens":
        answer["max_tokens"] = value if value > 0 else None  # -1 and -2: to the model's end
    else:
        value = None if option == "seed" and value < 0 else value
        try:
            SamplingParams(**{option: value})
        except LlavaError as exc:
            raise _error(path, parameter.line, str(exc)) from exc
        answer[option] = value


def _template(path: str, given: list[Instruction]) -> str | None:
    if not given or not given[-1].value:
        return None
    try:
        return to_chat_template(given[-1].value)
    except LlavaError as exc:
        raise _error(path, given[-1].line, f"TEMPLATE: {exc}") from exc


def _error(path: str, line: int, what: str) -> ModelfileError:
    return ModelfileError(f"{path}:{line}: {what}")
