"""Batch: the arrays that one llama_decode reads, for tokens and image rows of one or several sequences."""

from libc.string cimport memcpy

from llava_native._native cimport native_decode, native_token_rows


cdef class Batch:
    """The arrays of a llama_batch (llama.h), laid out once. Inside a ``Context``; not thread-safe."""

    cdef int c_resize(self, Py_ssize_t capacity) except -1:
        cdef Py_ssize_t i
        self.capacity = capacity
        self._tokens.resize(capacity)
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
        self.n = self.n_image = 0
        self.rows.clear()
        self._images.clear()

    cdef void c_push(self, int32_t token, int32_t position, int32_t seq) noexcept:  # it writes numbers
        """Add an entry; the caller knows that there is room."""
        self._tokens[self.n] = token
        self._positions[self.n] = position
        self._seq_ids[self.n] = seq
        self.n += 1

    cdef void c_push_tokens(
        self, const int32_t *tokens, Py_ssize_t n, int32_t position, int32_t seq) noexcept:  # likewise
        """Add tokens; the caller knows that there is room."""
        cdef Py_ssize_t i
        for i in range(n):
            self.c_push(tokens[i], position + <int32_t>i, seq)

    cdef int c_push_rows(self, float *data, Py_ssize_t n, int32_t position, int32_t seq) except -1:
        """Add image rows; the caller knows that there is room, and keeps them."""
        cdef Py_ssize_t i
        self._images.push_back(Rows(self.n, n, data))
        for i in range(n):
            self.c_push(-1, position + <int32_t>i, seq)
        self.n_image += n
        return 0

    cdef int c_want_logits(self, Py_ssize_t n) except -1:
        """Want the logits after each of the last `n` entries."""
        cdef Py_ssize_t row
        for row in range(self.n - n, self.n):
            self.rows.push_back(<int32_t>row)
        return 0

    cdef cbool c_has_logits(self, long long row) noexcept:  # it compares numbers
        for known in self.rows:
            if known == row:
                return True
        return False

    cdef int c_lay_input(self, llama.llama_model *model, Py_ssize_t n_embd) except -1:
        """Choose what the library reads: ids, rows of one image where they lie, or rows of all entries."""
        self._raw.token = NULL
        self._raw.embd = NULL
        if self.n_image == 0:
            self._raw.token = self._tokens.data()
        elif self.n_image == self.n and self._images.size() == 1:
            self._raw.embd = self._images[0].data
        else:
            self.c_mix(model, n_embd)
            self._raw.embd = self._mixed.data()
        return 0

    cdef int c_mix(self, llama.llama_model *model, Py_ssize_t n_embd) except -1:
        """Lay the rows of images and of tokens one after another."""
        cdef Py_ssize_t at = 0
        self._mixed.resize(self.n * n_embd)
        for image in self._images:
            if at < image.first:
                native_token_rows(model, &self._tokens[at], image.first - at, &self._mixed[at * n_embd])
            with nogil:
                memcpy(&self._mixed[image.first * n_embd], image.data, image.n * n_embd * sizeof(float))
            at = image.first + image.n
        if at < self.n:
            native_token_rows(model, &self._tokens[at], self.n - at, &self._mixed[at * n_embd])
        return 0

    cdef size_t c_input_address(self) noexcept:  # it reads pointers
        return <size_t>self._raw.embd if self._raw.embd != NULL else <size_t>self._raw.token

    cdef int c_decode(self, llama.llama_context *ctx, Watch *watch) except -1:
        """Evaluate the entries; 1 when no free cells were found."""
        cdef bint full = True
        self._raw.n_tokens = <int32_t>self.n
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
