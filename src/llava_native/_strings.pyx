"""The strings of a GGUF array, hundreds of thousands of them: gguf.py's two hottest loops."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memcpy


def skip_strings(const unsigned char[::1] data not None, Py_ssize_t position, Py_ssize_t count):
    """Move over strings, each of which follows its length.

    Parameters
    ----------
    data : bytes
        The beginning of a file.
    position : int
        Where in it the first string's length stands.
    count : int

    Returns
    -------
    position : int
        After the last string whose length is within `data`; the string itself may end beyond it.
    left : int
        Strings whose length is beyond `data`.
    """
    cdef Py_ssize_t size = data.shape[0]
    cdef uint64_t length
    while count and 0 <= position <= size - 8:
        memcpy(&length, &data[position], 8)
        count -= 1
        if length > <uint64_t>(size - 8 - position):
            return position + 8 + int(length), count
        position += 8 + <Py_ssize_t>length
    return position, count


def take_strings(bytes data not None, Py_ssize_t position, Py_ssize_t count):
    """Copy strings out, as far as they are within `data`.

    Returns
    -------
    items : list of bytes
        All `count` of them, or those that are whole.
    position : int
        After the last one; where some are missing, one that shows how much further `data` must go.
    """
    cdef const unsigned char[::1] view = data
    cdef Py_ssize_t size = view.shape[0]
    cdef const char *start = data
    cdef uint64_t length
    cdef list items = []
    while len(items) < count:
        if position < 0 or position > size - 8:
            return items, position + 8
        memcpy(&length, start + position, 8)
        if length > <uint64_t>(size - 8 - position):
            return items, position + 8 + int(length)
        items.append(PyBytes_FromStringAndSize(start + position + 8, <Py_ssize_t>length))
        position += 8 + <Py_ssize_t>length
    return items, position
