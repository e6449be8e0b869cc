"""Conversations as files: turns and images, and what was evaluated of them, in a zip that nothing trusts.

``chat.json`` holds the turns, ``image-N`` an image each (a file as it was given, a PNG, or rows of float32),
and ``state.bin``, which may be missing, the keys and values of the longest beginning that was still cached,
with a mark of the user who saved it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import hmac
import io
import json
import logging
import mmap
import os
import secrets
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_native._embedding import ImageEmbedding
from llava_native._native import build_info
from llava_native.engine import contents
from llava_native.engine.contents import natural
from llava_native.engine.sequences import Content, State, length
from llava_native.errors import ChatFileError, InvalidInputError, LlavaError
from llava_native.gguf import read_header
from llava_native.images import open_image
from llava_native.messages import Message
from llava_native.prompt import Part, PendingImage, Text
from llava_native.sources import file_of
from llava_native.writing import replacing

if TYPE_CHECKING:
    from llava_native.engine import Engine
    from llava_native.images import ImageLike
    from llava_native.llava import Llava

__all__ = ["read_chat", "write_chat"]

_logger = logging.getLogger("llava_native")
_FORMAT = "llava_native chat 1"
_MAX_JSON = 64 << 20  # bytes
_KEY_BYTES = 32
_PIECE = 4 << 20  # bytes of a state that are read, and hashed on another core, at a time


def write_chat(path: str | os.PathLike[str], llava: Llava, messages: Sequence[Message]) -> None:
    """Write a conversation; the file appears whole or not at all.

    Parameters
    ----------
    path : str or os.PathLike
        An existing file is replaced.
    llava : Llava
        Whose prefix cache may hold the beginning of the conversation.
    messages : sequence of Message

    Raises
    ------
    OSError
        The file cannot be written.
    ImageDecodeError
        An image is no longer what it was.
    """
    images: list[Part] = []
    data: dict[str, Any] = {
        "format": _FORMAT,
        **_identity(llava),
        "messages": [_message_data(message, images) for message in messages],
    }
    key = _key()
    kept = None
    if messages and key:
        kept = llava.engine.export(lambda: llava.planner.pieces(llava.planner.parts(messages)))
    with replacing(Path(path)) as raw, zipfile.ZipFile(raw, "w", strict_timestamps=False) as file:
        data["images"] = [_write_image(file, n, image) for n, image in enumerate(images)]
        if kept is not None:
            data["state"] = {"made_by": _made_by(llava.engine), "content": contents.to_data(kept[0])}
            data["state"]["mark"] = _mark(key, data, _pieces(kept[1]))
            file.writestr("state.bin", kept[1])
        file.writestr("chat.json", json.dumps(data))


def read_chat(path: str | os.PathLike[str], llava: Llava) -> list[Message]:
    """Read a conversation, and give the engine's prefix cache what was evaluated of it.

    Returns
    -------
    list of Message

    Raises
    ------
    ChatFileError
        It is no such file, damaged, or of another model.
    OSError
        It cannot be read.
    """
    try:
        with zipfile.ZipFile(path) as file:
            _check_members(file)
            data = json.loads(_read(file, "chat.json", _MAX_JSON))
            if data["format"] != _FORMAT:
                raise ChatFileError(f"{os.fspath(path)} has the format {data['format']!r}, not {_FORMAT!r}")
            _check_identity(path, data, llava)
            images = [_read_image(file, n, image, llava) for n, image in enumerate(data["images"])]
            messages = [_read_message(message, images) for message in data["messages"]]
            if "state" in data and data["state"]["made_by"] == _made_by(llava.engine):
                state = _room(file.getinfo("state.bin").file_size)
                mark = str(data["state"].get("mark")).encode()
                if hmac.compare_digest(mark, _mark(_key(), data, _read_state(file, state)).encode()):
                    _adopt(llava.engine, contents.from_data(data["state"]["content"]), state)
                else:
                    _logger.warning("a saved state is not used: it was not saved by this user here")
    except LlavaError:
        raise
    except (zipfile.BadZipFile, EOFError, LookupError, TypeError, ValueError, ArithmeticError,
            RuntimeError, MemoryError, OSError) as exc:  # fmt: skip
        if isinstance(exc, OSError) and exc.errno != errno.EINVAL:  # which is an offset before the start
            raise
        raise ChatFileError(f"{os.fspath(path)} is not a saved conversation, or damaged: {exc!r}") from exc
    return messages


# -- whose conversation it is


def _identity(llava: Llava) -> dict[str, Any]:
    return {
        "model": {"name": llava.name, "fingerprint": read_header(llava.model.path).fingerprint()},
        "encoder": None if llava.encoder is None else llava.encoder.fingerprint,
    }


def _check_identity(path: str | os.PathLike[str], data: dict[str, Any], llava: Llava) -> None:
    here = _identity(llava)
    if data["model"]["fingerprint"] != here["model"]["fingerprint"]:
        raise ChatFileError(
            f"{os.fspath(path)} is a conversation with another model ({data['model']['name']}; this one is "
            f"{llava.name}); load it with that one"
        )
    if data["images"] and data["encoder"] != here["encoder"]:
        raise ChatFileError(
            f"{os.fspath(path)} has images for another encoder ({data['encoder']}; this one is "
            f"{here['encoder']}); load it with the mmproj that it was made with"
        )


def _made_by(engine: Engine) -> str:
    """Name what keys and values depend on, besides the model: another library may compute others."""
    info = build_info()
    return repr((info["llama_cpp_commit"], info["patches"], engine.adapters))


# -- messages and images


def _message_data(message: Message, images: list[Part]) -> dict[str, Any]:
    parts: list[Any] = []
    for part in message.content:
        if isinstance(part, Text):
            parts.append(part.text)
        else:
            parts.append(len(images))
            images.append(part)
    return {"role": message.role, "content": parts, "extra": dict(message.extra)}


def _read_message(data: dict[str, Any], images: list[Part]) -> Message:
    content = [Text(part) if isinstance(part, str) else images[natural(part)] for part in data["content"]]
    if not isinstance(data["role"], str) or not isinstance(data["extra"], dict):
        raise TypeError("a message has no role")
    return Message(data["role"], tuple(content), data["extra"])


def _write_image(file: zipfile.ZipFile, n: int, part: Part) -> dict[str, Any]:
    name = f"image-{n}"
    if isinstance(part, ImageEmbedding):
        file.writestr(name, bytes(memoryview(part).cast("B")))
        return {"kind": "rows", "shape": list(part.shape), "fingerprint": part.fingerprint}
    assert isinstance(part, PendingImage)
    image = file_of(part.image)
    if isinstance(image, (str, os.PathLike)):
        file.write(image, name)
    elif isinstance(image, (bytes, bytearray)):
        file.writestr(name, bytes(image))
    else:
        png = io.BytesIO()
        open_image(image).save(png, "PNG", compress_level=1)
        file.writestr(name, png.getvalue())
    return {"kind": "file"}


def _read_image(file: zipfile.ZipFile, n: int, data: dict[str, Any], llava: Llava) -> Part:
    content: ImageLike | ImageEmbedding = _read(file, f"image-{n}")
    if data["kind"] == "rows":
        n_tokens, n_embd = map(natural, data["shape"])
        if len(content) != 4 * n_tokens * n_embd:
            raise ChatFileError(f"image {n} does not have {n_tokens} rows of {n_embd} floats")
        rows = (ctypes.c_float * n_embd * n_tokens).from_buffer_copy(content)
        content = ImageEmbedding.from_buffer(rows, fingerprint=data["fingerprint"])
    return llava.planner.image_part(content)


def _check_members(file: zipfile.ZipFile) -> None:
    """Refuse a file that would become larger: compressed members, or several of the same bytes."""
    members = file.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise ChatFileError(f"{file.filename} is compressed")
    assert file.fp is not None
    if sum(member.file_size for member in members) > file.fp.seek(0, os.SEEK_END):
        raise ChatFileError(f"the parts of {file.filename} are larger than the whole")


def _read(file: zipfile.ZipFile, name: str, limit: int | None = None) -> bytes:
    info = file.getinfo(name)
    if limit is not None and info.file_size > limit:
        raise ChatFileError(f"{name} in {file.filename} is too large")
    return file.read(info)


# -- what was evaluated


def _pieces(state: State) -> Iterator[memoryview]:
    whole = memoryview(state)
    return (whole[start : start + _PIECE] for start in range(0, len(whole), _PIECE))


def _room(size: int) -> memoryview:
    """Return memory for a state, in large pages where there are any: small ones take longer than the file."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return memoryview(bytearray(size))
    room = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # of a system that was built without them
        room.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(room)


def _read_state(file: zipfile.ZipFile, state: memoryview) -> Iterator[memoryview]:
    """Fill a state, and yield its pieces while the rest is read."""
    with file.open("state.bin") as member:
        for piece in _pieces(state):
            piece[:] = member.read(len(piece))
            yield piece


def _key() -> bytes:
    """Return this user's secret; empty where it cannot be kept.

    What a file says was evaluated may answer for every conversation that begins alike, and that it was
    evaluated from what it says cannot be seen: so only states with this user's own mark are used.
    """
    from llava_native.store import home

    path = home() / "chat.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), open(path, "xb", opener=_for_me) as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
        key = path.read_bytes()
    except OSError as exc:
        _logger.info("no state of a conversation is saved or used: %s", exc)
        return b""
    return key if len(key) == _KEY_BYTES else b""


def _for_me(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _mark(key: bytes, data: dict[str, Any], state: Iterator[memoryview]) -> str:
    """Return what shows that this user saved a state with these facts; nobody did with an empty key."""
    with ThreadPoolExecutor() as pool:
        hashes = list(pool.map(lambda piece: hashlib.sha256(piece).hexdigest(), state))
    facts = [
        data["model"]["fingerprint"],
        data["encoder"],
        data["state"]["made_by"],
        data["state"]["content"],
        hashes,
    ]
    return hmac.new(key or secrets.token_bytes(_KEY_BYTES), json.dumps(facts).encode(), "sha256").hexdigest()


def _adopt(engine: Engine, content: Content, state: State) -> None:
    """Use a state where it is one; without it the conversation is evaluated again."""
    try:
        if not engine.adopt(content, state):
            _logger.info("the context has no room for the state of %d tokens", length(content))
    except InvalidInputError as exc:
        _logger.warning("a saved state is not used: %s", exc)
