"""Llava: a language model and its image encoder, and questions about pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from llava_native._cancel import CancelToken
from llava_native._context import Context
from llava_native._encoder import ImageEncoder
from llava_native._model import Model
from llava_native.bulk import ImageMap, answers
from llava_native.chat import Chat, as_list, needed
from llava_native.constraint import Constraint, checked
from llava_native.engine import RUN_AHEAD, Engine, Stats
from llava_native.errors import InvalidInputError
from llava_native.exiting import closed_error
from llava_native.loading import Adapters, PathLike, make_parts
from llava_native.messages import Message, MessageDict
from llava_native.params import sampling_params
from llava_native.planning import Overflow, Plan, Planner
from llava_native.prompt import Part, Prompt, check_length
from llava_native.stream import Result, TokenStream, check_limits

if TYPE_CHECKING:
    from llava_native.images import ImageLike

__all__ = ["Llava"]


class Llava:
    """A language model with an image encoder, in this process or, with `isolate`, in one of its own.

    Parameters
    ----------
    model : str, os.PathLike or Model
        The text GGUF. A ``Model`` is used, and not closed.
    mmproj : str, os.PathLike or ImageEncoder, optional
        The mmproj GGUF that belongs to it. An ``ImageEncoder`` is used, and not closed. Without one,
        there is only text.
    n_ctx : int, default 4096
        Tokens of a prompt and its answer, rounded up to a multiple of 256; an image of LLaVA-1.5 takes 576.
    n_gpu_layers : int, default -1
        Layers on the GPU, where there is one; -1 all.
    n_threads : int, optional
        CPU threads; default the physical cores that this process may use.
    chat_template : {"phi-3", "llama-3", "vicuna", "mistral", "chatml"}, str or os.PathLike, optional
        A built-in template's name, Jinja source, or a file of it. Default: the model file's own, else
        chosen by the vocabulary's special tokens.
    allow_urls : bool, default False
        Fetch images from http and https URLs, with limits on size and time, and from public addresses
        only.
    lora : str, os.PathLike, (path, scale), or a list of these, optional
        LoRA adapters of the text model, GGUF files; a scale of 1.0 takes all of one.
    dtype, device, kv_overrides, repack, n_batch, n_ubatch, flash_attn, type_k, type_v
        As ``ImageEncoder``, ``Model`` and ``Context`` take them.
    n_seq_max : int, default 4
        Answers that are generated together; one, and no prefix is cached, if the model is recurrent.
    prefix_cache : int, optional
        Tokens of finished requests to hold in the context and, on a CPU, as many in main memory while that is
        free; default half of `n_ctx`, on a GPU a quarter; 0 none.
    embedding_cache : int, default 256 MiB
        Bytes of image rows to hold in memory; an image of llava-phi-3-mini takes 7 MB.
    cache_dir : str or os.PathLike, optional
        A folder for image rows, which processes may share. It only grows.
    max_waiting : int, default 1024
        Requests that may wait; one more raises ``BusyError``.
    prompt_lookup : int, default 0
        Tokens to guess ahead, from what followed the last three before: see docs/guide.md.
    memory_limit : int, optional
        Bytes that it may take. Default: what the machine, or this process's control group, has; then what
        is not mapped from the file must be free.
    isolate : bool, default False
        Load and run in a child process: what kills it there is a ``NativeAbort`` here, and the next request
        starts it again. `model`, `encoder` and `context` are then stand-ins. See docs/safety.md.
    progress : callable of one float, optional
        Called with 0.0 to 1.0 while the text model loads, and again while the encoder does.
    cancel : CancelToken, optional
        Stops the load.

    Raises
    ------
    EmbeddingMismatchError
        The mmproj belongs to another language model.
    NotEnoughMemoryError
        It cannot fit into memory; nothing was loaded.
    LlavaError, OSError
        As ``Model``, ``ImageEncoder`` and ``Context`` raise them.

    Notes
    -----
    Threads: any number at once. Up to `n_seq_max` answers are generated together, others wait their turn. A
    thread of its own, which starts with the first answer, does the work. What requests have in common from
    their start is evaluated once, and an image encoded once, as long as the caches hold them.
    """

    def __init__(
        self,
        model: PathLike | Model,
        mmproj: PathLike | ImageEncoder | None = None,
        *,
        n_ctx: int = 4096,
        n_batch: int = 2048,
        n_ubatch: int = 672,
        n_seq_max: int = 4,
        prefix_cache: int | None = None,
        embedding_cache: int = 256 << 20,
        cache_dir: PathLike | None = None,
        max_waiting: int = 1024,
        prompt_lookup: int = 0,
        n_gpu_layers: int = -1,
        n_threads: int | None = None,
        flash_attn: bool | None = None,
        type_k: Literal["f16", "f32", "bf16", "q8_0"] = "f16",
        type_v: Literal["f16", "f32", "bf16", "q8_0"] = "f16",
        dtype: Literal["auto", "f16", "bf16"] = "auto",
        device: str | None = None,
        lora: Adapters = None,
        chat_template: PathLike | None = None,
        allow_urls: bool = False,
        memory_limit: int | None = None,
        isolate: bool = False,
        repack: bool | None = None,
        kv_overrides: Mapping[str, bool | int | float | str] | None = None,
        progress: Callable[[float], Any] | None = None,
        cancel: CancelToken | None = None,
    ) -> None:
        self._parts = make_parts(
            isolate, model, mmproj, chat_template, n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch,
            n_seq_max=n_seq_max, prefix_cache=prefix_cache, embedding_cache=embedding_cache,
            cache_dir=cache_dir, max_waiting=max_waiting, prompt_lookup=prompt_lookup,
            memory_limit=memory_limit, n_gpu_layers=n_gpu_layers, n_threads=n_threads, flash_attn=flash_attn,
            type_k=type_k, type_v=type_v, dtype=dtype, device=device, lora=lora, kv_overrides=kv_overrides,
            repack=repack, progress=progress, cancel=cancel,
        )  # fmt: skip
        self._model, self._encoder = self._parts.model, self._parts.encoder
        self._context, self._engine = self._parts.context, self._parts.engine
        self._planner = self._parts.planner(allow_urls)

    @classmethod
    def demo(cls, **options: Any) -> Self:
        """Open the embedded model, which knows coloured shapes and printed words; `n_ctx`: default 2048."""
        from llava_native.demo import demo_files

        model, mmproj = demo_files()
        return cls(model, mmproj, **{"n_ctx": 2048, **options})

    @classmethod
    def from_pretrained(
        cls, repo: str, filename: str | None = None, mmproj: str | Literal[False] | None = None, **load: Any
    ) -> Self:
        """Open a model of the Hugging Face hub; what its cache lacks is fetched.

        Takes what ``llava_native.hub.download``, which finds the mmproj by itself, and the constructor take.
        """
        from llava_native.hub import opening

        return cls(**opening(repo, filename, mmproj, load))

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
        """The context, to look at; the engine uses it."""
        return self._context

    @property
    def engine(self) -> Engine:
        """The engine that answers; of its own, not a caller's."""
        return self._engine

    @property
    def name(self) -> str:
        """The model file's name, without its folder and ending."""
        return Path(self._model.path).stem

    @property
    def planner(self) -> Planner:
        """What turns messages into prompts."""
        return self._planner

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
        """
        return self.generate(prompt, image=needed(image), temperature=temperature, **options).text

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
        **options: Any,
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
            Instructions to the model; "" also leaves out a template's own.
        **options
            As ``respond`` takes them: `max_tokens`, `stop`, `timeout`, `cancel`, and everything that
            ``SamplingParams`` takes.

        Returns
        -------
        TokenStream
        """
        self._check_open()
        return self.respond(self._planner.question(prompt, as_list(image), system), **options)

    def respond(
        self,
        messages: Sequence[MessageDict] | Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        overflow: Overflow = "error",
        **options: Any,
    ) -> TokenStream:
        """Answer a conversation, token by token.

        Parameters
        ----------
        messages : sequence of dict
            As OpenAI's API has them: ``role`` and ``content``, which is a str or a list of parts of type
            "text", "image_url" (a data URI, a path or, with `allow_urls`, an http URL) and, of ours,
            "image" (``{"type": "image", "image": anything image-like}``).
        tools : sequence of dict, optional
            For templates that know tools.
        overflow : {"error", "drop_oldest_turn", "drop_oldest_image"}, default "error"
            What to leave out of a prompt that does not fit.
        max_tokens : int, optional
            Default 512; None goes on until the model ends or the context is full.
        stop : str or sequence of str
            The answer ends before the first of these, and shows nothing of it.
        timeout : float, optional
            Seconds from now until ``TimeoutExpiredError``; what came until then is in ``stream.text``.
        cancel : CancelToken, optional
            Ends the answer with the finish reason "cancelled". Instead of `timeout`.
        logprobs : int, optional
            Give each token its log-probability, and so many of the likeliest ones.
        constraint : llava_native.constraint.Constraint, optional
            JSON schema, regular expression or Lark grammar that the whole answer must follow.
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
        InvalidInputError
            An option or a message is not as it should be, or there is an image and no encoder.
        TemplateError
            The chat template fails on these messages.
        """
        self._check_open()
        prompt = self._planner.prompt(self._planner.read(messages), overflow, tools)
        return self._open_stream(prompt, self._planner.template.stops, **options)

    def ask(
        self, image: ImageLike | Sequence[ImageLike], questions: Iterable[str], **options: Any
    ) -> list[str]:
        """Answer several questions about an image together; return the answers in their order.

        The image is encoded and evaluated once. `image` and `options` are what ``stream`` takes.
        """
        self._check_open()
        images = [self._planner.image_part(one) for one in needed(image)]

        def open_stream(question: str) -> TokenStream:
            return self.stream(question, image=images, run_ahead=None, **options)

        return [answer.text for answer in answers(open_stream, questions)]

    def map(
        self,
        images: Iterable[ImageLike],
        prompt: str = "Describe this image.",
        *,
        ordered: bool = True,
        window: int | None = None,
        **options: Any,
    ) -> ImageMap:
        """Answer one question about many images; decoding, encoding and generation overlap.

        Parameters
        ----------
        images : iterable of image-like
            Any number: a few are read ahead of the answers, and none is kept. A list in it is several
            images of one prompt.
        prompt, **options
            As ``stream`` takes them.
        ordered : bool, default True
            Whether answers come in the order of the images, and not as they are done.
        window : int, optional
            Images on their way at once; default twice `n_seq_max` and four more.

        Returns
        -------
        ImageMap
            Of ``MapItem``. A bad image yields its error, and the others go on. ``close()`` ends it early.
        """
        self.stream(prompt, **options).close()  # a mistake in the options is not each image's

        def open_stream(image: ImageLike) -> TokenStream:
            return self.stream(prompt, image=needed(image), run_ahead=None, keep_images=False, **options)

        window = 2 * self._engine.n_running + 4 if window is None else window
        return ImageMap(open_stream, images, window=window, ordered=ordered)

    def stats(self) -> Stats:
        """Return what was done since this object was made, and what is going on: counters of its engine."""
        return self._engine.stats()

    def create_chat_completion(self, messages: Sequence[MessageDict], **options: Any) -> Any:
        """Answer in OpenAI's shapes; see ``llava_native.completion.create_chat_completion``."""
        from llava_native.completion import create_chat_completion

        return create_chat_completion(self, messages, **options)

    def plan(
        self,
        messages: Sequence[MessageDict] | Sequence[Message],
        *,
        tools: Sequence[Any] | None = None,
        overflow: Overflow = "error",
    ) -> Plan:
        """Tell, before any work, what a conversation as ``respond`` takes it needs, and whether it fits."""
        self._check_open()
        return self._planner.plan(self._planner.read(messages), overflow, tools)[0]

    def stream_prompt(self, parts: Sequence[Part], **options: Any) -> TokenStream:
        """Go on from a prompt that is given as it is, without a chat template.

        Parameters
        ----------
        parts : sequence of Part
            ``Text`` of ``llava_native.prompt``, and what ``image_part`` of ``planner`` makes of images.
        **options
            As ``respond`` takes them. No template's stop strings apply.
        """
        self._check_open()
        made = self._planner.pieces(map(self._planner.part, parts))
        n_tokens = sum(len(piece) for piece in made)
        check_length(n_tokens, self._context.n_ctx_seq)
        return self._open_stream(Prompt(made, n_tokens), **options)

    def chat(
        self,
        system: str | None = None,
        *,
        messages: Sequence[MessageDict] = (),
        overflow: Overflow = "error",
    ) -> Chat:
        """Begin a conversation that remembers its turns and images.

        Parameters
        ----------
        system : str, optional
            Instructions to the model.
        messages : sequence of dict
            Turns that it begins with, as ``respond`` takes them.
        overflow
            As ``respond`` takes it.

        Returns
        -------
        Chat
        """
        self._check_open()
        return Chat(self, system, overflow, self._planner.read(messages) if messages else ())

    def load_chat(self, path: PathLike, *, overflow: Overflow = "error") -> Chat:
        """Go on with a conversation that ``Chat.save`` wrote.

        Raises
        ------
        ChatFileError
            It is damaged, or was held with another model.
        """
        from llava_native.chatfile import read_chat

        self._check_open()
        return Chat(self, None, overflow, read_chat(path, self))

    def _open_stream(
        self,
        prompt: Prompt,
        template_stops: Sequence[str] = (),
        *,
        max_tokens: int | None = 512,
        stop: str | Sequence[str] = (),
        timeout: float | None = None,
        cancel: CancelToken | None = None,
        logprobs: int | None = None,
        constraint: Constraint | None = None,
        run_ahead: int | None = RUN_AHEAD,
        keep_images: bool = True,
        **sampling: Any,
    ) -> TokenStream:
        if cancel is not None and timeout is not None:
            raise InvalidInputError(
                "give timeout or cancel, not both: a CancelToken has a timeout of its own"
            )
        stops = check_limits(max_tokens, stop, logprobs)
        params = sampling_params(sampling)
        if constraint is None and params.grammar is None:  # else it says where the answer ends
            stops += template_stops
        return TokenStream(
            self._engine,
            prompt,
            self._parts.sampler(params, checked(constraint)),
            max_tokens=max_tokens,
            stops=stops,
            cancel=cancel,
            timeout=timeout,
            logprobs=logprobs,
            run_ahead=run_ahead,
            keep_images=keep_images,
        )

    def _check_open(self) -> None:
        if self._engine.closed:
            raise closed_error()

    def close(self) -> None:
        """Free what this object loaded. May be called again.

        Raises
        ------
        BusyError
            A stream is open. The end of a ``with`` block closes those first.
        """
        self._parts.close()

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._engine.closed

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for opened in list(self._engine.streams.values()):
            if (stream := opened()) is not None:
                stream.close()
        self._engine.close()  # also those that somebody is inside of
        self.close()

    def __repr__(self) -> str:
        return f"Llava({'closed' if self._engine.closed else self._model!r})"
