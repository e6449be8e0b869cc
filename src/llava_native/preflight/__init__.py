"""Checks of a model's header that come before any native call.

llama.cpp asserts, dereferences null pointers or reads beyond an array on many model files that are
damaged, unusual, or simply the other one of the pair. After these functions have returned, what they
list in their notes cannot happen any more.

Nothing here needs the native module, and no weights are read.
"""

from .adapter import check_adapter
from .mmproj import MmprojInfo, check_mmproj, missing_mmproj_keys
from .text import TextModelInfo, check_text_model

__all__ = [
    "MmprojInfo",
    "TextModelInfo",
    "check_adapter",
    "check_mmproj",
    "check_text_model",
    "missing_mmproj_keys",
]
