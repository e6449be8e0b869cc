"""IsolatedParts: what a ``Llava(isolate=True)`` is made of."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from llava_native.errors import BusyError, InvalidInputError
from llava_native.isolation.engine import IsolatedEngine
from llava_native.isolation.objects import IsolatedContext, IsolatedEncoder, IsolatedModel, IsolatedSampler
from llava_native.limits import check_range
from llava_native.loading import adapter_list
from llava_native.messages import Message
from llava_native.planning import Overflow, Planner
from llava_native.prompt import Part, Piece, Prompt, Text
from llava_native.templates import choose_template

if TYPE_CHECKING:
    from llava_native._context import Context
    from llava_native._encoder import ImageEncoder
    from llava_native._model import Model
    from llava_native._sampler import Sampler
    from llava_native.constraint import Constraint
    from llava_native.engine import Engine
    from llava_native.loading import PathLike
    from llava_native.params import SamplingParams

__all__ = ["IsolatedParts"]


class IsolatedParts:
    """Stand-ins of what ``Parts`` has, and a child process that has the things themselves.

    Notes
    -----
    Attributes as ``Parts`` has them. They are declared as the classes whose place they take.
    """

    def __init__(
        self,
        model: PathLike | Model,
        mmproj: PathLike | ImageEncoder | None,
        chat_template: PathLike | None,
        **options: Any,
    ) -> None:
        load = {name: options.pop(name) for name in ("progress", "cancel")}
        check_range("n_seq_max", options["n_seq_max"], 1, 256)
        check_range("max_waiting", options["max_waiting"], 1, 2**63)
        waiting = options.pop("max_waiting")
        wanted = {
            **options,
            "model": _path(model, "model"),
            "mmproj": None if mmproj is None else _path(mmproj, "mmproj"),
            "cache_dir": None if options["cache_dir"] is None else _path(options["cache_dir"], "cache_dir"),
            "lora": [(str(Path(path).absolute()), scale) for path, scale in adapter_list(options["lora"])],
            "kv_overrides": dict(options["kv_overrides"] or {}),
            "max_waiting": 2**31,  # the bound is kept on this side
        }
        engine = IsolatedEngine(wanted, n_running=options["n_seq_max"], max_waiting=waiting, **load)
        self._engine = engine
        try:
            facts = engine.facts
            self.model = cast("Model", IsolatedModel(engine, facts["model"]))
            self.encoder = None
            if facts["encoder"] is not None:
                self.encoder = cast("ImageEncoder", IsolatedEncoder(engine, facts["encoder"]))
            self.context = cast("Context", IsolatedContext(engine, facts["context"]))
            self.engine = cast("Engine", engine)
            self.template = choose_template(self.model, chat_template)
        except BaseException:
            engine.close()
            raise

    def planner(self, allow_urls: bool) -> Planner:
        """Make what turns messages into prompts."""
        return _IsolatedPlanner(self.model, self.encoder, self.template, self.context.n_ctx_seq, allow_urls)

    def sampler(self, params: SamplingParams, constraint: Constraint | None) -> Sampler:
        """Make the sampler of one answer."""
        return cast("Sampler", IsolatedSampler(self._engine, params, constraint))

    def close(self) -> None:
        """End the child. May be called again.

        Raises
        ------
        BusyError
            A stream is open.
        """
        if not self._engine.closed and self._engine.streams:
            raise BusyError("a stream of this Llava is open; finish, close or drop it first")
        self._engine.close()


class _IsolatedPlanner(Planner):
    """A planner that has a whole prompt tokenised at once: with its request, where it is short enough."""

    def prompt(
        self, messages: Sequence[Message], overflow: Overflow = "error", tools: Sequence[Any] | None = None
    ) -> Prompt:
        """Write a prompt that fits.

        One that is short enough is tokenised there with its request, which spares a question. If it does not
        fit after all, because its tokens are less than bytes, the request fails with that.
        """
        if overflow == "error":
            parts = self.parts(messages, tools)
            n_rows = sum(len(part) for part in parts if not isinstance(part, Text))
            n_bytes = sum(len(part.text.encode(errors="replace")) for part in parts if isinstance(part, Text))
            if n_rows + n_bytes + len(parts) < self._n_ctx:
                return Prompt(parts, n_rows)
        return super().prompt(messages, overflow, tools)

    def pieces(self, parts: Iterable[Part]) -> list[Piece]:
        """Tokenise parts into runs of token ids and images."""
        parts = list(parts)
        texts = [[part.text, part.special] if isinstance(part, Text) else None for part in parts]
        images = iter([part for part in parts if not isinstance(part, Text)])
        found = cast("IsolatedModel", self._model)._engine.call("pieces", parts=texts)
        return [next(images) if ids is None else [int(token) for token in ids] for ids in found]


def _path(file: Any, name: str) -> str:
    if not isinstance(file, (str, os.PathLike)):
        raise InvalidInputError(
            f"{name} must be a path where isolate=True, not {type(file).__name__}: the child loads it"
        )
    return str(Path(os.fsdecode(file)).absolute())
