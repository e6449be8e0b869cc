"""What a type checker must see of the public API. Read by mypy, never run."""

import os
from typing import Any, Literal, assert_type

import numpy as np
from PIL import Image

from llava_native import (
    CancelToken,
    Chat,
    Constraint,
    Context,
    ImageEmbedding,
    ImageEncoder,
    ImageMap,
    Llava,
    MapItem,
    Model,
    Plan,
    Result,
    Sampler,
    SamplingParams,
    Stats,
    Token,
    TokenStream,
    build_info,
    devices,
)


def downloads() -> None:
    with Llava.from_pretrained("a/b", "*.gguf", quant=None, offline=True, n_ctx=512) as llava:
        assert_type(llava, Llava)


def isolated(path: os.PathLike[str]) -> None:
    with Llava(path, memory_limit=8 << 30, isolate=True) as llava:
        assert_type(llava, Llava)


def face(path: os.PathLike[str], image: Image.Image) -> None:
    with Llava(path, path, n_ctx=2048) as llava:
        assert_type(llava, Llava)
        assert_type(llava.model, Model)
        assert_type(llava.encoder, ImageEncoder | None)
        assert_type(llava.context, Context)
        assert_type(llava.describe(image), str)
        result = llava.generate("What is this?", image="photo.jpg", max_tokens=8, temperature=0)
        assert_type(result, Result)
        assert_type(result.finish_reason, Literal["eog", "stop", "length", "cancelled"])
        assert_type(result.usage.image_tokens, int)
        stream = llava.stream("What is this?", image=[image, b"\xff\xd8"], seed=1)
        assert_type(stream, TokenStream)
        for token in stream:
            assert_type(token, Token)
            assert_type(token.text, str)
            assert_type(token.logprob, float | None)
        messages = [{"role": "user", "content": [{"type": "image", "image": image}, "What is this?"]}]
        plan = llava.plan(messages, overflow="drop_oldest_turn")
        assert_type(plan, Plan)
        assert_type(plan.fits, bool)
        assert_type(llava.respond(messages, constraint=Constraint.regex("yes|no")), TokenStream)
        chat = llava.chat("Be brief.")
        assert_type(chat, Chat)
        assert_type(chat.send("What is this?", image=image).result(), Result)
        llava.create_chat_completion(messages, stream=True)
        assert_type(llava.ask(image, ["What is this?", "Why?"], temperature=0), list[str])
        with llava.map(["a.jpg", image], "What is this?", ordered=False, max_tokens=8) as items:
            assert_type(items, ImageMap)
            for item in items:
                assert_type(item, MapItem)
                assert_type(item.result, Result | None)
                assert_type(item.text, str)
        assert_type(llava.stats(), Stats)
        assert_type(result.timings.cached_tokens, int)


async def tasks(llava: Llava) -> None:
    async with llava.stream("Hello", timeout=3.0) as stream:
        async for token in stream:
            assert_type(token, Token)
    assert_type(await llava.stream("Hello").aresult(), Result)


def parts(path: str, pixels: "np.ndarray[Any, np.dtype[np.uint8]]") -> None:
    encoder = ImageEncoder(path, dtype="bf16", cancel=CancelToken(timeout=1.0))
    rows = encoder.encode(pixels)
    assert_type(rows, ImageEmbedding)
    assert_type(rows.shape, tuple[int, ...])
    assert_type(memoryview(rows), memoryview[int])
    assert_type(ImageEmbedding.from_buffer(np.zeros((3, 8), np.float32)), ImageEmbedding)
    model = Model(path, kv_overrides={"a": True, "b": 1, "c": 1.5, "d": "text"}, progress=print)
    ids = model.tokenize("text")
    assert_type(ids, list[int])
    with Context(model, n_ctx=64) as context:
        assert_type(context, Context)
        assert_type(context.eval(ids), int)
        assert_type(context.eval(rows[:2], seq=1, logits=False), int)
        assert_type(context.eval_batch([(0, [1, 2], True), (1, rows[2:], False)]), list[int])
        assert_type(context.can_mix, bool)
        np.asarray(context.logits)
        assert_type(Sampler(model, SamplingParams(temperature=0)).sample(context), int)
    assert_type(build_info(), dict[str, Any])
    assert_type(devices(), list[dict[str, Any]])


def mistakes(path: str, context: Context, image: Image.Image) -> None:
    ImageEncoder(path, dtype="q4")  # type: ignore[arg-type]
    Context(path)  # type: ignore[arg-type]
    Context(context.model, type_k="q5")  # type: ignore[arg-type]
    Llava(path, no_such_option=1)  # type: ignore[call-arg]
    context.n_ctx = 3  # type: ignore[misc]
    SamplingParams(temprature=0)  # type: ignore[call-arg]
