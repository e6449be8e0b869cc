"""Batch: the arrays that one llama_decode reads, for tokens or image rows of one or several sequences."""

from llava_native._native cimport native_decode


cdef class Batch:
    """The arrays of a llama_batch (llama.h), laid out once. Inside a ``Context``; not thread-safe."""

    cdef int c_resize(self, Py_ssize_t capacity) except -1:
        cdef Py_ssize_t i
        self.capacity = capacity
        self.tokens.resize(capacity)
        self._positions.resize(capacity)
        self._ones.assign(capacity, 1)
        self._seq_ids.assign(capacity, 0)
        self._sequences.resize(capacity)
        for i in range(capacity):
            self._sequences[i] = &self._seq_ids[i]
        self._wants_logits.assign(capacity, 0)
        self._raw.pos = self._positions.data()
        self._raw.n_seq_id = self._ones.data()
        self._raw.seq_id = self._sequences.data()
        self._raw.logits = self._wants_logits.data()
        self.c_clear()
        return 0

    cdef void c_clear(self) noexcept:  # vector::clear throws nothing
        self.n = 0
        self.rows.clear()

    cdef void c_push(self, int32_t token, int32_t position, int32_t seq) noexcept:  # it writes numbers
        """Add an entry; the caller knows that there is room."""
        self.tokens[self.n] = token
        self._positions[self.n] = position
        self._seq_ids[self.n] = seq
        self.n += 1

    cdef void c_span(self, int32_t seq, int32_t first, Py_ssize_t n) noexcept:  # it writes numbers
        """Lay `n` entries of one sequence out from position `first` on, and nothing else."""
        cdef Py_ssize_t i
        self.c_clear()
        self.n = n
        for i in range(n):
            self._positions[i] = first + <int32_t>i
            self._seq_ids[i] = seq

    cdef int c_want_logits(self, Py_ssize_t row) except -1:
        self.rows.push_back(<int32_t>row)
        return 0

    cdef cbool c_holds(self, int32_t seq) noexcept:  # it compares numbers
        cdef Py_ssize_t i
        for i in range(self.n):
            if self._seq_ids[i] == seq:
                return True
        return False

    cdef cbool c_has_logits(self, long long row) noexcept:  # it compares numbers
        for known in self.rows:
            if known == row:
                return True
        return False

    cdef int c_decode(
        self, llama.llama_context *ctx, int32_t *tokens, float *rows, Watch *watch) except -1:
        """Evaluate the entries with these tokens or image rows; 1 when no free cells were found."""
        cdef bint full = True
        self._raw.n_tokens = <int32_t>self.n
        self._raw.token = tokens
        self._raw.embd = rows
        for row in self.rows:
            self._wants_logits[row] = 1
        try:
            full = native_decode(ctx, &self._raw, watch)
        finally:
            for row in self.rows:
                self._wants_logits[row] = 0
            if full:
                self.rows.clear()
        return full
