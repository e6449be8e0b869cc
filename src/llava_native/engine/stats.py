"""Stats: what an engine has done since it was made, and what it is doing."""

from __future__ import annotations

import dataclasses

__all__ = ["Stats"]


@dataclasses.dataclass
class Stats:
    """Counters of one ``Llava``, and a few numbers of this moment.

    Attributes
    ----------
    requests, finished, cancelled, failed : int
        Answers that were asked for, and how they ended.
    running, waiting : int
        Of this moment; a request waits also while its images are encoded.
    prompt_tokens, cached_tokens : int
        Tokens of prompts that began, and those of them that the prefix cache had.
    completion_tokens : int
        Tokens that were generated.
    guessed_tokens, right_tokens : int
        Tokens that `prompt_lookup` guessed, and those of them that were right.
    steps : int
        Calls of llama_decode.
    images_encoded, images_from_memory, images_from_disk, images_joined : int
        Images whose rows were made, found in the embedding cache, read from `cache_dir`, or being made for
        another request. Those that the prefix cache had are in none of them.
    embedding_bytes : int
        Bytes of rows in the embedding cache, now.
    prefixes, offloaded, cells, n_cells : int
        Sequences that the prefix cache holds in the context, and in main memory; cells in use, and all
        cells, now.
    evicted, restored, preempted : int
        Prefixes that left the context to make room, and those that came back from main memory; running
        requests that made room and were begun again.
    """

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    guessed_tokens: int = 0
    right_tokens: int = 0
    steps: int = 0
    images_encoded: int = 0
    images_from_memory: int = 0
    images_from_disk: int = 0
    images_joined: int = 0
    embedding_bytes: int = 0
    prefixes: int = 0
    offloaded: int = 0
    cells: int = 0
    n_cells: int = 0
    evicted: int = 0
    restored: int = 0
    preempted: int = 0
