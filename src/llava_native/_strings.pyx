"""The strings of a GGUF array, hundreds of thousands of them: gguf.py's hottest loops."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy

cdef enum:
    PROBES = 8  # of the table, a string on the average, before the search is given up


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


def plainly_distinct(bytes data not None, Py_ssize_t position, Py_ssize_t count):
    """Whether strings are all different, and none of them is empty or has a NUL inside.

    False may also mean that it would take long to find out: who wrote the file may have chosen strings that
    one place of the table is right for. Nothing is made of them, which takes a tenth of the time of a set.
    """
    cdef Py_ssize_t size = len(data)
    cdef const char *start = data
    cdef uint32_t *table
    cdef uint64_t places = 16
    if not 0 <= position <= size < (1 << 32) or not 0 <= count <= size // 8:
        return False
    while places < 2 * <uint64_t>count:
        places *= 2
    table = <uint32_t *>calloc(places, sizeof(uint32_t))
    if table == NULL:
        return False
    try:
        return _fill(table, places - 1, start, size, position, count)
    finally:
        free(table)


cdef bint _fill(
    uint32_t *table, uint64_t mask, const char *start, Py_ssize_t size, Py_ssize_t position, Py_ssize_t count,
) noexcept:  # C only: nothing in it can raise
    """Note each string's position in a table of ``mask + 1`` zeros; stop at the first that is not new."""
    cdef Py_ssize_t left = PROBES * count
    cdef uint64_t length, other, place
    while count:
        if position > size - 8:
            return False
        memcpy(&length, start + position, 8)
        if length == 0 or length > <uint64_t>(size - 8 - position):
            return False
        if memchr(start + position + 8, 0, <size_t>length) != NULL:
            return False
        place = _hash(start + position + 8, length) & mask
        while table[place]:
            memcpy(&other, start + table[place], 8)
            if other == length and not memcmp(
                start + table[place] + 8, start + position + 8, <size_t>length
            ):
                return False
            left -= 1
            if left < 0:
                return False
            place = (place + 1) & mask
        table[place] = <uint32_t>position
        position += 8 + <Py_ssize_t>length
        count -= 1
    return True


cdef uint64_t _hash(const char *text, uint64_t length) noexcept:  # C only: nothing in it can raise
    """FNV-1a, its upper half mixed into the lower."""
    cdef uint64_t found = 0xcbf29ce484222325, i
    for i in range(length):
        found = (found ^ <unsigned char>text[i]) * <uint64_t>0x100000001b3
    return found ^ (found >> 32)
