"""Float32 rows that others may look at without a copy: the buffer protocol and DLPack, counted."""

cimport cython
from cpython.buffer cimport PyBUF_F_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid, PyCapsule_New
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, malloc

from llava_native.errors import ClosedError


# dlpack.h 1.0
cdef struct DLDevice:
    int32_t device_type
    int32_t device_id

cdef struct DLDataType:
    uint8_t code
    uint8_t bits
    uint16_t lanes

cdef struct DLTensor:
    void *data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef struct DLManagedTensorVersioned:
    uint32_t major
    uint32_t minor
    void *manager_ctx
    void (*deleter)(DLManagedTensorVersioned *self) noexcept
    uint64_t flags
    DLTensor dl_tensor

cdef enum:
    DL_CPU = 1
    DL_FLOAT = 2
    DL_FLAG_READ_ONLY = 1

cdef const char *DL_NAME = "dltensor_versioned"
cdef char *FORMAT = "f"  # native float32


cdef class FloatBuffer:
    """Base of read-only float32 exports. Not made directly.

    Notes
    -----
    ``np.asarray(x)``, ``memoryview(x)`` and ``np.from_dlpack(x)`` share this object's memory, keep it
    alive, and are counted: ``exports`` tells how many there are.
    """

    cdef int c_set(self, float *data, int ndim, Py_ssize_t rows, Py_ssize_t columns) except -1:
        self._data = data
        self._ndim = ndim
        self._shape[0] = rows
        self._shape[1] = columns
        self._strides[0] = sizeof(float) * (columns if ndim == 2 else 1)
        self._strides[1] = sizeof(float)
        return 0

    cdef int c_check_alive(self) except -1:
        if self._data == NULL:
            raise ClosedError(f"this {type(self).__name__} was closed, or never made")
        return 0

    @property
    def shape(self):
        """tuple of int : the shape of the float32 array."""
        return tuple(self._shape[i] for i in range(self._ndim))

    @property
    def nbytes(self):
        """int : bytes of the float32 array."""
        return self._shape[0] * self._strides[0]

    @property
    def exports(self):
        """int : how many buffers and tensors over this memory are alive."""
        return self._exports

    @property
    def address(self):
        """int : where the first float lies in memory."""
        self.c_check_alive()
        return <uintptr_t>self._data

    def __len__(self):
        return self._shape[0]

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        self.c_check_alive()
        if flags & PyBUF_WRITABLE:
            raise BufferError(f"{type(self).__name__} is read-only; copy it to change it")
        if (flags & PyBUF_F_CONTIGUOUS) == PyBUF_F_CONTIGUOUS and self._shape[0] > 1 and self._shape[1] > 1:
            raise BufferError(f"the rows of {type(self).__name__} lie one after another, as in C")
        buffer.buf = self._data
        buffer.obj = self
        buffer.len = self._shape[0] * self._strides[0]
        buffer.itemsize = sizeof(float)
        buffer.readonly = 1
        buffer.ndim = self._ndim if flags & PyBUF_ND else 1
        buffer.format = FORMAT if flags & PyBUF_FORMAT else NULL
        buffer.shape = buffer.strides = NULL
        if flags & PyBUF_ND:
            buffer.shape = self._shape
        if (flags & PyBUF_STRIDES) == PyBUF_STRIDES:
            buffer.strides = self._strides
        buffer.suboffsets = NULL
        buffer.internal = NULL
        self._exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self._exports -= 1

    def __dlpack_device__(self):
        """Return ``(kDLCPU, 0)``."""
        return (DL_CPU, 0)

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Export as a DLPack capsule that shares this memory, read-only.

        Parameters
        ----------
        stream : None
            Only None: the memory is the CPU's.
        max_version : tuple of int, optional
            The consumer's DLPack version. Before 1.0 there is no read-only flag, so such a consumer is
            refused: give it a copy, ``np.array(x)``.
        dl_device : tuple of int, optional
            Only the CPU, ``(1, 0)``.
        copy : bool, optional
            True is refused: this never copies.

        Raises
        ------
        BufferError
            The consumer asked for what this cannot give.
        """
        self.c_check_alive()
        if max_version is None or max_version[0] < 1:
            raise BufferError("read-only memory needs a consumer of DLPack 1.0; pass it a copy instead")
        if copy:
            raise BufferError("__dlpack__ does not copy; use numpy.array(x) for one")
        if stream is not None or (dl_device is not None and tuple(dl_device) != (DL_CPU, 0)):
            raise BufferError("the memory is the CPU's: no stream and no other device")
        return _new_capsule(self)


cdef object _new_capsule(FloatBuffer owner):
    cdef int i
    cdef DLManagedTensorVersioned *tensor = <DLManagedTensorVersioned *>malloc(
        sizeof(DLManagedTensorVersioned) + 4 * sizeof(int64_t))
    if tensor == NULL:
        raise MemoryError
    cdef int64_t *sizes = <int64_t *>(tensor + 1)
    for i in range(owner._ndim):
        sizes[i] = owner._shape[i]
        sizes[2 + i] = owner._strides[i] // <Py_ssize_t>sizeof(float)
    tensor.major, tensor.minor = 1, 0
    tensor.manager_ctx = <void *>owner
    tensor.deleter = _delete_tensor
    tensor.flags = DL_FLAG_READ_ONLY
    tensor.dl_tensor.data = owner._data
    tensor.dl_tensor.device = DLDevice(DL_CPU, 0)
    tensor.dl_tensor.ndim = owner._ndim
    tensor.dl_tensor.dtype = DLDataType(DL_FLOAT, 32, 1)
    tensor.dl_tensor.shape = sizes
    tensor.dl_tensor.strides = sizes + 2
    tensor.dl_tensor.byte_offset = 0
    try:
        capsule = PyCapsule_New(tensor, DL_NAME, _drop_capsule)
    except BaseException:
        free(tensor)
        raise
    Py_INCREF(owner)  # released by the deleter
    owner._exports += 1
    return capsule


cdef void _delete_tensor(DLManagedTensorVersioned *tensor) noexcept with gil:
    # the consumer may call this from any thread, without the GIL
    cdef FloatBuffer owner = <FloatBuffer>tensor.manager_ctx
    owner._exports -= 1
    Py_DECREF(owner)
    free(tensor)


cdef void _drop_capsule(object capsule) noexcept:  # a destructor has nobody to raise to
    # a consumer renames the capsule; one that nobody consumed is ours to free
    if PyCapsule_IsValid(capsule, DL_NAME):
        _delete_tensor(<DLManagedTensorVersioned *>PyCapsule_GetPointer(capsule, DL_NAME))


@cython.no_gc_clear  # __dealloc__ needs _owner, in a reference cycle too
cdef class Logits(FloatBuffer):
    """A read-only float32 view of one row of logits. Made by ``Context.logits``, which counts it."""

    def __init__(self):
        raise TypeError("made by Context.logits")

    def __dealloc__(self):
        if self._views != NULL:
            self._views[0] -= 1
