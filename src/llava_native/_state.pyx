"""State: what a sequence of a context holds, as bytes, for another context of the same model."""

from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy

from llava_native._context cimport Context
from llava_native._native cimport native_get_state, native_is_sound, native_remove_positions, native_set_state
from llava_native.errors import InvalidInputError

cdef enum:
    HEAD = 16  # bytes: magic, sequence, streams, cells
    CELL = 12  # bytes of a cell: position, number of sequences, sequence


def get_state(Context context not None, long long seq=0):
    """Copy what a sequence holds.

    Parameters
    ----------
    context : Context
    seq : int, default 0

    Returns
    -------
    bytes
        Keys and values of every layer: as large as the model makes them, 393 kB a token for phi-3-mini.

    Raises
    ------
    InvalidInputError
        The sequence is empty or out of range, or the model is recurrent or has more than one position a
        token.
    DecodeError, ClosedError, BusyError, ForkError

    Notes
    -----
    Native: llama_state_seq_get_data (llama.h). GIL: released.
    """
    context.c_enter()
    _check_plain(context)
    context.c_check_sequence(seq)
    if context._n_past[seq] == 0:
        raise InvalidInputError(f"sequence {seq} is empty")
    context._busy = True
    try:
        state = native_get_state(context._ptr, <int32_t>seq)
    finally:
        context._busy = False
    _check_cells(state, context._n_past[seq])
    return state


def set_state(
    Context context not None, const unsigned char[::1] state not None, long long n, long long seq=0,
):
    """Put a state into an empty sequence.

    Parameters
    ----------
    context : Context
    state : bytes
        Of ``get_state``, with the same model, cache types and kind of attention. All that the library reads
        of it is checked, so that bytes from anywhere give an exception; but only the caller can know that
        they belong to this model.
    n : int
        Tokens that it holds.
    seq : int, default 0

    Raises
    ------
    InvalidInputError
        It is damaged, does not fit into this context, or does not hold `n` tokens; the sequence is not
        empty; or the model is recurrent. An empty sequence is empty afterwards.
    NativeAbort
        It got past these checks, and the library aborted.
    ClosedError, BusyError, ForkError

    Notes
    -----
    Native: llama_state_seq_set_data (llama.h). GIL: released.
    """
    context.c_enter()
    _check_plain(context)
    context.c_check_sequence(seq)
    if context._n_past[seq]:
        raise InvalidInputError(f"sequence {seq} holds {context._n_past[seq]} tokens; truncate it first")
    _check_cells(state, n)
    context.c_check_room(<int32_t>seq, 0, <Py_ssize_t>n)
    context.c_forget_logits()
    context._busy = True
    try:
        native_set_state(context._ptr, <int32_t>seq, &state[0], <size_t>state.shape[0])
        context._n_past[seq] = <int32_t>n
    finally:
        context._busy = False
        if context._n_past[seq] == 0 and native_is_sound(context._ptr):
            native_remove_positions(context._ptr, <int32_t>seq, 0)


cdef int _check_plain(Context context) except -1:
    """Refuse a recurrent model: what it remembers has no form here that could be checked."""
    if context._model.is_recurrent:
        raise InvalidInputError(f"the state of a recurrent model ({context._model.path}) cannot be moved")
    return 0


cdef int _check_cells(const unsigned char[::1] state, long long n) except -1:
    """Check that a state is of one stream whose cells are the positions 0 to n - 1, each once."""
    cdef uint32_t words[4]
    cdef int32_t cell[3]
    cdef long long i
    cdef bytearray seen
    if state.shape[0] < HEAD or not 1 <= n <= (state.shape[0] - HEAD) // CELL:
        raise InvalidInputError(f"{state.shape[0]} bytes are not the state of {n} tokens")
    memcpy(words, &state[0], HEAD)
    if words[2] != 1 or words[3] != n:
        raise InvalidInputError(f"this is not the state of {n} tokens of one sequence")
    seen = bytearray(n)
    for i in range(n):
        memcpy(cell, &state[HEAD + CELL * i], CELL)
        if not 0 <= cell[0] < n or cell[1] != 1 or seen[cell[0]]:
            raise InvalidInputError("this state has no plain positions: it is damaged, or of another kind")
        seen[cell[0]] = 1
    return 0
