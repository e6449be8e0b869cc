"""Stand-ins of what lives in the child process: their facts are here, their work is done there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from llava_native.errors import InvalidInputError
from llava_native.isolation.child import CONTEXT_FACTS, ENCODER_FACTS, MODEL_FACTS
from llava_native.isolation.process import numbers
from llava_native.isolation.shared import pack, read_rows
from llava_native.isolation.wire import Kind, WireError, close_all

if TYPE_CHECKING:
    from llava_native._cancel import CancelToken
    from llava_native._embedding import ImageEmbedding
    from llava_native.constraint import Constraint
    from llava_native.images import ImageLike
    from llava_native.isolation.engine import IsolatedEngine
    from llava_native.isolation.process import Worker
    from llava_native.params import SamplingParams

__all__ = ["IsolatedContext", "IsolatedEncoder", "IsolatedModel", "IsolatedSampler"]


class _StandIn:
    """The facts that the child told about an object, as attributes."""

    _names: ClassVar[tuple[str, ...]]

    def __init__(self, engine: IsolatedEngine, facts: dict[str, Any]) -> None:
        self._engine = engine
        self.__dict__.update({name: facts[name] for name in self._names if name in facts})

    @property
    def closed(self) -> bool:
        """Whether the ``Llava`` was closed."""
        return self._engine.closed

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}: the object itself is in another process, because this "
            "Llava was made with isolate=True"
        )


class IsolatedModel(_StandIn):
    """The model in the child process: ``Model``'s facts, and its tokenizer."""

    _names = MODEL_FACTS

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = False
    ) -> list[int]:
        """Do what ``Model.tokenize`` does."""
        if isinstance(text, bytes):
            raise InvalidInputError("text must be a str where the model is isolated, not bytes")
        found = self._engine.call("tokenize", text=text, add_special=add_special, parse_special=parse_special)
        return [int(token) for token in found]

    def token_bytes(self, token: int, *, special: bool = False) -> bytes:
        """Do what ``Model.token_bytes`` does."""
        return bytes(self._engine.call("token_bytes", token=token, special=special))

    def detokenize(
        self, ids: Iterable[int], *, remove_special: bool = False, unparse_special: bool = False
    ) -> str:
        """Do what ``Model.detokenize`` does."""
        return str(
            self._engine.call("detokenize", ids=list(ids), remove=remove_special, unparse=unparse_special)
        )

    def is_eog(self, token: int) -> bool:
        """Do what ``Model.is_eog`` does."""
        return bool(self._engine.call("is_eog", token=token))

    def __repr__(self) -> str:
        return f"IsolatedModel({self.path!r}, pid={self._engine.pid})"


class IsolatedEncoder(_StandIn):
    """The image encoder in the child process."""

    _names = ENCODER_FACTS

    def encode(
        self,
        image: ImageLike,
        *,
        background: tuple[int, int, int] = (255, 255, 255),
        cancel: CancelToken | None = None,
    ) -> ImageEmbedding:
        """Do what ``ImageEncoder.encode`` does; the rows are copied once. `cancel` ends the wait only."""
        images, file = pack([image])
        answer = self._engine.worker().call(
            "encode", {"images": images, "background": list(background)}, file, cancel=cancel
        )
        try:
            if len(answer.fds) != 1:
                raise WireError("rows came without their memory")
            return read_rows(answer.data, answer.fds[0])
        finally:
            close_all(answer.fds)


class IsolatedContext(_StandIn):
    """The sizes of the context in the child process."""

    _names = CONTEXT_FACTS


class IsolatedSampler:
    """How an answer is to be chosen: data, until the child makes a sampler of it.

    What can only be checked there (grammars, constraints, token ids) is made and kept there at once.
    """

    def __init__(self, engine: IsolatedEngine, params: SamplingParams, constraint: Constraint | None) -> None:
        self._data: dict[str, Any] = {
            "params": _plain(params),
            "constraint": None if constraint is None else constraint.grammar,
        }
        self._worker: Worker | None = None
        self._number = 0
        if constraint is not None or params.grammar is not None or params.logit_bias:
            number, worker = next(numbers), engine.worker()
            worker.call("sampler", self._data, number=number)
            self._worker, self._number = worker, number

    def data(self) -> dict[str, Any]:
        """Return what a request says about it."""
        number, self._number = self._number, 0  # the request takes it
        return {**self._data, "sampler": number}

    def close(self) -> None:
        """Free what the child keeps; may be called from a destructor."""
        if self._worker is not None and self._number:
            self._worker.send(Kind.FREE_SAMPLER, self._number)
            self._number = 0


def _plain(params: SamplingParams) -> dict[str, Any]:
    data = dataclasses.asdict(params)
    data["dry_sequence_breakers"] = list(params.dry_sequence_breakers)
    if params.logit_bias:
        data["logit_bias"] = {int(token): float(bias) for token, bias in params.logit_bias.items()}
    return data
