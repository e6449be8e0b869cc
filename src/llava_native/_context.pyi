from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Literal, Self, TypeAlias

from llava_native._buffer import Logits
from llava_native._cancel import CancelToken
from llava_native._embedding import ImageEmbedding
from llava_native._model import Model

_CacheType: TypeAlias = Literal["f16", "f32", "bf16", "q8_0"]

class Context:
    last_input_address: int
    def __init__(
        self,
        model: Model,
        *,
        n_ctx: int = 4096,
        n_batch: int = 2048,
        n_ubatch: int = 672,
        n_seq_max: int = 1,
        n_threads: int | None = None,
        flash_attn: bool | None = None,
        type_k: _CacheType = "f16",
        type_v: _CacheType = "f16",
        offload_kqv: bool = True,
        n_outputs: int | None = None,
    ) -> None: ...
    def eval(
        self,
        tokens: ImageEmbedding | Iterable[int],
        *,
        seq: int = 0,
        logits: bool = True,
        cancel: CancelToken | None = None,
    ) -> int: ...
    def eval_batch(
        self,
        entries: Iterable[tuple[int, ImageEmbedding | Sequence[int], int]],
        *,
        cancel: CancelToken | None = None,
    ) -> list[int]: ...
    @property
    def logits(self) -> Logits: ...
    def n_past(self, seq: int = 0) -> int: ...
    def truncate_sequence(self, seq: int, n: int) -> None: ...
    def copy_sequence(self, src: int, dst: int, n: int | None = None) -> None: ...
    def clear(self) -> None: ...
    def set_n_threads(self, n_threads: int) -> None: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    @property
    def model(self) -> Model: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def n_ctx_seq(self) -> int: ...
    @property
    def n_batch(self) -> int: ...
    @property
    def n_ubatch(self) -> int: ...
    @property
    def n_seq_max(self) -> int: ...
    @property
    def n_threads(self) -> int: ...
    @property
    def can_mix(self) -> bool: ...
