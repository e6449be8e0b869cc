"""LAYER 4, the engine: any number of callers over the sequences of one context.

It knows no file formats and no prompts: token ids, image rows and images that an encoder takes come in,
and tokens go out.
"""

from llava_native.engine.engine import Engine, n_sequences
from llava_native.engine.request import RUN_AHEAD, Choice, Event, FinishReason, Request
from llava_native.engine.stats import Stats

__all__ = ["RUN_AHEAD", "Choice", "Engine", "Event", "FinishReason", "Request", "Stats", "n_sequences"]
