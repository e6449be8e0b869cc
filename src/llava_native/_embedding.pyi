import os
from typing import Any

from llava_native._buffer import FloatBuffer
from llava_native._encoder import ImageEncoder

class ImageEmbedding(FloatBuffer):
    fingerprint: str | None
    @property
    def n_tokens(self) -> int: ...
    @property
    def n_embd(self) -> int: ...
    @staticmethod
    def from_buffer(rows: Any, *, fingerprint: str | None = None) -> ImageEmbedding: ...
    def save(self, path: str | os.PathLike[str]) -> None: ...
    @staticmethod
    def load(path: str | os.PathLike[str], *, encoder: ImageEncoder | None = None) -> ImageEmbedding: ...
