"""Image rows that were paid for once: in memory, bounded by bytes, and on disk where there is a folder."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llava_native._embedding import ImageEmbedding
from llava_native.errors import LlavaError

if TYPE_CHECKING:
    from llava_native._encoder import ImageEncoder
    from llava_native.images import Pixels

__all__ = ["DiskCache", "EmbeddingCache", "pixels_key", "rows_key"]

_logger = logging.getLogger("llava_native")
_N_SIZES = 100_000  # images whose number of rows is remembered


def pixels_key(pixels: Pixels, encoder: ImageEncoder) -> str:
    """Return the name of the rows that an encoder makes of prepared pixels."""
    made_with = f"{encoder.fingerprint} {pixels.width} {pixels.height} "
    return _digest(made_with.encode(), pixels.data)


def rows_key(rows: ImageEmbedding) -> str:
    """Return the name of rows that were made elsewhere."""
    return _digest(f"rows {rows.shape} ".encode(), memoryview(rows).cast("B"))


def _digest(prefix: bytes, data: Any) -> str:
    digest = hashlib.blake2b(prefix, digest_size=20)
    digest.update(data)  # gives up the GIL
    return digest.hexdigest()


class EmbeddingCache:
    """Image rows by key, the least recently used dropped first. Belongs to one thread.

    Parameters
    ----------
    limit : int
        Bytes of rows to hold; 0 holds none.

    Attributes
    ----------
    nbytes : int
        Bytes that are held.
    """

    def __init__(self, limit: int) -> None:
        self._rows: OrderedDict[str, ImageEmbedding] = OrderedDict()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self.limit = limit
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> ImageEmbedding | None:
        """Return the rows of a key, if they are here."""
        rows = self._rows.get(key)
        if rows is not None:
            self._rows.move_to_end(key)
        return rows

    def put(self, key: str, rows: ImageEmbedding) -> None:
        """Hold rows, and drop others until all fit."""
        self.note(key, rows.n_tokens)
        if key in self._rows or rows.nbytes > self.limit:
            return
        self._rows[key] = rows
        self.nbytes += rows.nbytes
        while self.nbytes > self.limit:
            _, dropped = self._rows.popitem(last=False)
            self.nbytes -= dropped.nbytes

    def note(self, key: str, n_tokens: int) -> None:
        """Remember how many rows a key has."""
        self._sizes[key] = n_tokens
        if len(self._sizes) > _N_SIZES:
            self._sizes.popitem(last=False)

    def n_tokens(self, key: str) -> int | None:
        """Return how many rows a key has; known also after its rows were dropped."""
        return self._sizes.get(key)

    def clear(self) -> None:
        """Drop all rows."""
        self._rows.clear()
        self.nbytes = 0


class DiskCache:
    """Image rows in a folder that processes may share: one safetensors file a key.

    Parameters
    ----------
    folder : str or os.PathLike
        Made where it does not exist.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.emb"

    def load(self, key: str, encoder: ImageEncoder) -> ImageEmbedding | None:
        """Return the rows of a key; a file that is damaged, or another encoder's, is removed."""
        path = self._path(key)
        try:
            rows = ImageEmbedding.load(path, encoder=encoder)
            if rows.n_embd == encoder.n_embd:
                return rows
            _logger.warning("%s has rows of another width", path)
        except FileNotFoundError:
            return None
        except (LlavaError, OSError) as exc:
            _logger.warning("a cached embedding is dropped: %s", str(exc))
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def save(self, key: str, rows: ImageEmbedding) -> None:
        """Write rows, whole or not at all; a full disk costs the cache, not the request."""
        try:
            rows.save(self._path(key))
        except OSError as exc:
            _logger.warning("an embedding could not be cached: %s", str(exc))
