"""Exceptions as data: what the child raised is raised again here, as far as it is a class that we know."""

from __future__ import annotations

import builtins
from typing import Any, Final

from llava_native import errors
from llava_native.errors import LlavaError

__all__ = ["from_data", "to_data"]

# builtin exceptions of the child that are raised here as what they were
_BUILTINS: Final = frozenset({
    "ValueError", "TypeError", "RuntimeError", "MemoryError", "OverflowError", "KeyError", "IndexError",
    "ImportError", "ModuleNotFoundError", "UnicodeError", "AttributeError",
})  # fmt: skip
_OS_ERRORS: Final = frozenset({
    "OSError", "FileNotFoundError", "PermissionError", "IsADirectoryError", "NotADirectoryError",
})  # fmt: skip


def to_data(error: BaseException) -> dict[str, Any]:
    """Return what there is to tell about an exception, as JSON has it."""
    data: dict[str, Any] = {
        "type": type(error).__name__,
        "message": str(error.args[0]) if error.args else "",
    }
    if isinstance(error, OSError) and error.errno is not None:
        data |= {"errno": error.errno, "message": error.strerror, "filename": _text(error.filename)}
    if isinstance(error, LlavaError):
        data |= {"call": error.call, "code": error.code, "log": list(error.log)}
    if isinstance(error, errors.PromptTooLongError):
        data |= {"n_tokens": error.n_tokens, "n_ctx": error.n_ctx}
    return data


def from_data(data: dict[str, Any]) -> BaseException:
    """Return the exception of ``to_data``; a class that is not known becomes a ``LlavaError`` of its name."""
    name, message = str(data["type"]), str(data["message"])
    if name in _OS_ERRORS and "errno" in data:
        filename = data.get("filename")
        if filename is None:
            return OSError(int(data["errno"]), message)
        return OSError(int(data["errno"]), message, str(filename))
    if name == "PromptTooLongError":
        return errors.PromptTooLongError(message, n_tokens=int(data["n_tokens"]), n_ctx=int(data["n_ctx"]))
    if name in errors.__all__:
        code = data.get("code")
        made: BaseException = getattr(errors, name)(
            message,
            call=None if data.get("call") is None else str(data["call"]),
            code=None if code is None else int(code),
            log=tuple(map(str, data.get("log", ()))),
        )
        return made
    if name in _BUILTINS or name in _OS_ERRORS:
        found: BaseException = getattr(builtins, name)(message)
        return found
    return LlavaError(f"{name} in the isolated process: {message}")


def _text(filename: Any) -> str | None:
    return filename if filename is None or isinstance(filename, str) else str(filename)
