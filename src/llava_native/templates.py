"""Chat templates: the text that a model family writes around messages, as parts of a prompt."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_native.errors import InvalidInputError, TemplateError
from llava_native.messages import Message
from llava_native.prompt import Part, Text
from llava_native.sandbox import MAX_SOURCE, BoundedTemplate

if TYPE_CHECKING:
    from llava_native._model import Model

__all__ = ["BUILTIN", "ChatTemplate", "choose_template"]

_log = logging.getLogger("llava_native")

VICUNA_SYSTEM = (
    "A chat between a curious human and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the human's questions."
)
_HEADER = "'<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
BUILTIN: dict[str, str] = {
    "phi-3": (
        "{% for message in messages if message['content'] or message['role'] != 'system' %}"
        "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}{{ '<|assistant|>\n' }}"
    ),
    "llama-3": (
        "{% for message in messages if message['content'] or message['role'] != 'system' %}"
        "{{ " + _HEADER + " + message['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
    ),
    "chatml": (
        "{% for message in messages if message['content'] or message['role'] != 'system' %}"
        "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
        "{% endfor %}{{ '<|im_start|>assistant\n' }}"
    ),
    "vicuna": (
        "{% if messages[0]['role'] == 'system' %}"
        "{% if messages[0]['content'] %}{{ messages[0]['content'] + ' ' }}{% endif %}"
        "{% else %}{{ '" + VICUNA_SYSTEM.replace("'", "\\'") + " ' }}{% endif %}"
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] | trim + '</s>' }}"
        "{% endif %}{% endfor %}{{ 'ASSISTANT:' }}"
    ),
    "mistral": (
        "{% set ns = namespace(system='') %}{% for message in messages %}"
        "{% if message['role'] == 'system' %}{% set ns.system = message['content'] %}"
        "{% elif message['role'] == 'user' %}{{ '[INST] ' }}"
        "{% if ns.system %}{{ ns.system + '\n\n' }}{% set ns.system = '' %}{% endif %}"
        "{{ message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] | trim + '</s>' }}"
        "{% endif %}{% endfor %}"
    ),
}
STOPS = {"vicuna": ("USER:",), "mistral": ("[INST]",)}  # what they may go on with instead of ending

_MARKS = {"<|assistant|>": "phi-3", "<|start_header_id|>": "llama-3", "<|im_start|>": "chatml"}
# Private-use characters stand for a part while the template runs, so that nothing in a user's text
# can be taken for the template's own; spaces around a text stay outside, where templates trim them.
_SLOT = re.compile("\ue000(\\d+)\ue001")
_IMAGE = "<image>"  # what templates that know images write for one


@dataclasses.dataclass(frozen=True)
class ChatTemplate:
    """A template, and what ends an answer besides the model's own end tokens.

    Attributes
    ----------
    name : str
        One of `BUILTIN`, or where the template came from.
    source : str
        Jinja.
    stops : tuple of str
    """

    name: str
    source: str
    stops: tuple[str, ...] = ()
    _compiled: BoundedTemplate = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_compiled", BoundedTemplate(self.source))

    def parts(
        self, messages: Sequence[Message], *, bos: str = "", eos: str = "", tools: Sequence[Any] | None = None
    ) -> list[Part]:
        """Write the messages, and the start of the answer to them.

        Parameters
        ----------
        messages : sequence of Message
        bos, eos : str
            Text of these tokens, for templates that write them.
        tools : sequence of dict, optional
            As OpenAI's API has them, for templates that know tools.

        Returns
        -------
        list of Part
            The template's own text may name special tokens; the messages' texts are text.

        Raises
        ------
        TemplateError
            The template fails, or leaves out an image or a user's words.

        Notes
        -----
        Messages are given to the template as one string each. Where it has no place for them then, they
        are given as lists of parts. A system text that it leaves out is put before the first question.
        Tools that it has no place for are left out, with a warning in the log.
        """
        if tools and "tools" not in self.source:
            _warn_of_tools(self.name)
        variables = {"bos_token": bos, "eos_token": eos, "add_generation_prompt": True, "tools": tools}
        attempts = [(messages, False), (messages, True)]
        if (merged := _without_system(messages)) is not None:
            attempts.insert(1, (merged, False))
        failure, drops = None, False
        for wanted, as_parts in attempts:
            slots = _Slots(wanted, as_parts)
            try:
                text = self._compiled.render(messages=slots.dicts, **variables)
            except TemplateError as exc:
                failure = failure or exc
                continue
            made = slots.fill(text)
            if made is not None:
                return made
            drops = True
        if failure is not None and not drops:
            raise failure
        raise TemplateError(
            f"the chat template ({self.name}) leaves out an image or words of these messages; "
            f"choose another: chat_template={', '.join(map(repr, BUILTIN))}, Jinja source, or a file"
        )


@functools.cache  # once
def _warn_of_tools(name: str) -> None:
    _log.warning("the chat template (%s) knows no tools: the model is not told of them", name)


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """Put the system text before the first question; None where there is no such text or question."""
    system, *others = messages
    first = next((i for i, message in enumerate(others) if message.role == "user"), None)
    if system.role != "system" or first is None:
        return None
    content = (*system.content, Text("\n\n"), *others[first].content)
    others[first] = dataclasses.replace(others[first], content=content)
    return others


class _Slots:
    """Messages as a template takes them, with a mark in the place of every text and image."""

    def __init__(self, messages: Sequence[Message], as_parts: bool) -> None:
        self._parts: list[Part] = []
        self._needed: set[int] = set()
        self._images: list[int] = []
        self._as_parts = as_parts
        self.dicts = [self._dict(message) for message in messages]

    def _dict(self, message: Message) -> dict[str, Any]:
        made: list[dict[str, str]] = []
        for part in message.bare_content if self._as_parts else message.content:
            mark = self._mark(part, message.role != "assistant")  # thoughts of old answers may be left out
            image = not isinstance(part, Text)
            made.append({"type": "image"} if image and self._as_parts else {"type": "text", "text": mark})
        content: Any = made if self._as_parts else "".join(part["text"] for part in made)
        return {**message.extra, "role": message.role, "content": content}

    def _mark(self, part: Part, needed: bool) -> str:
        n = len(self._parts)
        mark = f"\ue000{n}\ue001"
        if isinstance(part, Text):
            bare = part.text.strip()
            if not bare:
                return part.text
            lead, _, trail = part.text.partition(bare)
            self._parts.append(Text(bare))
            mark = lead + mark + trail
        else:
            self._parts.append(part)
            self._images.append(n)
        if needed:
            self._needed.add(n)
        return mark

    def fill(self, text: str) -> list[Part] | None:
        """Put the parts where their marks stand in `text`; None where one that is needed does not."""
        if self._as_parts:
            if text.count(_IMAGE) != len(self._images):
                return None
            for n in self._images:
                text = text.replace(_IMAGE, f"\ue000{n}\ue001", 1)
        pieces = _SLOT.split(text)
        used = [int(n) for n in pieces[1::2]]
        if not self._needed <= set(used) or sorted(n for n in used if n in self._images) != self._images:
            return None
        if any(n >= len(self._parts) for n in used):
            raise TemplateError("the chat template writes private-use characters")
        out: list[Part] = []
        for i, piece in enumerate(pieces):
            if i % 2:
                out.append(self._parts[int(piece)])
            elif piece:
                out.append(Text(piece, special=True))
        return out


def choose_template(model: Model, chosen: str | os.PathLike[str] | None = None) -> ChatTemplate:
    """Return a template by name, source or file, or the one that belongs to a model.

    Parameters
    ----------
    model : Model
    chosen : str or path-like, optional
        A name of `BUILTIN`, Jinja source (with ``{{`` or ``{%`` in it), or a file of it. Default: the
        model file's own template, else the one whose special tokens the vocabulary has, else Mistral's
        or Vicuna's by the model's name.

    Raises
    ------
    InvalidInputError
        There is no template of that name, and no such file.
    TemplateError
        It does not parse.
    """
    if chosen is not None:
        return _named(chosen)
    if model.chat_template:
        try:
            return ChatTemplate("the model file's own", model.chat_template)
        except TemplateError as exc:
            _log.warning("%s: %s; a built-in template is used", model.path, exc)
    known = model.special_tokens
    name = next((family for mark, family in _MARKS.items() if mark in known), None)
    if name is None:
        called = model.metadata.get("general.name", "").lower()
        name = "mistral" if "mistral" in called or "bakllava" in called else "vicuna"
    return _named(name)


def _named(chosen: str | os.PathLike[str]) -> ChatTemplate:
    if chosen in BUILTIN:
        return ChatTemplate(str(chosen), BUILTIN[str(chosen)], STOPS.get(str(chosen), ()))
    if isinstance(chosen, str) and ("{{" in chosen or "{%" in chosen):
        return ChatTemplate("given", chosen)
    if not isinstance(chosen, (str, os.PathLike)):
        raise InvalidInputError(f"chat_template must be a name, Jinja source or a file, not {chosen!r}")
    path = Path(chosen)
    try:
        with path.open(encoding="utf-8") as file:
            return ChatTemplate(str(path), file.read(MAX_SOURCE + 1))
    except (OSError, ValueError) as exc:
        raise InvalidInputError(
            f"chat_template must be one of {', '.join(BUILTIN)}, Jinja source or a file of it; "
            f"{os.fspath(chosen)!r} is none of these ({exc})"
        ) from exc
