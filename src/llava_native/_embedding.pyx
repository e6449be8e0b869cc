"""ImageEmbedding: the rows that a language model reads instead of an image."""

import json
import os
import stat
import tempfile

from cpython.buffer cimport PyBUF_CONTIG_RO, PyBUF_FORMAT, PyBuffer_Release, PyObject_GetBuffer


from llava_native._native cimport native_count, native_free_batch
from llava_native.errors import EmbeddingMismatchError, InvalidInputError, ModelFormatError

cdef int HEADER_LIMIT = 1 << 20


cdef class ImageEmbedding(FloatBuffer):
    """The rows of one image in a language model's embedding space.

    Made by ``ImageEncoder.encode``, ``ImageEmbedding.from_buffer`` or ``ImageEmbedding.load``.

    Attributes
    ----------
    shape : tuple of int
        ``(n_tokens, n_embd)``; 576 by 3,072 for llava-phi-3-mini.
    fingerprint : str or None
        What the rows were made with: the mmproj file, its preprocessing and weight type.

    Notes
    -----
    Float32, C order, read-only; shared without a copy by ``np.asarray``, ``memoryview`` and DLPack. Owns
    its memory (or keeps the buffer that it borrows), so it outlives its encoder.
    Threads: may be read from any thread.
    """

    def __init__(self):
        raise TypeError("made by ImageEncoder.encode, ImageEmbedding.from_buffer or ImageEmbedding.load")

    def __dealloc__(self):
        if self._batch != NULL:
            native_free_batch(self._batch)
        if self._borrowed.buf != NULL:
            PyBuffer_Release(&self._borrowed)
        if self._data != NULL:
            native_count("embedding", -1)

    @property
    def n_tokens(self):
        """int : rows, which are the tokens that the image takes in a context."""
        return self._shape[0]

    @property
    def n_embd(self):
        """int : floats in a row; must equal the language model's ``n_embd``."""
        return self._shape[1]

    def _is_writable(self):
        """Whether the rows are borrowed from a buffer that its owner may change."""
        if self._owner is not None:
            return self._owner._is_writable()
        return self._borrowed.buf != NULL and not self._borrowed.readonly

    def __getitem__(self, rows):
        """Return the rows of a slice, at least one, as an ``ImageEmbedding`` that shares this memory."""
        cdef ImageEmbedding part = ImageEmbedding.__new__(ImageEmbedding)
        self.c_check_alive()
        if not isinstance(rows, slice):
            raise TypeError(f"rows are taken by slices, not {type(rows).__name__}; see numpy.asarray")
        start, stop, step = rows.indices(self._shape[0])
        if step != 1 or stop <= start:
            raise InvalidInputError(f"{rows} takes no rows in a row of {self._shape[0]}")
        part.c_set(self._data + <Py_ssize_t>start * self._shape[1], 2, stop - start, self._shape[1])
        part._owner = self
        part.fingerprint = self.fingerprint
        native_count("embedding", 1)
        return part

    cdef int c_check_width(self, Py_ssize_t n_embd) except -1:
        """Refuse rows that are not as wide as a language model's."""
        self.c_check_alive()
        if self._shape[1] != n_embd:
            raise EmbeddingMismatchError(
                f"the image rows have {self._shape[1]} floats, this model takes {n_embd}: "
                "the mmproj belongs to another model")
        return 0

    def __repr__(self):
        return f"ImageEmbedding(n_tokens={self._shape[0]}, n_embd={self._shape[1]})"

    cdef int c_borrow(self, object rows) except -1:
        PyObject_GetBuffer(rows, &self._borrowed, PyBUF_CONTIG_RO | PyBUF_FORMAT)
        format = self._borrowed.format.decode() if self._borrowed.format != NULL else "B"
        if format.lstrip("<=@") != "f" or self._borrowed.ndim != 2 or self._borrowed.len == 0:
            raise EmbeddingMismatchError(
                "image rows must be a C-contiguous float32 array of shape (n_tokens, n_embd), not "
                f"format {format!r} with {self._borrowed.ndim} dimensions and {self._borrowed.len} bytes")
        self.c_set(<float *>self._borrowed.buf, 2, self._borrowed.shape[0], self._borrowed.shape[1])
        return native_count("embedding", 1)

    @staticmethod
    def from_buffer(rows, *, fingerprint=None):
        """Take rows that were made elsewhere, without copying them.

        Parameters
        ----------
        rows : buffer of float32, shape (n_tokens, n_embd)
            C-contiguous, e.g. a NumPy array. Borrowed: it is kept alive and locked against resizing, and
            changing its values changes the embedding.
        fingerprint : str, optional
            What made the rows; see ``ImageEncoder.fingerprint``.

        Returns
        -------
        ImageEmbedding

        Raises
        ------
        EmbeddingMismatchError
            The buffer is not C-contiguous float32 of two dimensions, or empty.
        """
        try:
            view = memoryview(rows)
        except TypeError:
            raise EmbeddingMismatchError(f"image rows must be a buffer, not {type(rows).__name__}") from None
        if not view.c_contiguous:
            raise EmbeddingMismatchError("image rows must be C-contiguous; use numpy.ascontiguousarray")
        cdef ImageEmbedding self = ImageEmbedding.__new__(ImageEmbedding)
        self.c_borrow(rows)
        self.fingerprint = fingerprint
        return self

    def save(self, path):
        """Write the rows to `path` in the safetensors format, with the fingerprint as metadata.

        The file appears whole or not at all: it is written beside `path` and renamed.

        Parameters
        ----------
        path : str or os.PathLike
            An existing file is replaced.
        """
        self.c_check_alive()
        header = json.dumps({
            "__metadata__": {"format": "llava_native.ImageEmbedding", "fingerprint": self.fingerprint or ""},
            "rows": {"dtype": "F32", "shape": list(self.shape), "data_offsets": [0, self.nbytes]},
        }).encode()
        header += b" " * (-len(header) % 8)
        folder, name = os.path.split(os.fspath(path))
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder or ".")
        try:
            with open(handle, "wb") as file:
                file.write(len(header).to_bytes(8, "little") + header)
                file.write(self)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @staticmethod
    def load(path, *, encoder=None):
        """Read rows that ``save`` wrote.

        Parameters
        ----------
        path : str or os.PathLike
        encoder : ImageEncoder, optional
            Refuse rows that another encoder made.

        Returns
        -------
        ImageEmbedding

        Raises
        ------
        ModelFormatError
            The file is damaged or holds something else.
        EmbeddingMismatchError
            The fingerprint is not the encoder's.
        """
        metadata, rows = _read_safetensors(path)
        fingerprint = metadata.get("fingerprint") or None
        if encoder is not None and fingerprint != encoder.fingerprint:
            raise EmbeddingMismatchError(
                f"{os.fspath(path)} was made by another encoder (fingerprint {fingerprint}, this one is "
                f"{encoder.fingerprint}); encode the image again")
        return ImageEmbedding.from_buffer(rows, fingerprint=fingerprint)


cdef ImageEmbedding embedding_from_batch(
    mtmd.mtmd_batch *batch, float *data, Py_ssize_t n_tokens, Py_ssize_t n_embd, str fingerprint):
    """Adopt a batch with its rows: no copy is made."""
    cdef ImageEmbedding self = ImageEmbedding.__new__(ImageEmbedding)
    self._batch = batch
    self.c_set(data, 2, n_tokens, n_embd)
    self.fingerprint = fingerprint
    native_count("embedding", 1)
    return self


def _without_waiting(name, flags):
    """Open a pipe that nobody writes into, too."""
    return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))


def _read_safetensors(path):
    """Return (metadata, float32 memoryview of two dimensions) of a file that `save` wrote."""
    with open(os.fspath(path), "rb", opener=_without_waiting) as file:  # fspath: open() would close a number
        info = os.fstat(file.fileno())
        if not stat.S_ISREG(info.st_mode):
            raise ModelFormatError(f"{os.fspath(path)} is not a regular file")
        size = info.st_size
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise ModelFormatError(f"{os.fspath(path)} is not a saved embedding, or a damaged one")
        try:
            header = json.loads(file.read(length))
            metadata = header["__metadata__"]
            n_tokens, n_embd = header["rows"]["shape"]
            known = header["rows"]["dtype"] == "F32" and metadata["format"] == "llava_native.ImageEmbedding"
            known = known and isinstance(metadata.get("fingerprint", ""), str)
            known = known and type(n_tokens) is int and type(n_embd) is int
            fits = n_tokens > 0 and n_embd > 0 and n_tokens * n_embd * 4 == size - 8 - length
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise ModelFormatError(f"{os.fspath(path)} is not a saved embedding: {exc!r}") from exc
        if not (known and fits):
            raise ModelFormatError(f"{os.fspath(path)} is not a saved embedding, or was truncated")
        rows = bytearray(size - 8 - length)
        if file.readinto(rows) != len(rows):
            raise ModelFormatError(f"{os.fspath(path)} was truncated while it was read")
    return metadata, memoryview(rows).cast("f", (n_tokens, n_embd))
