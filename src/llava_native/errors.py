"""The exceptions of llava_native: one tree, each class also the nearest builtin.

Every class derives from :class:`LlavaError`, so ``except LlavaError`` catches all of them, and from
the builtin that a Python programmer would expect, so ``except ValueError`` works too. A missing or
unreadable file is the plain :class:`FileNotFoundError` or :class:`PermissionError` of ``open()``.
"""

from __future__ import annotations

import copy

__all__ = [
    "BusyError",
    "CancelledError",
    "ChatFileError",
    "ClosedError",
    "ContextFullError",
    "DecodeError",
    "DownloadError",
    "EmbeddingMismatchError",
    "EncodeError",
    "ForkError",
    "GrammarError",
    "ImageDecodeError",
    "ImageTooLargeError",
    "InUseError",
    "InvalidInputError",
    "LlavaError",
    "ModelFormatError",
    "ModelLoadError",
    "ModelNotFoundError",
    "ModelfileError",
    "NativeAbort",
    "NotEnoughMemoryError",
    "PromptTooLongError",
    "StoreError",
    "TemplateError",
    "TimeoutExpiredError",
    "UnsupportedModelError",
]


class LlavaError(Exception):
    """Base of every exception that this package defines.

    Parameters
    ----------
    message : str
        What was wrong, where, and what to do.
    call : str, optional
        The native function that failed, e.g. ``"llama_decode"``.
    code : int, optional
        Its return code, where it has one.
    log : tuple of str, optional
        The last warning and error lines that the native libraries logged during the call.
    """

    def __init__(
        self,
        message: str,
        *,
        call: str | None = None,
        code: int | None = None,
        log: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        self.call = call
        self.code = code
        self.log = log

    def __str__(self) -> str:
        text = super().__str__()
        if self.call is not None:
            text += f" [{self.call}" + (f" returned {self.code}]" if self.code is not None else "]")
        for line in self.log:
            text += f"\n  native log: {line}"
        return text


class ModelFormatError(LlavaError, ValueError):
    """A model file is damaged, truncated, or not the kind of file that was asked for."""


class UnsupportedModelError(ModelFormatError):
    """A sound model file of a kind that this package does not run."""


class ModelLoadError(LlavaError, RuntimeError):
    """The native library refused a model file, an adapter, or a context on it."""


class ImageDecodeError(LlavaError, ValueError):
    """The data is not an image, or a damaged one."""


class ImageTooLargeError(ImageDecodeError):
    """The image has more bytes or pixels than the limit allows; it was not decoded."""


class EncodeError(LlavaError, RuntimeError):
    """The vision tower failed on an image."""


class EmbeddingMismatchError(LlavaError, ValueError):
    """Image rows do not fit: the width of another model, or the fingerprint of another encoder."""


class InvalidInputError(LlavaError, ValueError):
    """A token id, sequence, position or batch is out of range for this model or context."""


class PromptTooLongError(LlavaError, ValueError):
    """The prompt cannot fit into the context; known before any work was done.

    Attributes
    ----------
    n_tokens : int
        Tokens of the prompt, image rows included.
    n_ctx : int
        Tokens that the context holds for one sequence.
    """

    def __init__(self, message: str, *, n_tokens: int = 0, n_ctx: int = 0) -> None:
        super().__init__(message)  # a copy is made of this alone, and given the attributes then
        self.n_tokens = n_tokens
        self.n_ctx = n_ctx


class TemplateError(LlavaError, ValueError):
    """A chat template does not parse or render, or drops what it was given."""


class ModelfileError(LlavaError, ValueError):
    """A Modelfile says something that cannot be understood or done; the message names its line."""


class ModelNotFoundError(LlavaError, LookupError):
    """There is no model of that name: ``llava-native list`` shows those that were created."""


class StoreError(LlavaError, ValueError):
    """What the store of named models says is damaged, or no longer true of the files it names."""


class ChatFileError(LlavaError, ValueError):
    """A saved conversation is damaged, or belongs to another model."""


class DownloadError(LlavaError, OSError):
    """A download failed, was refused, or took too long."""


class ContextFullError(LlavaError, RuntimeError):
    """The key/value cache has no free cells left for these tokens."""


class DecodeError(LlavaError, RuntimeError):
    """The language model failed while it evaluated tokens or rows."""


class GrammarError(LlavaError, ValueError):
    """A grammar does not parse, or its root rule is missing."""


class CancelledError(LlavaError, RuntimeError):
    """The call was cancelled by another thread; the object is usable afterwards."""


class TimeoutExpiredError(CancelledError, TimeoutError):
    """The call ran out of its ``timeout``; the object is usable afterwards."""


class ClosedError(LlavaError, ValueError):
    """The object was closed before this call."""


class BusyError(LlavaError, RuntimeError):
    """Another thread is inside this object, which serves one thread at a time."""


class InUseError(LlavaError, RuntimeError):
    """``close()`` was refused: objects that need this one are still open."""


class ForkError(LlavaError, RuntimeError):
    """The object was made before ``os.fork()``; native threads and devices do not survive it."""


class NotEnoughMemoryError(LlavaError, MemoryError):
    """What was asked for cannot fit into memory; nothing was loaded."""


class NativeAbort(LlavaError, RuntimeError):  # noqa: N818 - the name that callers know
    """The native library hit an assertion; the object it happened in must not be used again."""


def detached(error: Exception) -> Exception:
    """Return an error without its traceback, whose frames keep what they worked on."""
    try:
        return copy.copy(error)
    except Exception:  # of a class that its arguments alone do not make
        return LlavaError(f"{type(error).__name__}: {error}")
