import os
from collections.abc import Iterable

from llava_native._context import Context
from llava_native._model import Model

class LoraAdapter:
    path: str
    fingerprint: str
    scale: float
    nbytes: int
    changes_embeddings: bool
    def __init__(self, model: Model, path: str | os.PathLike[str], *, scale: float = 1.0) -> None: ...

def set_adapters(context: Context, adapters: Iterable[LoraAdapter]) -> None: ...
def adapters_of(context: Context) -> list[LoraAdapter]: ...
