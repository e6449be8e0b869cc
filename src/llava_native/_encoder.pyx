"""ImageEncoder: the vision tower and the projector of a LLaVA model, without its language model."""

import os

from cpython.buffer cimport PyBUF_CONTIG_RO, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_WarnEx
from libc.string cimport memcpy
from libcpp.vector cimport vector
from posix.unistd cimport getpid

from llava_native._cancel cimport CancelToken, watch_begin
from llava_native._embedding cimport ImageEmbedding, embedding_from_batch
from llava_native._native cimport (
    EncodedRows,
    native_encode,
    native_encoder_params,
    native_free_batch,
    native_free_encoder,
    native_load_encoder,
)
from llava_native._native import devices
from llava_native.capi cimport llama
from llava_native.errors import (
    BusyError,
    ClosedError,
    ForkError,
    InUseError,
    InvalidInputError,
    ModelLoadError,
)
from llava_native.gguf import read_header
from llava_native.machine import cpu_features, gpus
from llava_native.preflight import check_mmproj
from llava_native.profiles import assumed_mmproj_keys
from llava_native.threads import default_n_threads

# changes whenever the same file and picture would give other rows
PREPROCESSING = "llava-1"


cdef class ImageEncoder:
    """The vision tower and projector of an mmproj file. No language model is needed.

    Parameters
    ----------
    path : str or os.PathLike
        An mmproj GGUF file of the LLaVA family.
    n_threads : int, optional
        CPU threads of an encode; default the physical cores that this process may use.
    dtype : {"auto", "f16", "bf16"}, default "auto"
        How F16 weights are kept in memory. BF16 encodes about 1.4 times faster on a CPU with
        avx512_bf16, and up to twice as fast on one with AMX, with rows of cosine 0.9999 and more to F16's;
        "auto" chooses it there and leaves the weights as stored everywhere else. The file is never
        changed, and memory not used twice.
    device : str, optional
        A device of ``llava-native devices``, e.g. ``"CUDA1"``; default the first GPU, else the CPU.
    use_gpu : bool, default True
        False keeps the encoder on the CPU.
    progress : callable of one float, optional
        Called with 0.0 to 1.0 while loading; returning False, or raising, stops the load.
    cancel : CancelToken, optional
        Stops the load.

    Raises
    ------
    FileNotFoundError, PermissionError, IsADirectoryError
        As ``open()``.
    ModelFormatError, UnsupportedModelError
        The file is damaged, truncated, a text model, or an encoder that is not run here.
    ModelLoadError
        libmtmd refused the file; the last log lines are attached.
    CancelledError, TimeoutExpiredError
        `cancel` said stop.

    Notes
    -----
    Native: mtmd_init_from_file, mtmd_free (mtmd.h), with a vocabulary of four tokens for
    a text model, so that nothing else is loaded.
    GIL: released while loading, encoding and freeing.
    Threads: one call at a time; a second one raises ``BusyError`` at once. Encoders run in parallel.
    """

    def __init__(
        self, path, *, n_threads=None, str dtype="auto", str device=None, bint use_gpu=True, progress=None,
        CancelToken cancel=None,
    ):
        if self._ptr != NULL:
            raise InUseError("this ImageEncoder is loaded already")
        if dtype not in ("auto", "f16", "bf16"):
            raise InvalidInputError(f"dtype must be 'auto', 'f16' or 'bf16', not {dtype!r}")
        self.n_threads = _n_threads(default_n_threads() if n_threads is None else n_threads)
        self.path = os.fsdecode(path)
        header = read_header(self.path)
        self._info = check_mmproj(header, assumed_mmproj_keys(header))
        on_gpu = _is_gpu(device) and use_gpu
        self.dtype = _choose_dtype(dtype, self._info.dtype.lower(), on_gpu)
        self.fingerprint = f"{self._info.fingerprint}-{PREPROCESSING}-{self.dtype}"
        params = native_encoder_params()
        params.use_gpu = on_gpu
        params.n_threads = self.n_threads
        params.print_timings = False
        if self.dtype == "f32":
            # its keys and values would become F16; whoever keeps weights in F32 wants the digits
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if not mtmd.mtmd_params_set_weights_bf16(&params, self.dtype == "bf16"):
            if dtype == "bf16":
                raise ModelLoadError("this build has no patch 0003, which keeps F16 weights as BF16")
            self.dtype = self._info.dtype.lower()
        self._pid = getpid()
        watch_begin(&self._watch, cancel, progress)
        try:
            self._ptr = native_load_encoder(self.path, &params, device, &self._watch)
        finally:
            watch_begin(&self._watch, None, None)

    def __dealloc__(self):
        if self._ptr != NULL and self._pid == getpid():
            native_free_encoder(self._ptr)
            # not from __del__, which the stable ABI never calls
            message = f"unclosed ImageEncoder {self.path!r}".encode("utf-8", "replace")
            PyErr_WarnEx(ResourceWarning, message, 1)

    cdef int c_enter(self) except -1:
        if self._ptr == NULL:
            raise ClosedError(f"the encoder {self.path} was closed")
        if self._pid != getpid():
            raise ForkError("this ImageEncoder was loaded before os.fork(); load it in the child")
        if self._busy:
            raise BusyError("another thread is encoding with this ImageEncoder; it serves one at a time")
        return 0

    def encode(self, image, *, background=(255, 255, 255), CancelToken cancel=None):
        """Encode one image into rows for the language model.

        Parameters
        ----------
        image : path, bytes or buffer of an encoded file, PIL.Image, or uint8 array
            Arrays are (h, w, 3), (h, w, 4) or (h, w). Read during the call only; nothing is kept of it.
            A (size, size, 3) array that is C-contiguous is handed to the library as it is.
        background : tuple of 3 int, default white
            The colour that shows through transparent pixels.
        cancel : CancelToken, optional
            Stops the encode within about 100 ms; on a GPU it goes on to its end.

        Returns
        -------
        ImageEmbedding
            Float32 (n_tokens, n_embd), owned; (576, 3072) for llava-phi-3-mini.

        Raises
        ------
        ImageDecodeError, ImageTooLargeError
            Not an image, a damaged one, or one over the limits on bytes and pixels.
        CancelledError, TimeoutExpiredError
            `cancel` said stop.
        EncodeError, ClosedError, BusyError, ForkError

        Notes
        -----
        LLaVA-1.5's own preparation: padded to a centred square with the mean colour, then Pillow's
        bicubic to the encoder's size. Encoders of other sizes and tiles get libmtmd's preparation.
        Native: mtmd_bitmap_init, mtmd_tokenize_from_parts, mtmd_batch_encode, mtmd_batch_get_output_embd
        (mtmd.h); the batch owns the rows and the result keeps it, so no row is copied.
        """
        self.c_enter()
        if cancel is not None:
            cancel.raise_if_cancelled()
        return self.encode_pixels(self.prepare(image, background=background), cancel=cancel)

    def prepare(self, image, *, background=(255, 255, 255)):
        """Decode an image and bring it to the size that this encoder sees: the first half of ``encode``.

        Returns
        -------
        llava_native.images.Pixels
            ``(data, width, height)``; `data` may look into `image`'s own memory.

        Notes
        -----
        No native call; any number of threads at once.
        """
        from llava_native.images import llava_pixels, rgb_pixels

        if self._info is None:
            raise ClosedError("this ImageEncoder was never loaded")
        if self._info.is_llava15:
            return llava_pixels(image, self._info.image_size, background=background)
        return rgb_pixels(image, background=background)

    def encode_pixels(self, pixels, *, n_threads=None, CancelToken cancel=None):
        """Encode what ``prepare`` returned: the second half of ``encode``, with the same errors.

        Parameters
        ----------
        pixels : Pixels
        n_threads : int, optional
            CPU threads of this encode, where something else computes beside it; default the encoder's.
        cancel : CancelToken, optional
            As for ``encode``.
        """
        cdef int threads = _n_threads(self.n_threads if n_threads is None else n_threads)
        cdef Py_buffer buffer
        cdef vector[EncodedRows] rows
        cdef unsigned int width = pixels.width
        cdef unsigned int height = pixels.height
        PyObject_GetBuffer(pixels.data, &buffer, PyBUF_CONTIG_RO)
        try:
            if buffer.len % 3 or <size_t>buffer.len // 3 != <size_t>width * height:
                raise InvalidInputError(f"{buffer.len} bytes are not {width}x{height} RGB pixels")
            self.c_enter()
            self._busy = True
            try:
                watch_begin(&self._watch, cancel, None)
                native_encode(
                    self._ptr, <const unsigned char *>buffer.buf, width, height, threads, &rows,
                    &self._watch)
                return _collect(&rows, self._info.n_embd, self.fingerprint)
            finally:
                self._busy = False
                for entry in rows:
                    native_free_batch(entry.batch)
        finally:
            PyBuffer_Release(&buffer)

    def close(self):
        """Free the encoder. May be called again; embeddings that it made stay valid.

        Raises
        ------
        BusyError
            Another thread is encoding.
        """
        if self._ptr == NULL:
            return
        self.c_enter()
        cdef mtmd.mtmd_context *ptr = self._ptr
        self._ptr = NULL  # before the GIL is released: nobody may see a freed pointer
        native_free_encoder(ptr)

    @property
    def closed(self):
        """bool : whether the encoder was closed."""
        return self._ptr == NULL

    def __enter__(self):
        self.c_enter()
        return self

    def __exit__(self, *exc_info):
        self.close()

    def __repr__(self):
        state = "closed" if self._ptr == NULL else self.dtype
        return f"ImageEncoder({os.path.basename(self.path or '')!r}, {state})"

    @property
    def n_embd(self):
        """int : floats in a row; must equal the language model's ``n_embd``."""
        return self._info.n_embd

    @property
    def image_size(self):
        """int : side in pixels of the square that the tower sees."""
        return self._info.image_size

    @property
    def prepared_size(self):
        """int or None : side in pixels of what ``prepare`` returns; None where an image keeps its own."""
        return self._info.image_size if self._info.is_llava15 else None

    @property
    def patch_size(self):
        """int : side in pixels of one patch."""
        return self._info.patch_size

    @property
    def n_tokens(self):
        """int : rows of one picture, or of one tile of it."""
        return self._info.n_patches


cdef int _n_threads(n) except -1:
    if not 1 <= n <= 512:
        raise InvalidInputError(f"n_threads must be 1 to 512, not {n}")
    return n


cdef bint _is_gpu(str device):
    """Whether a device, or the one chosen where none is named, is not the CPU."""
    found = devices()
    if device is None:
        return bool(gpus(found))
    kinds = [d["type"] for d in found if d["name"].lower() == device.lower()]  # as the library compares them
    if not kinds:
        names = ", ".join(d["name"] for d in found)
        raise InvalidInputError(f"there is no device {device!r}; this build has: {names}")
    return kinds[0] != "cpu"


cdef str _choose_dtype(str asked, str stored, bint on_gpu):
    """The type that the weights have in memory."""
    if asked == "f16" or stored != "f16" or (asked == "auto" and on_gpu):
        return stored
    if asked == "bf16":
        return "bf16"
    return "bf16" if "AVX512_BF16" in cpu_features(devices()) else "f16"


cdef ImageEmbedding _collect(vector[EncodedRows] *rows, Py_ssize_t n_embd, str fingerprint):
    """One embedding of all rows; batches that it adopts are taken out of `rows`."""
    cdef ImageEmbedding embedding
    cdef EncodedRows entry
    cdef float *target
    if rows.size() == 1:
        entry = rows[0][0]
        embedding = embedding_from_batch(
            entry.batch, entry.data, <Py_ssize_t>entry.n_tokens, n_embd, fingerprint)
        rows.clear()
        return embedding
    total = 0
    for entry in rows[0]:
        total += entry.n_tokens
    merged = memoryview(bytearray(total * n_embd * sizeof(float))).cast("f", (total, n_embd))
    embedding = ImageEmbedding.from_buffer(merged, fingerprint=fingerprint)
    target = embedding._data
    for entry in rows[0]:
        memcpy(target, entry.data, entry.n_tokens * n_embd * sizeof(float))
        target += entry.n_tokens * n_embd
    return embedding
