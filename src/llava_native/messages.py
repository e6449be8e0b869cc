"""Messages of a conversation: OpenAI's dicts, or a prompt and its images, as parts of text and images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from llava_native.errors import InvalidInputError
from llava_native.prompt import Part, PendingImage, Text

if TYPE_CHECKING:
    from llava_native._embedding import ImageEmbedding
    from llava_native.images import ImageLike

__all__ = ["Message", "MessageDict", "drop_oldest_image", "drop_oldest_turn", "make_content", "read_messages"]

ROLES = ("system", "user", "assistant", "tool")
MessageDict: TypeAlias = "Mapping[str, Any]"
MakeImage: TypeAlias = "Callable[[ImageLike], PendingImage | ImageEmbedding]"
_LINE_END = Text("\n")


@dataclasses.dataclass(frozen=True)
class Message:
    """One message: who says it, its parts in their order, and what else its dict has (tool calls)."""

    role: str
    content: tuple[Part, ...]
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def images(self) -> list[int]:
        """Where its images stand in `content`."""
        return [i for i, part in enumerate(self.content) if not isinstance(part, Text)]

    @property
    def bare_content(self) -> list[Part]:
        """Its parts without the ends of line that were put around images."""
        around = {i + step for i in self.images for step in (-1, 1)}
        return [part for i, part in enumerate(self.content) if i not in around or part != _LINE_END]


def make_content(prompt: str, images: Iterable[Part]) -> tuple[Part, ...]:
    """Put images before the words, each on a line of its own, as LLaVA was trained."""
    return _on_lines([*images, Text(prompt)])


def read_messages(
    messages: Sequence[MessageDict], image_part: MakeImage, open_url: Callable[[str], ImageLike]
) -> list[Message]:
    """Read messages as OpenAI's API has them.

    Parameters
    ----------
    messages : sequence of dict
        ``{"role": …, "content": …}``; the content is a str or a list of parts
        ``{"type": "text", "text": …}``, ``{"type": "image_url", "image_url": {"url": …}}`` and, of ours,
        ``{"type": "image", "image": anything image-like}``.
    image_part : callable
        Makes a part of an image.
    open_url : callable
        Gives the image that a URL means.

    Returns
    -------
    list of Message

    Raises
    ------
    InvalidInputError
        A message is not of this form; the number of the message is in the text.
    """
    if isinstance(messages, (str, Mapping)) or not isinstance(messages, Iterable):
        raise InvalidInputError(f"messages must be a list of dicts, not {type(messages).__name__}")
    made = [_read(n, message, image_part, open_url) for n, message in enumerate(messages)]
    if not made:
        raise InvalidInputError("there are no messages")
    return made


def _read(
    n: int, message: MessageDict, image_part: MakeImage, open_url: Callable[[str], ImageLike]
) -> Message:
    if not isinstance(message, Mapping):
        raise InvalidInputError(f"messages[{n}] must be a dict, not {type(message).__name__}")
    role = message.get("role")
    role = "system" if role == "developer" else role
    if role not in ROLES:
        raise InvalidInputError(f"messages[{n}]: the role must be one of {', '.join(ROLES)}, not {role!r}")
    content = message.get("content")
    if content is None and role == "assistant":
        content = ""  # a call of a tool says nothing
    if isinstance(content, str):
        parts: list[Part] = [Text(content)]
    elif isinstance(content, (list, tuple)):
        parts = [_part(f"messages[{n}].content[{i}]", p, image_part, open_url) for i, p in enumerate(content)]
    else:
        raise InvalidInputError(
            f"messages[{n}]: the content must be a str or a list of parts, not {_shown(content)}"
        )
    if role != "user" and any(not isinstance(part, Text) for part in parts):
        raise InvalidInputError(f"messages[{n}]: only a user's message may have images")
    extra = {key: value for key, value in message.items() if key not in ("role", "content")}
    return Message(role, _on_lines(parts), extra)


def _part(where: str, part: Any, image_part: MakeImage, open_url: Callable[[str], ImageLike]) -> Part:
    if isinstance(part, str):
        return Text(part)
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text") and isinstance(part.get("text"), str):
        return Text(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return Text(part["refusal"])
    if kind == "image" and part.get("image") is not None:
        return image_part(part["image"])
    if kind in ("image_url", "input_image"):
        url = part.get("image_url")
        url = url.get("url") if isinstance(url, Mapping) else url
        if isinstance(url, str) and url:
            return image_part(open_url(url))
    raise InvalidInputError(
        f"{where} is none of {{'type': 'text', 'text': …}}, "
        f"{{'type': 'image_url', 'image_url': {{'url': …}}}} and {{'type': 'image', 'image': …}}: "
        f"{_shown(part)}"
    )


def _shown(part: Any) -> str:
    text = repr(part)
    return text if len(text) <= 200 else text[:200] + "…"


def _on_lines(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Give every image a line of its own."""
    out: list[Part] = []
    for i, part in enumerate(parts):
        if not isinstance(part, Text):
            if out and isinstance(out[-1], Text) and not out[-1].text.endswith("\n"):
                out.append(_LINE_END)
            out.append(part)
            following = parts[i + 1] if i + 1 < len(parts) else None
            if not (isinstance(following, Text) and following.text.startswith("\n")):
                out.append(_LINE_END)
        elif part.text:
            out.append(part)
    return tuple(out)


def drop_oldest_turn(messages: Sequence[Message]) -> list[Message] | None:
    """Leave out the oldest message of a user and what answered it; None when only the last is left.

    System messages stay.
    """
    users = [i for i, message in enumerate(messages) if message.role == "user"]
    if len(users) < 2:
        return None
    first, second = users[:2]
    system = [message for message in messages[first:second] if message.role == "system"]
    return [*messages[:first], *system, *messages[second:]]


def drop_oldest_image(messages: Sequence[Message]) -> list[Message] | None:
    """Leave out the oldest image, its line included; None when no image is left, or only the last one."""
    holders = [i for i, message in enumerate(messages) if message.images]
    if not holders or (len(holders) == 1 and len(messages[holders[0]].images) == 1):
        return None
    first = messages[holders[0]]
    at = first.images[0]
    after = first.content[at + 1 :]
    if after[:1] == (_LINE_END,):
        after = after[1:]
    changed = dataclasses.replace(first, content=(*first.content[:at], *after))
    return [*messages[: holders[0]], changed, *messages[holders[0] + 1 :]]
