"""The child process: a model, its encoder and engine, and the loop that does what its parent asks."""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import struct
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any, Final

from llava_native._native import end_on_abort
from llava_native.engine import Event, Request, contents
from llava_native.isolation.faults import to_data
from llava_native.isolation.shared import map_bytes, pack, pack_bytes, unpack
from llava_native.isolation.wire import Channel, Frame, Kind
from llava_native.loading import Parts
from llava_native.params import SamplingParams
from llava_native.prompt import PendingImage, Text, check_length, pieces
from llava_native.stream import Writer

__all__ = ["CONTEXT_FACTS", "ENCODER_FACTS", "MODEL_FACTS", "REASONS", "TOKEN", "main"]

# a token of an answer: its id, how many there are, why it was the last one, whether there is one to show
TOKEN: Final = struct.Struct("<iIBB")
REASONS: Final = (None, "eog", "stop", "length", "cancelled")
_ORPHAN_S: Final = 1.0  # how often the child looks whether its parent lives; a closed socket tells at once
MODEL_FACTS: Final = (
    "path", "n_embd", "n_vocab", "n_ctx_train", "n_layer", "n_params", "size_bytes", "description",
    "metadata", "chat_template", "special_tokens", "bos", "eos", "eot", "add_bos", "is_spm", "is_recurrent",
)  # fmt: skip
ENCODER_FACTS: Final = (
    "path", "dtype", "fingerprint", "n_threads", "n_embd", "image_size", "patch_size", "n_tokens",
)  # fmt: skip
_LONG_CALLS: Final = ("encode", "export", "adopt")
_MAX_STATE: Final = 2**31  # bytes; a longer one is not handed over, and what it says is evaluated again
CONTEXT_FACTS: Final = ("n_ctx", "n_ctx_seq", "n_batch", "n_ubatch", "n_seq_max", "n_threads")


def main(fd: int, parent: int) -> None:
    """Serve the process `parent` over the socket `fd` until it goes away."""
    faulthandler.enable()
    end_on_abort()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, who tells
    os.set_inheritable(fd, False)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    channel = Channel(socket.socket(fileno=fd))
    frame = channel.receive()
    if frame is not None and frame.kind == Kind.LOAD:
        _forward_logs(channel, frame.data.pop("log_level"))
        parts = _load(channel, frame.data)
        if parts is not None and Server(channel, parts).run():
            parts.engine.close()
            parts.close()
    os._exit(0)  # nothing here is worth waiting for


def _watch(parent: int) -> None:
    """End when the parent has: its socket may live on in a process that it forked."""
    while os.getppid() == parent:
        time.sleep(_ORPHAN_S)
    os._exit(0)


class _Forwarder(logging.Handler):
    def __init__(self, channel: Channel) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        self._channel.send(Kind.LOG, data=[record.levelno, self.format(record)])


def _forward_logs(channel: Channel, level: int) -> None:
    logger = logging.getLogger("llava_native")
    logger.setLevel(level)
    logger.propagate = False
    logger.addHandler(_Forwarder(channel))


def _load(channel: Channel, options: dict[str, Any]) -> Parts | None:
    """Load; tell how far it is, and what came of it."""
    progress = None
    if options.pop("wants_progress"):

        def progress(done: float) -> None:
            channel.send(Kind.PROGRESS, data=done)

    try:  # templates are the parent's; one is given here so that a file's own, perhaps broken, is not read
        parts = Parts(
            options.pop("model"), options.pop("mmproj"), "chatml", progress=progress, cancel=None, **options
        )
    except BaseException as exc:
        channel.send(Kind.ERROR, data=to_data(exc))
        return None
    facts: dict[str, Any] = {
        "model": _facts(parts.model, MODEL_FACTS),
        "encoder": None if parts.encoder is None else _facts(parts.encoder, ENCODER_FACTS),
        "context": _facts(parts.context, CONTEXT_FACTS),
        "adapters": parts.engine.adapters,
    }
    channel.send(Kind.READY, data=facts)
    return parts


def _facts(thing: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in names if hasattr(thing, name)}


class Served(Request):
    """A request whose caller is in the other process."""

    def __init__(self, server: Server, number: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._server = server
        self._number = number
        self._told = False
        self.hold = False  # the parent says that its caller does not keep up

    @property
    def is_ahead(self) -> bool:
        return self.hold

    @property
    def has_room(self) -> bool:
        return not self.hold

    def deliver(self, event: Event) -> None:
        if event.error is not None or event.reason is not None:
            self._server.requests.pop(self._number, None)
        if event.error is not None:
            self._server.channel.send(
                Kind.ERROR, self._number, {**to_data(event.error), "facts": self._facts()}
            )
            return
        token = event.item
        data: dict[str, Any] = {}
        if token is not None and token.logprob is not None:
            data["logprob"], data["top"] = token.logprob, list(token.top_logprobs)
        if event.reason is not None or not self._told:
            data["facts"] = self._facts()
            self._told = True
        head = TOKEN.pack(
            -1 if token is None else token.id, event.n_tokens, REASONS.index(event.reason), token is not None
        )
        text = b"" if token is None else token.text.encode("utf-8", "surrogatepass")
        self._server.channel.send(Kind.TOKEN, self._number, data or None, head + text)

    def _facts(self) -> dict[str, Any]:
        names = ("n_prompt", "n_cached", "queue_s", "prefill_text_s", "prefill_image_s", "first_token_s",
                 "decode_s")  # fmt: skip
        images = [
            [image.n_tokens, image.prepare_s, image.encode_s, image.from_cache] for image in self.images
        ]
        return {**_facts(self, names), "images": images}


class Server:
    """Does what frames ask, one after the other; what takes long is the engine's, or a thread's."""

    def __init__(self, channel: Channel, parts: Parts) -> None:
        self.channel = channel
        self.requests: dict[int, Served] = {}
        self._parts = parts
        self._samplers: dict[int, Any] = {}
        self._calls: dict[str, Callable[[Frame], Any]] = {
            "tokenize": lambda f: parts.model.tokenize(
                f.data["text"], add_special=f.data["add_special"], parse_special=f.data["parse_special"]
            ),
            "token_bytes": lambda f: list(
                parts.model.token_bytes(f.data["token"], special=f.data["special"])
            ),
            "detokenize": lambda f: parts.model.detokenize(
                f.data["ids"], remove_special=f.data["remove"], unparse_special=f.data["unparse"]
            ),
            "is_eog": lambda f: parts.model.is_eog(f.data["token"]),
            "pieces": self._pieces,
            "stats": lambda _: vars(parts.engine.stats()),
            "sampler": self._new_sampler,
            "encode": self._encode,
            "export": self._export,
            "adopt": self._adopt,
        }

    def run(self) -> bool:
        """Serve; return whether the parent said goodbye, and did not just go away."""
        while (frame := self.channel.receive()) is not None:
            if frame.kind == Kind.CLOSE:
                return True
            self._do(frame)
        return False

    def _do(self, frame: Frame) -> None:
        kind, number = frame.kind, frame.number
        request = self.requests.get(number)
        if kind == Kind.CALL:
            self._call(frame)
        elif kind == Kind.SUBMIT:
            self._submit(frame)
        elif kind == Kind.FREE_SAMPLER:
            if (sampler := self._samplers.pop(number, None)) is not None:
                sampler.close()
        elif request is not None and kind == Kind.DROP:
            self._parts.engine.drop(request)
        elif request is not None and kind in (Kind.HOLD, Kind.GO_ON):
            request.hold = kind == Kind.HOLD
            self._parts.engine.wake()

    def _call(self, frame: Frame) -> None:
        name = frame.data["name"]
        if name in _LONG_CALLS:  # not on this thread
            threading.Thread(target=self._answer, args=(self._calls[name], frame), daemon=True).start()
        else:
            self._answer(self._calls[name], frame)

    def _answer(self, call: Callable[[Frame], Any], frame: Frame) -> None:
        try:
            result = call(frame)
            if not isinstance(result, tuple):
                self.channel.send(Kind.REPLY, frame.number, result)
            else:
                self.channel.send(Kind.REPLY, frame.number, result[0], file=result[1])
        except BaseException as exc:
            self.channel.send(Kind.ERROR, frame.number, to_data(exc))

    def _pieces(self, frame: Frame) -> list[list[int] | None]:
        """Tokenise the texts of a prompt; None stands for an image."""
        image: Any = object()
        parts = [image if part is None else Text(part[0], part[1]) for part in frame.data["parts"]]
        return [None if piece is image else piece for piece in pieces(self._parts.model, parts)]  # type: ignore[misc]

    def _encode(self, frame: Frame) -> tuple[dict[str, Any], Any]:
        if self._parts.encoder is None:
            raise ValueError("there is no encoder")
        (image,) = unpack(frame.data["images"], *(frame.fds or (None,)))
        rows = self._parts.encoder.encode(image, background=tuple(frame.data["background"]))
        (description,), file = pack([rows])
        return description, file

    def _export(self, frame: Frame) -> tuple[dict[str, Any], Any] | None:
        images = iter(unpack(frame.data["images"], *(frame.fds or (None,))))
        made = self._prompt(frame.data["pieces"], array("i", frame.blob), images)
        kept = self._parts.engine.export(lambda: made)
        if kept is None or len(kept[1]) >= _MAX_STATE:
            return None
        return {"content": contents.to_data(kept[0]), "size": len(kept[1])}, pack_bytes(kept[1])

    def _adopt(self, frame: Frame) -> bool:
        state = map_bytes(frame.fds[0])
        return self._parts.engine.adopt(contents.from_data(frame.data["content"]), state)

    def _sampler(self, data: dict[str, Any]) -> Any:
        from llava_native.constraint import Constraint

        params = dict(data["params"])
        if params["logit_bias"]:
            params["logit_bias"] = {int(token): bias for token, bias in params["logit_bias"].items()}
        grammar = data["constraint"]
        constraint = None if grammar is None else Constraint(grammar)
        return self._parts.sampler(SamplingParams(**params), constraint)

    def _new_sampler(self, frame: Frame) -> None:
        self._samplers[frame.number] = self._sampler(frame.data)

    def _submit(self, frame: Frame) -> None:
        data, ids = frame.data, array("i", frame.blob)
        try:
            images = iter(unpack(data["images"], *(frame.fds or (None,))))
        except BaseException as exc:
            self.channel.send(Kind.ERROR, frame.number, to_data(exc))
            return
        sampler = None
        try:
            made = self._prompt(data["pieces"], ids, images)
            sampler = self._samplers.pop(data["sampler"], None) or self._sampler(data)
            request = Served(
                self, frame.number, made, sampler, Writer(self._parts.model, data["stops"]), **data["options"]
            )
            self.requests[frame.number] = request
            self._parts.engine.submit(request)
        except BaseException as exc:
            self.requests.pop(frame.number, None)
            if sampler is not None:
                sampler.close()
            self.channel.send(Kind.ERROR, frame.number, to_data(exc))

    def _prompt(self, wanted: list[Any], ids: array[int], images: Iterator[Any]) -> list[Any]:
        """Return the pieces of a prompt, its texts tokenised."""
        made: list[Any] = []
        start, has_text = 0, False
        for piece in wanted:  # how many ids; 0 for an image; or a text, and whether it is ours
            if isinstance(piece, list):
                made.append(Text(*piece))
                has_text = True
            else:
                made.append(ids[start : start + piece].tolist() if piece else self._image(next(images)))
                start += piece
        if has_text:
            made = pieces(self._parts.model, made)
            check_length(sum(map(len, made)), self._parts.context.n_ctx_seq)
        return made

    def _image(self, image: Any) -> Any:
        from llava_native._embedding import ImageEmbedding

        if isinstance(image, ImageEmbedding):
            return image
        assert self._parts.encoder is not None
        return PendingImage(self._parts.encoder, image)
