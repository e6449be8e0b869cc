"""Chat: a conversation that remembers its turns and images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from llava_native.errors import BusyError, InvalidInputError
from llava_native.messages import Message, make_content
from llava_native.prompt import PendingImage

if TYPE_CHECKING:
    from llava_native.images import ImageLike
    from llava_native.llava import Llava
    from llava_native.planning import Overflow, Plan
    from llava_native.stream import TokenStream

__all__ = ["Chat", "as_list"]


class Chat:
    """A conversation. Made by ``Llava.chat``.

    Every turn is answered with all earlier ones, images included, as the prompt. A turn counts as soon as
    its stream has ended or was closed, with what was answered until then; one that was never answered at
    all is forgotten.

    Notes
    -----
    Threads: one at a time. Any number of chats may go on in one ``Llava``.
    """

    def __init__(
        self, llava: Llava, system: str | None, overflow: Overflow, messages: Sequence[Message] = ()
    ) -> None:
        self._llava = llava
        self._overflow: Overflow = overflow
        self._messages = [] if system is None else [Message("system", make_content(system, []))]
        self._messages += messages
        self._open: tuple[Message, TokenStream] | None = None

    def send(
        self, text: str, image: ImageLike | Sequence[ImageLike] | None = None, **options: Any
    ) -> TokenStream:
        """Say something, perhaps showing images, and return the answer's stream.

        Parameters
        ----------
        text : str
        image, **options
            As ``Llava.stream`` takes them.

        Returns
        -------
        TokenStream

        Raises
        ------
        BusyError
            The answer before is still being generated.
        PromptTooLongError
            The whole conversation does not fit; see ``overflow`` of ``Llava.chat``.
        """
        self._settle()
        (user,) = self._llava.planner.question(text, as_list(image), None)
        options = {"overflow": self._overflow, **options}
        stream = self._llava.respond([*self._messages, user], **options)
        self._open = (user, stream)
        return stream

    @property
    def messages(self) -> list[Message]:
        """The turns so far, the system text first."""
        self._settle()
        return list(self._messages)

    def plan(self, text: str, image: ImageLike | Sequence[ImageLike] | None = None) -> Plan:
        """Tell what sending this would take, without doing it."""
        self._settle()
        (user,) = self._llava.planner.question(text, as_list(image), None)
        return self._llava.plan([*self._messages, user], overflow=self._overflow)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the conversation to a file, for ``Llava.load_chat``.

        It holds the turns, the images, and the keys and values of what is still cached of them, which
        spares their evaluation: 393 kB a token for llava-phi-3-mini. An image of a URL that no answer has
        needed is fetched now.

        Parameters
        ----------
        path : str or os.PathLike
            An existing file is replaced; it appears whole or not at all.

        Raises
        ------
        BusyError
            The answer before is still being generated.
        OSError
            The file cannot be written, or that of an image no longer be read.
        """
        from llava_native.chatfile import write_chat

        write_chat(path, self._llava, self.messages)

    def clear(self) -> None:
        """Forget all turns but the system text."""
        self._settle()
        self._messages = [message for message in self._messages if message.role == "system"]

    def _settle(self) -> None:
        """Remember the turn whose stream has ended."""
        if self._open is None:
            return
        user, stream = self._open
        if stream.finish_reason is None:
            raise BusyError("the answer before is still being generated; finish or close its stream first")
        self._open = None
        if text := stream.text.strip():
            self._messages += [user, Message("assistant", make_content(text, []))]

    def __repr__(self) -> str:
        return f"Chat({len(self._messages)} messages)"


def needed(images: ImageLike | Sequence[ImageLike] | None) -> list[ImageLike]:
    """Return images as a list, which may not be empty.

    Raises
    ------
    InvalidInputError
        There is none.
    """
    found = as_list(images)
    if not found:
        raise InvalidInputError(f"there is no image: {images!r}; generate() and stream() answer without one")
    return found


def as_list(images: ImageLike | Sequence[ImageLike] | None) -> list[ImageLike]:
    """Return images as a list; an array of pixels is one image, not a list of rows."""
    if images is None:
        return []
    is_one = isinstance(images, PendingImage)  # a tuple itself
    return list(images) if isinstance(images, (list, tuple)) and not is_one else [images]
