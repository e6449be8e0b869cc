"""The engine in a child process, for ``Llava(isolate=True)``: what kills it there leaves the caller alive.

``parts`` is what a ``Llava`` is made of instead of its own model and engine; ``engine``, ``process`` and
``objects`` are the caller's side, ``child`` is the other one, ``wire``, ``shared`` and ``faults`` are what
goes between them: framed JSON, numbers and text, never code.
"""
