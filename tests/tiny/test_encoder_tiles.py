"""LLaVA-1.6 files: tiles and an overview, each encoded by libmtmd, as one embedding."""

from __future__ import annotations

import numpy as np
import pytest
from support.tiny_models import write_mmproj

from llava_native import ImageEmbedding, ImageEncoder, Llava
from llava_native.errors import PromptTooLongError

SIZE, ROWS = 56, 16
TILED = {
    "clip.vision.image_grid_pinpoints": [56, 112, 112, 56, 112, 112, 168, 56],
    "clip.vision.mm_patch_merge_type": "spatial_unpad",
}


@pytest.fixture
def encoder(tmp_path):
    write_mmproj(tmp_path / "tiled.gguf", image_size=SIZE, kv=TILED)
    with ImageEncoder(tmp_path / "tiled.gguf") as opened:
        yield opened


def picture(height, width):
    return np.random.default_rng(5).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width", "tiles"), [(30, 200, 3), (200, 30, 2), (500, 500, 4)])
def test_the_tiles_of_the_best_resolution_and_an_overview(encoder, height, width, tiles):
    rows = encoder.encode(picture(height, width))
    assert rows.shape == ((1 + tiles) * ROWS, encoder.n_embd)
    assert np.isfinite(np.asarray(rows)).all()
    assert rows.fingerprint == encoder.fingerprint


def test_rows_of_tiles_lie_in_their_order(encoder):
    flat = np.full((2 * SIZE, 2 * SIZE, 3), 90, np.uint8)
    changed = flat.copy()
    changed[SIZE:, SIZE:] = 200  # the last of four tiles
    before, after = (np.asarray(encoder.encode(image)).reshape(5, ROWS, -1) for image in (flat, changed))
    differs = [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
    assert differs == [False, False, False, True, True]  # libmtmd's order: the overview comes last


def test_a_tiled_image_is_answered(encoder, pair):
    with Llava(pair.text.path, encoder, n_ctx=256) as llava:
        result = llava.generate("?", image=picture(500, 500), max_tokens=3, temperature=0)
        assert result.usage.image_tokens == 5 * ROWS
        assert result.usage.completion_tokens == 3


def test_a_prompt_that_grows_too_long_with_its_tiles(encoder, pair):
    with Llava(pair.text.path, encoder, n_ctx=256) as llava:
        stream = llava.stream("?", image=[picture(500, 500)] * 4)  # fits while one tile each is counted
        with pytest.raises(PromptTooLongError) as caught:
            next(stream)
        assert caught.value.n_tokens > caught.value.n_ctx
        rows = ImageEmbedding.from_buffer(np.zeros((2, encoder.n_embd), np.float32))
        assert llava.generate("?", image=rows, max_tokens=2).usage.image_tokens == 2
