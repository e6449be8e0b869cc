"""From messages to a prompt that fits: templates, image parts, and what to leave out when it does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast

from llava_native._embedding import ImageEmbedding
from llava_native.data_url import check_data_url
from llava_native.errors import EmbeddingMismatchError, InvalidInputError
from llava_native.messages import (
    Message,
    MessageDict,
    drop_oldest_image,
    drop_oldest_turn,
    make_content,
    read_messages,
)
from llava_native.prompt import Part, PendingImage, Piece, Prompt, Text, check_length, pieces
from llava_native.remote import RemoteImage
from llava_native.urls import is_data_url, is_web_url, shown

if TYPE_CHECKING:
    from llava_native._encoder import ImageEncoder
    from llava_native._model import Model
    from llava_native.images import ImageLike
    from llava_native.templates import ChatTemplate

__all__ = ["Overflow", "Plan", "Planner"]

Overflow: TypeAlias = Literal["error", "drop_oldest_turn", "drop_oldest_image"]
_DROP = {"drop_oldest_turn": drop_oldest_turn, "drop_oldest_image": drop_oldest_image}


class Plan(NamedTuple):
    """What a prompt will take, known before any work.

    Attributes
    ----------
    text_tokens, image_tokens : int
    n_images : int
    n_ctx : int
        Tokens that prompt and answer may have together.
    dropped : int
        Turns or images that the overflow policy leaves out.
    """

    text_tokens: int
    image_tokens: int
    n_images: int
    n_ctx: int
    dropped: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.text_tokens + self.image_tokens

    @property
    def fits(self) -> bool:
        """Whether the prompt leaves room for a token of the answer."""
        return self.n_tokens < self.n_ctx

    @property
    def room(self) -> int:
        """Tokens that the answer may have."""
        return max(0, self.n_ctx - self.n_tokens)


class Planner:
    """Turns messages into prompts for one model, encoder, template and context size.

    Parameters
    ----------
    model : Model
    encoder : ImageEncoder or None
    template : ChatTemplate
    n_ctx : int
        Tokens of one sequence.
    allow_urls : bool
        Whether images may be fetched from http and https URLs.
    """

    def __init__(
        self, model: Model, encoder: ImageEncoder | None, template: ChatTemplate, n_ctx: int, allow_urls: bool
    ) -> None:
        self.template = template
        self._model = model
        self._encoder = encoder
        self._n_ctx = n_ctx
        self._allow_urls = allow_urls
        texts = {token: text for text, token in model.special_tokens.items()}
        if allow_urls:
            import llava_native.fetch  # noqa: F401 - now: it takes 50 ms, which an event loop has not
        self._bos, self._eos = texts.get(model.bos, ""), texts.get(model.eos, "")

    def question(self, prompt: str, images: Sequence[ImageLike], system: str | None) -> list[Message]:
        """Make the messages of one question about images, which stand before the words."""
        if not isinstance(prompt, str):
            raise TypeError(f"prompt must be a str, not {type(prompt).__name__}")
        user = Message("user", make_content(prompt, [self.image_part(image) for image in images]))
        return [user] if system is None else [Message("system", make_content(system, [])), user]

    def read(self, messages: Sequence[MessageDict] | Sequence[Message]) -> Sequence[Message]:
        """Read messages of OpenAI's form; those that were read already come back as they are."""
        if isinstance(messages, (list, tuple)) and any(isinstance(one, Message) for one in messages):
            if not all(isinstance(one, Message) for one in messages):
                raise InvalidInputError("messages are dicts, or what was read of some before, but not both")
            return [self._own(message) for message in cast("Sequence[Message]", messages)]
        return read_messages(cast("Sequence[MessageDict]", messages), self.image_part, self._open_url)

    def _own(self, message: Message) -> Message:
        """Return a message, perhaps of another planner, with images for this encoder, and allowed here."""
        if not message.images:
            return message
        return dataclasses.replace(message, content=tuple(self.part(part) for part in message.content))

    def part(self, part: Part) -> Part:
        """Return a part of a prompt as this planner would make it."""
        return part if isinstance(part, Text) else self.image_part(part)

    def plan(
        self, messages: Sequence[Message], overflow: Overflow = "error", tools: Sequence[Any] | None = None
    ) -> tuple[Plan, Prompt]:
        """Write the prompt of messages, leaving out what `overflow` says until it fits.

        Returns
        -------
        plan : Plan
        prompt : Prompt
            Not checked to fit.

        Raises
        ------
        TemplateError, InvalidInputError
        """
        if overflow != "error" and overflow not in _DROP:
            raise InvalidInputError(
                f"overflow must be 'error' or one of {', '.join(_DROP)}, not {overflow!r}"
            )
        dropped = 0
        while True:
            made = self.pieces(self.parts(messages, tools))
            images = [len(piece) for piece in made if not isinstance(piece, list)]
            n_tokens = sum(len(piece) for piece in made)
            plan = Plan(n_tokens - sum(images), sum(images), len(images), self._n_ctx, dropped)
            fewer = None if plan.fits or overflow == "error" else _DROP[overflow](messages)
            if fewer is None:
                return plan, Prompt(made, n_tokens)
            messages, dropped = fewer, dropped + 1

    def pieces(self, parts: Iterable[Part]) -> list[Piece]:
        """Tokenise parts into runs of token ids and images, in their order."""
        return pieces(self._model, parts)

    def parts(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[Part]:
        """Write messages, and the start of the answer to them, as parts of a prompt."""
        return self.template.parts(messages, bos=self._bos, eos=self._eos, tools=tools)

    def prompt(
        self, messages: Sequence[Message], overflow: Overflow = "error", tools: Sequence[Any] | None = None
    ) -> Prompt:
        """Write a prompt that fits.

        Raises
        ------
        PromptTooLongError
            It does not, whatever may be left out.
        """
        plan, prompt = self.plan(messages, overflow, tools)
        check_length(plan.n_tokens, self._n_ctx)
        return prompt

    def image_part(self, image: ImageLike) -> PendingImage | ImageEmbedding:
        """Return an image as a part of a prompt; rows are checked to belong to this pair of models.

        What is behind an http URL is fetched once for all prompts that have what this returns.
        """
        if isinstance(image, PendingImage):
            image = image.image
        if not isinstance(image, ImageEmbedding):
            if self._encoder is None:
                raise InvalidInputError("there is an image, but no mmproj was loaded to encode it")
            if is_data_url(image):
                check_data_url(image)  # it is decoded where it is prepared
            elif is_web_url(image):
                image = self._open_url(image)
            elif isinstance(image, RemoteImage) and not image.is_here:
                self._check_allowed(image.url)
            return PendingImage(self._encoder, image)
        made_by = image.fingerprint
        if made_by is not None and self._encoder is not None and made_by != self._encoder.fingerprint:
            raise EmbeddingMismatchError(
                f"the image rows were made by another encoder ({made_by}, this one is "
                f"{self._encoder.fingerprint}); encode the image again"
            )
        if image.n_embd != self._model.n_embd:
            raise EmbeddingMismatchError(
                f"the image rows have {image.n_embd} floats, and this model takes {self._model.n_embd}"
            )
        return image

    def _open_url(self, url: str) -> ImageLike:
        """Return what ``ImageEncoder.encode`` takes for a URL: a path, itself, or what will be fetched."""
        if is_web_url(url):
            self._check_allowed(url)
            return RemoteImage(url)
        if url.startswith("file://"):
            from urllib.request import url2pathname

            return url2pathname(url.removeprefix("file://"))
        return url

    def _check_allowed(self, url: str) -> None:
        if not self._allow_urls:
            raise InvalidInputError(
                f"images are not fetched unless it is allowed: Llava(allow_urls=True) ({shown(url, 99)})"
            )
