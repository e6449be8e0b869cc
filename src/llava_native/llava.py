"""Llava: a language model and its image encoder, and questions about pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

from llava_native._cancel import CancelToken
from llava_native._context import Context
from llava_native._embedding import ImageEmbedding
from llava_native._encoder import ImageEncoder
from llava_native._model import Model
from llava_native._sampler import Sampler
from llava_native.errors import BusyError, ClosedError, EmbeddingMismatchError, InvalidInputError
from llava_native.params import SamplingParams
from llava_native.prompt import Part, PendingImage, Prompt, Text, check_length, choose_template, pieces
from llava_native.stream import Result, TokenStream

if TYPE_CHECKING:
    from llava_native.images import ImageLike

__all__ = ["Llava"]

PathLike: TypeAlias = "str | os.PathLike[str]"
_Owned = TypeVar("_Owned", Model, ImageEncoder, Context)


class Llava:
    """A language model with an image encoder, in this process.

    Parameters
    ----------
    model : str, os.PathLike or Model
        The text GGUF. A ``Model`` is used, and not closed.
    mmproj : str, os.PathLike or ImageEncoder, optional
        The mmproj GGUF that belongs to it. An ``ImageEncoder`` is used, and not closed. Without one,
        there is only text.
    n_ctx : int, default 4096
        Tokens that a prompt and its answer may have together; an image of LLaVA-1.5 takes 576.
    n_gpu_layers : int, default -1
        Layers on the GPU, where there is one; -1 all.
    n_threads : int, optional
        CPU threads; default the physical cores that this process may use.
    chat_template : {"phi-3", "llama-3", "vicuna", "chatml"}, optional
        Default: chosen by the vocabulary's special tokens.
    dtype, device
        As ``ImageEncoder`` takes them.
    n_batch, n_ubatch, n_seq_max, flash_attn, type_k, type_v
        As ``Context`` takes them.
    kv_overrides : mapping, optional
        As ``Model`` takes it.
    progress : callable of one float, optional
        Called with 0.0 to 1.0 while the text model loads, and again while the encoder does.
    cancel : CancelToken, optional
        Stops the load.

    Raises
    ------
    EmbeddingMismatchError
        The mmproj belongs to another language model.
    LlavaError, OSError
        As ``Model``, ``ImageEncoder`` and ``Context`` raise them.

    Notes
    -----
    Threads: one answer at a time; starting a second one raises ``BusyError``.

    Examples
    --------
    >>> with Llava("text.gguf", "mmproj.gguf") as llava:  # doctest: +SKIP
    ...     print(llava.describe("photo.jpg"))
    """

    def __init__(
        self,
        model: PathLike | Model,
        mmproj: PathLike | ImageEncoder | None = None,
        *,
        n_ctx: int = 4096,
        n_batch: int = 2048,
        n_ubatch: int = 640,
        n_seq_max: int = 4,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        flash_attn: bool | None = None,
        type_k: Literal["f16", "f32", "bf16", "q8_0"] = "f16",
        type_v: Literal["f16", "f32", "bf16", "q8_0"] = "f16",
        dtype: Literal["auto", "f16", "bf16"] = "auto",
        device: str | None = None,
        chat_template: str | None = None,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        progress: Callable[[float], Any] | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._owned: list[Model | ImageEncoder | Context] = []  # in the order they were made
        self._busy = threading.Lock()
        self._closed = False
        self._encoder: ImageEncoder | None = None
        try:
            if not isinstance(model, Model):
                model = self._own(
                    Model(
                        model,
                        n_gpu_layers=n_gpu_layers,
                        kv_overrides=kv_overrides,
                        progress=progress,
                        cancel=cancel,
                    )
                )
            self._model = model
            self._template = choose_template(model, chat_template)
            if mmproj is not None and not isinstance(mmproj, ImageEncoder):
                mmproj = self._own(
                    ImageEncoder(
                        mmproj,
                        n_threads=n_threads,
                        dtype=dtype,
                        device=device,
                        use_gpu=n_gpu_layers != 0,
                        progress=progress,
                        cancel=cancel,
                    )
                )
            self._encoder = mmproj
            self._check_pair()
            self._context = self._own(
                Context(
                    model,
                    n_ctx=n_ctx,
                    n_batch=n_batch,
                    n_ubatch=n_ubatch,
                    n_seq_max=n_seq_max,
                    n_threads=n_threads,
                    flash_attn=flash_attn,
                    type_k=type_k,
                    type_v=type_v,
                )
            )
        except BaseException:
            self.close()
            raise

    def _own(self, made: _Owned) -> _Owned:
        self._owned.append(made)
        return made

    def _check_pair(self) -> None:
        if self._encoder is not None and self._encoder.n_embd != self._model.n_embd:
            raise EmbeddingMismatchError(
                f"the rows of {self._encoder.path} have {self._encoder.n_embd} floats, and "
                f"{self._model.path} takes {self._model.n_embd}: the mmproj belongs to another model"
            )

    @property
    def model(self) -> Model:
        """The language model."""
        return self._model

    @property
    def encoder(self) -> ImageEncoder | None:
        """The image encoder, where there is one."""
        return self._encoder

    @property
    def context(self) -> Context:
        """The context; streams clear it."""
        return self._context

    def describe(
        self,
        image: ImageLike | Sequence[ImageLike],
        prompt: str = "Describe this image.",
        *,
        temperature: float = 0.0,
        **options: Any,
    ) -> str:
        """Return the answer to a question about an image, by default what is on it.

        Parameters
        ----------
        image, prompt, **options
            As ``stream`` takes them.
        temperature : float, default 0.0
            0: the same image gives the same answer.

        Returns
        -------
        str
        """
        return self.generate(prompt, image=image, temperature=temperature, **options).text

    def generate(self, prompt: str, **options: Any) -> Result:
        """Answer, and return the whole answer with its finish reason, usage and timings.

        Takes what ``stream`` takes.
        """
        with self.stream(prompt, **options) as stream:
            return stream.result()

    def stream(
        self,
        prompt: str,
        *,
        image: ImageLike | Sequence[ImageLike] | None = None,
        system: str | None = None,
        max_tokens: int | None = 512,
        stop: str | Sequence[str] = (),
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        **sampling: Any,
    ) -> TokenStream:
        """Answer a question, token by token.

        Parameters
        ----------
        prompt : str
            The user's words. They are text whatever they say: ``<image>`` or ``<|end|>`` in them is no
            image and no special token.
        image : image-like, ImageEmbedding, or a list of these, optional
            What ``ImageEncoder.encode`` takes, or rows that it made. Images stand before the words.
        system : str, optional
            Instructions to the model, where its template has a place for them.
        max_tokens : int, optional
            Default 512; None goes on until the model ends or the context is full.
        stop : str or sequence of str
            The answer ends before the first of these, and shows nothing of it.
        timeout : float, optional
            Seconds from now until ``TimeoutExpiredError``; what came until then is in ``stream.text``.
        cancel : CancelToken, optional
            Ends the answer with the finish reason "cancelled". Instead of `timeout`.
        **sampling
            As ``SamplingParams`` takes them: `temperature`, `top_k`, `top_p`, `min_p`, `seed`,
            `repeat_penalty`, `grammar` and so on.

        Returns
        -------
        TokenStream

        Raises
        ------
        PromptTooLongError
            The prompt does not fit into the context. Nothing was done.
        BusyError
            Another stream of this object is open.
        InvalidInputError
            An option is out of range, or there is an image and no encoder.
        """
        self._check_open()
        if cancel is not None and timeout is not None:
            raise InvalidInputError(
                "give timeout or cancel, not both: a CancelToken has a timeout of its own"
            )
        if max_tokens is not None and not (isinstance(max_tokens, Integral) and max_tokens >= 1):
            raise InvalidInputError(
                f"max_tokens must be an integer of at least 1, or None, not {max_tokens!r}"
            )
        stops = [stop] if isinstance(stop, str) or not isinstance(stop, Iterable) else list(stop)
        if not all(isinstance(text, str) for text in stops):
            raise InvalidInputError(f"stop must be a str or several, not {stop!r}")
        planned = self._plan(prompt, _as_list(image), system)
        cancel = cancel or CancelToken(timeout)
        sampler = Sampler(self._model, SamplingParams(**sampling))
        if not self._busy.acquire(blocking=False):
            sampler.close()
            raise BusyError("another stream of this Llava is open; finish, close or drop it first")
        return TokenStream(
            self._context,
            planned,
            sampler,
            max_tokens=max_tokens,
            stops=[*stops, *self._template.stops],
            cancel=cancel,
            release=self._busy.release,
        )

    def _plan(self, prompt: str, images: list[ImageLike], system: str | None) -> Prompt:
        """Tokenise the text, and refuse what cannot fit before any image is touched."""
        content: list[Part] = []
        for image in images:
            content += [self._image_part(image), Text("\n")]
        content.append(Text(prompt))
        made = pieces(self._model, self._template.start(system) + self._template.turn(content))
        n_tokens = sum(len(piece) for piece in made)
        check_length(n_tokens, self._context.n_ctx_seq)
        return Prompt(made, n_tokens)

    def _image_part(self, image: ImageLike) -> PendingImage | ImageEmbedding:
        if not isinstance(image, ImageEmbedding):
            if self._encoder is None:
                raise InvalidInputError("there is an image, but no mmproj was loaded to encode it")
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

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this Llava was closed")

    def close(self) -> None:
        """Free what this object loaded. May be called again.

        Raises
        ------
        BusyError
            A stream is open.
        """
        if not self._closed and self._busy.locked():
            raise BusyError("a stream of this Llava is open; finish, close or drop it first")
        self._closed = True
        while self._owned:  # the last first: a context needs its model
            self._owned[-1].close()
            self._owned.pop()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Llava({'closed' if self._closed else self._model!r})"


def _as_list(images: ImageLike | Sequence[ImageLike] | None) -> list[ImageLike]:
    """Return images as a list; an array of pixels is one image, not a list of rows."""
    if images is None:
        return []
    return list(images) if isinstance(images, (list, tuple)) else [images]
