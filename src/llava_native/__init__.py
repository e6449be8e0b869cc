"""Native LLaVA in your process: image in, tokens out, nothing copied that need not be.

``Llava`` is what most programs use; ``Model``, ``ImageEncoder``, ``ImageEmbedding``, ``Context`` and
``Sampler`` are the parts it is made of.
"""

import importlib
import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llava_native._cancel import CancelToken
    from llava_native._context import Context
    from llava_native._embedding import ImageEmbedding
    from llava_native._encoder import ImageEncoder
    from llava_native._model import Model
    from llava_native._native import build_info, devices
    from llava_native._sampler import Sampler
    from llava_native.bulk import ImageMap, MapItem
    from llava_native.chat import Chat
    from llava_native.constraint import Constraint
    from llava_native.engine.stats import Stats
    from llava_native.errors import LlavaError
    from llava_native.llava import Llava
    from llava_native.params import SamplingParams
    from llava_native.planning import Plan
    from llava_native.stream import Result, Timings, Token, TokenStream, Usage

__all__ = [
    "CancelToken",
    "Chat",
    "Constraint",
    "Context",
    "ImageEmbedding",
    "ImageEncoder",
    "ImageMap",
    "Llava",
    "LlavaError",
    "MapItem",
    "Model",
    "Plan",
    "Result",
    "Sampler",
    "SamplingParams",
    "Stats",
    "Timings",
    "Token",
    "TokenStream",
    "Usage",
    "__version__",
    "build_info",
    "devices",
]

_HOMES = {
    "CancelToken": "_cancel",
    "Chat": "chat",
    "Constraint": "constraint",
    "Context": "_context",
    "ImageEmbedding": "_embedding",
    "ImageEncoder": "_encoder",
    "ImageMap": "bulk",
    "Llava": "llava",
    "LlavaError": "errors",
    "MapItem": "bulk",
    "Model": "_model",
    "Plan": "planning",
    "Result": "stream",
    "Sampler": "_sampler",
    "SamplingParams": "params",
    "Stats": "engine.stats",
    "Timings": "stream",
    "Token": "stream",
    "TokenStream": "stream",
    "Usage": "stream",
    "build_info": "_native",
    "devices": "_native",
}

# a library stays silent unless its application asks: without a handler, logging prints warnings itself
logging.getLogger("llava_native").addHandler(logging.NullHandler())


def __getattr__(name: str) -> object:
    """Import a public name at its first use, so that ``import llava_native`` costs next to nothing."""
    if name == "__version__":
        from importlib import metadata  # a slow import that few need

        return metadata.version("llava-native")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(f"llava_native.{_HOMES[name]}")
    except ImportError as exc:
        if exc.name is None or not exc.name.startswith("llava_native._"):
            raise
        if isinstance(exc, ModuleNotFoundError):
            raise ImportError(
                f"the compiled module {exc.name} is missing: llava_native must be installed (pip install .), "
                "and not be imported from a source folder that was never built"
            ) from exc
        raise ImportError(
            f"the compiled module {exc.name} cannot be loaded: {exc}. This build was linked to a library "
            "that is not on this machine; one for a GPU needs its driver (libcuda.so.1 comes with NVIDIA's)"
        ) from exc
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
