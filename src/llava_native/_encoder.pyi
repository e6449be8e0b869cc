import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, Self

from llava_native._cancel import CancelToken
from llava_native._embedding import ImageEmbedding
from llava_native.images import ImageLike, Pixels

PREPROCESSING: str

class ImageEncoder:
    path: str
    dtype: str
    fingerprint: str
    n_threads: int
    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        dtype: Literal["auto", "f16", "bf16"] = "auto",
        device: str | None = None,
        use_gpu: bool = True,
        progress: Callable[[float], Any] | None = None,
        cancel: CancelToken | None = None,
    ) -> None: ...
    def encode(
        self,
        image: ImageLike,
        *,
        background: tuple[int, int, int] = (255, 255, 255),
        cancel: CancelToken | None = None,
    ) -> ImageEmbedding: ...
    def prepare(self, image: ImageLike, *, background: tuple[int, int, int] = (255, 255, 255)) -> Pixels: ...
    def encode_pixels(
        self, pixels: Pixels, *, n_threads: int | None = None, cancel: CancelToken | None = None
    ) -> ImageEmbedding: ...
    def close(self) -> None: ...
    @property
    def closed(self) -> bool: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def image_size(self) -> int: ...
    @property
    def prepared_size(self) -> int | None: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def n_tokens(self) -> int: ...
