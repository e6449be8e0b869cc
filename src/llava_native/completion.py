"""OpenAI's chat completions: its dicts in, its dicts out, with llama-cpp-python's signature."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from itertools import chain, islice
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final

from llava_native.errors import InvalidInputError
from llava_native.params import SamplingParams
from llava_native.text import Utf8Decoder

if TYPE_CHECKING:
    from llava_native.llava import Llava
    from llava_native.stream import FinishReason, Token, TokenStream

__all__ = ["create_chat_completion"]

_FINISH: Final[dict[FinishReason, str]] = {
    "eog": "stop", "stop": "stop", "length": "length", "cancelled": "length",
}  # fmt: skip
_PASSED: Final = frozenset({field.name for field in fields(SamplingParams)}) | {
    "timeout", "cancel", "overflow", "constraint",
}  # fmt: skip
_IGNORED: Final = {"tfs_z": 1.0, "n": 1}  # at these values, which change nothing; and any `user`
_MINUS_ONE: Final = {"seed": None, "top_k": 0}  # what it means to llama.cpp
_REFUSED: Final = {
    "functions": "use tools",
    "function_call": "use tools",
    "logits_processor": "use grammar, response_format or logit_bias",
}


def create_chat_completion(
    llava: Llava,
    messages: Sequence[Mapping[str, Any]],
    *,
    stream: bool = False,
    max_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    tools: Sequence[Any] | None = None,
    tool_choice: str | None = None,
    response_format: Mapping[str, Any] | None = None,
    grammar: str | None = None,
    logprobs: bool | None = None,
    top_logprobs: int | None = None,
    logit_bias: Mapping[Any, float] | None = None,
    model: str | None = None,
    stream_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> dict[str, Any] | Iterator[dict[str, Any]]:
    """Answer a conversation in OpenAI's shapes, with llama-cpp-python's signature.

    Parameters
    ----------
    llava : Llava
    messages, tools
        As ``Llava.respond`` takes them. An "image_url" or "image" may be any path that this process can
        read: of strangers, accept images as ``data:`` URLs only. Tool calls in an answer are text.
    stream : bool, default False
        Return an iterator of ``chat.completion.chunk`` dicts instead of one ``chat.completion``.
    max_tokens : int, optional
        Default, and with 0 or less: until the model ends or the context is full.
    max_completion_tokens : int, optional
        OpenAI's name for it; at least 1.
    stop : str or sequence of str, optional
    tool_choice : {"auto", "none"}, optional
    response_format : dict, optional
        ``{"type": "json_object"}``, with a ``"schema"`` if wanted, or ``{"type": "json_schema",
        "json_schema": {"schema": …}}``. An answer that is not cut short parses.
    grammar : str, optional
        GBNF; like `constraint`, instead of a `response_format` other than text.
    logprobs : bool, optional
    top_logprobs : int, optional
        0 to 20.
    logit_bias : mapping of token id to float, optional
    model : str, optional
        The name to write into the answer; default the model file's.
    stream_options : dict, optional
        ``{"include_usage": True}`` ends a stream with a chunk of the usage.
    **options
        `temperature` (0.2 by default) and everything else that ``SamplingParams`` takes, `timeout`,
        `cancel`, `overflow`, `constraint`; OpenAI's `n` of 1 and `user`. None is the default, and -1 as
        `seed` or `top_k` what it is to llama.cpp: a random one, and all.

    Returns
    -------
    dict, or iterator of dict
        An iterator that is closed or dropped ends the answer. The finish reason is "stop" or "length", also
        of an answer that was cancelled.

    Raises
    ------
    InvalidInputError
        An option is unknown, or not supported.
    LlavaError
        As ``Llava.respond``.
    """
    asked = {"temperature": 0.2, **_given(options)}
    if grammar is not None:
        asked["grammar"] = grammar
    if logit_bias:
        asked["logit_bias"] = {_token_id(key): bias for key, bias in logit_bias.items()}
    if (constraint := _constraint(response_format)) is not None:
        if taken := asked.keys() & {"grammar", "constraint"}:
            raise InvalidInputError(f"give response_format or {min(taken)}, not both")
        asked["constraint"] = constraint
    tokens = llava.respond(
        messages,
        tools=_chosen_tools(tools, tool_choice),
        max_tokens=_limit(max_tokens, max_completion_tokens),
        stop=stop or (),
        logprobs=_n_logprobs(logprobs, top_logprobs),
        **asked,
    )
    shape = _Shape(model or llava.name, llava.model.token_bytes)
    if stream:
        return shape.chunks(tokens, bool((stream_options or {}).get("include_usage")))
    return shape.whole(tokens)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    """Return options other than the default; refuse what is not supported, by name."""
    given = {}
    for name, value in options.items():
        if value is None or name == "user" or (name in _IGNORED and value == _IGNORED[name]):
            continue
        if name not in _PASSED:
            hint = _REFUSED.get(name, "it is unknown or not supported")
            raise InvalidInputError(f"create_chat_completion: {name}={value!r}: {hint}")
        if name in _MINUS_ONE and value == -1:
            value = _MINUS_ONE[name]
        given[name] = value
    return given


def _limit(max_tokens: int | None, max_completion_tokens: int | None) -> int | None:
    """Return how many tokens an answer may have; None for any number."""
    if max_completion_tokens is None:
        return None if isinstance(max_tokens, Integral) and max_tokens <= 0 else max_tokens
    if not (isinstance(max_completion_tokens, Integral) and max_completion_tokens >= 1):
        raise InvalidInputError(
            f"max_completion_tokens must be an integer of at least 1, not {max_completion_tokens!r}"
        )
    return max_completion_tokens


def _token_id(key: Any) -> int:
    try:
        return int(key)  # JSON has no other keys than strings
    except (TypeError, ValueError):
        raise InvalidInputError(f"logit_bias: a token id is an integer, not {key!r}") from None


def _chosen_tools(tools: Sequence[Any] | None, choice: Any) -> Sequence[Any] | None:
    if choice in (None, "auto"):
        return tools
    if choice == "none":
        return None
    raise InvalidInputError(f"tool_choice must be 'auto' or 'none', not {choice!r}")


def _n_logprobs(logprobs: bool | None, top: int | None) -> int | None:
    if not logprobs:
        if top:
            raise InvalidInputError("top_logprobs needs logprobs=True")
        return None
    if top is not None and not (isinstance(top, Integral) and 0 <= top <= 20):
        raise InvalidInputError(f"top_logprobs must be 0 to 20, not {top!r}")
    return top or 0


def _constraint(response_format: Mapping[str, Any] | None) -> Any:
    """Return what an answer must follow; None for plain text."""
    from llava_native.constraint import Constraint

    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        schema = response_format.get("schema")
        return Constraint.json_schema({"type": "object"} if schema is None else schema)
    if kind == "json_schema":
        wrapped = response_format.get("json_schema")
        if isinstance(wrapped, Mapping) and isinstance(wrapped.get("schema"), (Mapping, bool)):
            return Constraint.json_schema(wrapped["schema"])
        raise InvalidInputError("response_format: json_schema must be {'name': …, 'schema': {…}}")
    raise InvalidInputError(
        f"response_format must be of type 'text', 'json_object' or 'json_schema', not {kind!r}"
    )


class _Shape:
    """Writes one answer in OpenAI's shapes."""

    def __init__(self, model: str, token_bytes: Callable[[int], bytes]) -> None:
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
        self._token_bytes = token_bytes

    def whole(self, stream: TokenStream) -> dict[str, Any]:
        """Generate everything, and return a ``chat.completion``."""
        with stream:
            logprobs = [one for _, found in self._pieces(stream) for one in found]
            result = stream.result()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": result.text, "refusal": None},
            "logprobs": {"content": logprobs, "refusal": None} if logprobs else None,
            "finish_reason": _FINISH[result.finish_reason],
        }
        return {
            **self._head, "object": "chat.completion", "choices": [choice], "usage": self._usage(stream),
        }  # fmt: skip

    def chunks(self, stream: TokenStream, with_usage: bool) -> Iterator[dict[str, Any]]:
        """Yield ``chat.completion.chunk`` dicts; closing or dropping the iterator ends the answer."""
        with stream:
            pieces = self._pieces(stream)
            first = list(islice(pieces, 1))  # before anything is told: an image may turn out to be none
            yield self._chunk({"role": "assistant", "content": ""}, None)
            for text, found in chain(first, pieces):
                if text or found:
                    yield self._chunk({"content": text}, None, found)
            yield self._chunk({}, _FINISH[stream.finish_reason or "cancelled"])
            if with_usage:
                yield {
                    **self._head, "object": "chat.completion.chunk", "choices": [],
                    "usage": self._usage(stream),
                }  # fmt: skip

    def _pieces(self, stream: TokenStream) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Yield pieces of the text, each with the log-probabilities of the tokens that it begins to show.

        What is held back, for a character or a stop string, waits; what a stop string cuts off is left out.
        """
        decoder, n_decoded, n_shown = Utf8Decoder(), 0, 0
        held: list[tuple[int, Token]] = []  # with where the text of each begins
        for token in stream:
            n_shown += len(token.text)
            if token.logprob is not None:
                held.append((n_decoded, token))
                n_decoded += len(decoder.feed(self._token_bytes(token.id)))
            n = sum(start < n_shown for start, _ in held)
            yield token.text, [self._logprob(token) for _, token in held[:n]]
            del held[:n]
        if stream.finish_reason in ("eog", "length"):  # then tokens without a text are all that is left
            yield "", [self._logprob(token) for _, token in held]

    def _chunk(
        self, delta: dict[str, Any], finish: str | None, logprobs: Sequence[Any] = ()
    ) -> dict[str, Any]:
        choice = {
            "index": 0,
            "delta": delta,
            "logprobs": {"content": list(logprobs), "refusal": None} if logprobs else None,
            "finish_reason": finish,
        }
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice]}

    def _usage(self, stream: TokenStream) -> dict[str, int]:
        usage = stream.usage
        return {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.total_tokens,
        }

    def _logprob(self, token: Token) -> dict[str, Any]:
        one = self._one(token.id, token.logprob)
        return {**one, "top_logprobs": [self._one(i, value) for i, value in token.top_logprobs]}

    def _one(self, token: int, logprob: float | None) -> dict[str, Any]:
        raw = self._token_bytes(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}
