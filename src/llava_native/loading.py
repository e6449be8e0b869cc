"""Parts: the model, encoder, context and engine of a Llava, loaded together and closed together."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from llava_native._context import Context
from llava_native._encoder import ImageEncoder
from llava_native._lora import LoraAdapter, set_adapters
from llava_native._model import Model
from llava_native._native import devices
from llava_native._sampler import Sampler
from llava_native.engine import Engine, n_sequences
from llava_native.errors import BusyError, EmbeddingMismatchError, InvalidInputError
from llava_native.images import load_decoders
from llava_native.limits import check_range
from llava_native.machine import Room, gpus, host_room
from llava_native.memory import check_fits, estimate_pair
from llava_native.planning import Planner
from llava_native.templates import choose_template

if TYPE_CHECKING:
    from llava_native.constraint import Constraint, Matcher, Vocabulary
    from llava_native.params import SamplingParams

__all__ = ["Adapters", "Parts", "PathLike", "adapter_list", "make_parts"]

PathLike: TypeAlias = "str | os.PathLike[str]"
Adapters: TypeAlias = "PathLike | tuple[PathLike, float] | Sequence[PathLike | tuple[PathLike, float]] | None"
_Owned = TypeVar("_Owned", Model, ImageEncoder, Context)


def make_parts(isolate: bool, *files: Any, **options: Any) -> Parts:
    """Return ``Parts``, or what takes their place where the work is done in a child process."""
    if not isolate:
        return Parts(*files, **options)
    from llava_native.isolation.parts import IsolatedParts  # pays its imports only when used

    return cast("Parts", IsolatedParts(*files, **options))


def adapter_list(lora: Adapters) -> list[tuple[str, float]]:
    """Return the paths and scales of LoRA adapters, in whatever way they were named."""
    if lora is None:
        return []
    if isinstance(lora, (str, os.PathLike)) or (len(lora) == 2 and isinstance(lora[1], (int, float))):
        lora = [cast("PathLike", lora)]
    named = [item if isinstance(item, (tuple, list)) else (item, 1.0) for item in lora]
    try:
        return [(os.fsdecode(cast("PathLike", path)), float(scale)) for path, scale in named]
    except (TypeError, ValueError) as exc:
        raise InvalidInputError(f"lora must be paths, or pairs of a path and a scale: {lora!r}") from exc


class Parts:
    """What a ``Llava`` is made of. Takes what it takes; where loading fails, nothing is left.

    Attributes
    ----------
    model : Model
    encoder : ImageEncoder or None
    context : Context
    engine : Engine
    template : ChatTemplate
    """

    def __init__(
        self,
        model: PathLike | Model,
        mmproj: PathLike | ImageEncoder | None,
        chat_template: PathLike | None,
        **options: Any,
    ) -> None:
        self._adapters: list[LoraAdapter] = []
        self._owned: list[Model | ImageEncoder | Context] = []  # in the order they were made
        self._engine: Engine | None = None
        self._closing = threading.Lock()
        self._vocabulary: Vocabulary | None = None  # made for the first constraint
        load = {name: options.pop(name) for name in ("progress", "cancel")}
        try:
            self._check_memory(model, mmproj, options)
            adapters = adapter_list(options.pop("lora"))
            self.model = self._model(model, options, load)
            self._adapters = [LoraAdapter(self.model, path, scale=scale) for path, scale in adapters]
            self.template = choose_template(self.model, chat_template)
            self.encoder = self._encoder(mmproj, options, load)
            self._check_pair()
            if self.encoder is not None:
                load_decoders()  # else the first image does, and holds up an event loop
            self.engine = self._engine = self._make_engine(options)
        except BaseException:
            self.close()
            raise

    def _check_memory(
        self, model: PathLike | Model, mmproj: PathLike | ImageEncoder | None, options: dict[str, Any]
    ) -> None:
        """Refuse what cannot fit, before anything of it is loaded."""
        paths = (
            None if isinstance(model, Model) else model,
            None if isinstance(mmproj, ImageEncoder) else mmproj,
        )
        named = ("n_ctx", "n_batch", "n_ubatch", "flash_attn", "type_k", "type_v", "repack")
        limit = options.pop("memory_limit")
        if limit is not None:
            check_range("memory_limit", limit, 0, 2**63)
        found = devices()
        used = gpus(found) if options["n_gpu_layers"] else []
        shape = {name: options[name] for name in named} | {"n_outputs": _n_outputs(options)}
        self._on_gpu = bool(used)
        estimate = estimate_pair(*paths, **shape, devices=found, on_gpu=self._on_gpu)
        room = host_room()
        for gpu in used:  # which layers go where is the library's choice: count them together
            room = room and Room(
                room.total + gpu["memory_total"], room.free + gpu["memory_free"], "this machine"
            )
        check_fits(estimate, limit, room, options["n_ctx"])

    def _own(self, made: _Owned) -> _Owned:
        self._owned.append(made)
        return made

    def _model(self, model: PathLike | Model, options: dict[str, Any], load: dict[str, Any]) -> Model:
        given = {name: options.pop(name) for name in ("kv_overrides", "repack")}
        if isinstance(model, Model):
            _check_unused(given, "Model")
            return model
        return self._own(Model(model, n_gpu_layers=options["n_gpu_layers"], **given, **load))

    def _encoder(
        self, mmproj: PathLike | ImageEncoder | None, options: dict[str, Any], load: dict[str, Any]
    ) -> ImageEncoder | None:
        given = {name: options.pop(name) for name in ("dtype", "device")}
        use_gpu = options.pop("n_gpu_layers") != 0
        if isinstance(mmproj, ImageEncoder):
            _check_unused({name: value for name, value in given.items() if value != "auto"}, "ImageEncoder")
        if mmproj is None or isinstance(mmproj, ImageEncoder):
            return mmproj
        n_threads = options["n_threads"]
        return self._own(ImageEncoder(mmproj, n_threads=n_threads, use_gpu=use_gpu, **given, **load))

    def _check_pair(self) -> None:
        if self.encoder is not None and self.encoder.n_embd != self.model.n_embd:
            raise EmbeddingMismatchError(
                f"the rows of {self.encoder.path} have {self.encoder.n_embd} floats, and "
                f"{self.model.path} takes {self.model.n_embd}: the mmproj belongs to another model"
            )

    def _make_engine(self, options: dict[str, Any]) -> Engine:
        """Make the context, of what is left of the options, and the engine that uses it."""
        if self.model.is_recurrent:
            _without_sharing(self.model, options)
        n_outputs, n_seq_max = _n_outputs(options), _n_sequences(options)
        n_running, cells = options.pop("n_seq_max"), options.pop("prefix_cache")
        embedding_bytes, cache_dir = options.pop("embedding_cache"), options.pop("cache_dir")
        max_waiting, prompt_lookup = options.pop("max_waiting"), options.pop("prompt_lookup")
        check_range("embedding_cache", embedding_bytes, 0, 2**63)
        check_range("max_waiting", max_waiting, 1, 2**63)
        self.context = self._own(Context(self.model, n_seq_max=n_seq_max, n_outputs=n_outputs, **options))
        set_adapters(self.context, self._adapters)
        if cells is None:  # on a GPU they stay in the context, where every token looks at them
            cells = self.context.n_ctx // (4 if self._on_gpu else 2)
        return Engine(
            self.context,
            n_running=n_running,
            prefix_cells=cells,
            offload=not self._on_gpu,
            embedding_bytes=embedding_bytes,
            cache_dir=cache_dir,
            max_waiting=max_waiting,
            prompt_lookup=prompt_lookup,
        )

    def planner(self, allow_urls: bool) -> Planner:
        """Make what turns messages into prompts."""
        return Planner(self.model, self.encoder, self.template, self.context.n_ctx_seq, allow_urls)

    def sampler(self, params: SamplingParams, constraint: Constraint | None) -> Sampler:
        """Make the sampler of one answer."""
        return Sampler(self.model, params, matcher=self._matcher(constraint))

    def _matcher(self, constraint: Constraint | None) -> Matcher | None:
        if constraint is None:
            return None
        from llava_native.constraint import Matcher, Vocabulary

        if self._vocabulary is None:  # two threads may both make one: the second is dropped
            self._vocabulary = Vocabulary(self.model)
        return Matcher(constraint, self._vocabulary)

    def close(self) -> None:
        """Close what was loaded here. May be called again.

        Raises
        ------
        BusyError
            A stream is open.
        """
        if self._engine is not None:
            if not self._engine.closed and self._engine.streams:
                raise BusyError("a stream of this Llava is open; finish, close or drop it first")
            self._engine.close()
        with self._closing:
            self._adapters.clear()  # the context has them until it is closed
            while self._owned:  # the last first: a context needs its model
                self._owned[-1].close()
                self._owned.pop()


def _check_unused(given: dict[str, Any], what: str) -> None:
    """Refuse options of a part that the caller has made."""
    for name, value in given.items():
        if value is not None:
            raise InvalidInputError(f"{name} is an option of {what}: give it there, this one is made already")


def _n_sequences(options: dict[str, Any]) -> int:
    return n_sequences(options["n_seq_max"], options["n_ctx"], options["n_batch"], options["prefix_cache"])


def _n_outputs(options: dict[str, Any]) -> int:
    """Return how many tokens of a batch need logits: the last of each sequence, and guessed ones."""
    check_range("prompt_lookup", options["prompt_lookup"], 0, 64)
    n_guesses: int = options["n_seq_max"] * options["prompt_lookup"]
    return _n_sequences(options) + n_guesses


def _without_sharing(model: Model, options: dict[str, Any]) -> None:
    """Choose what suits a recurrent model: one answer at a time, which nothing is shared with."""
    if options["prompt_lookup"]:
        raise InvalidInputError(
            f"{model.path} is a recurrent model, whose state cannot go back over wrong guesses: leave "
            "prompt_lookup at 0"
        )
    options.update(n_seq_max=1, prefix_cache=0)
