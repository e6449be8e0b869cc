"""Image rows against a NumPy CLIP, projector and preparation that owe nothing to llama.cpp.

The tolerance is far below what either upstream defect changes (patches 0001 and 0002): the defects are
computed in NumPy too, and the rows must be far from them.
"""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from support.gguf_parts import Parts, RawTensor
from support.reference import image_features, preprocess, row_cosines
from support.tiny_models import write_mmproj

from llava_native import ImageEncoder, devices
from llava_native.machine import gpus

LAYOUTS = ["legacy", "full", "modern"]
SIZES = [28, 56, 70]
ON_GPU = bool(gpus(devices()))  # where F32 is multiplied as TF32
SHAPES = [(61, 61), (97, 31), (23, 88), (3, 200), (1, 1)]


def widened(path):
    """Store every tensor as float32: the old converters keep the projector in float16 whatever is asked."""
    parts = Parts.read(path)
    for name, tensor in parts.tensors.items():
        if tensor.type == 1:
            data = np.frombuffer(tensor.data, "<f2").astype("<f4").tobytes()
            parts.tensors[name] = RawTensor(tensor.shape, 0, data)
    path.write_bytes(parts.to_bytes())


def picture(width, height, seed=0):
    """Gradients, noise and an edge, so that neither a shift nor a flip goes unseen."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    smooth = np.stack([200 * x, 200 * y, np.where(x + y > 1, 180, 20)], -1)
    noise = np.random.default_rng(seed).integers(0, 56, (height, width, 3))
    return Image.fromarray((smooth + noise).astype(np.uint8))


def encode(path, image):
    with ImageEncoder(path, n_threads=1) as encoder:
        return np.array(encoder.encode(image))


@pytest.fixture(scope="module", params=[(layout, size) for layout in LAYOUTS for size in SIZES], ids=str)
def mmproj(request, tmp_path_factory):
    layout, size = request.param
    path = tmp_path_factory.mktemp("mmproj") / "mmproj.gguf"
    written = write_mmproj(path, layout=layout, dtype="f32", image_size=size, seed=size)
    widened(path)
    return written


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape[0]}x{shape[1]}")
def test_rows_are_those_of_the_papers(mmproj, shape):
    image = picture(*shape)
    expected = image_features(preprocess(image, mmproj.params.image_size), mmproj.weights, mmproj.params)
    rows = encode(mmproj.path, image)
    assert rows.dtype == np.float32
    assert rows.shape == (mmproj.params.n_patches, mmproj.params.n_embd_text)
    assert row_cosines(rows, expected).min() >= 0.99999
    # a GELU out of a table by float16, and one by tanh, are farther away; see patch 0019
    assert np.abs(rows - expected).max() <= (1e-2 if ON_GPU else 1.2e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_f16_files_agree_to_their_rounding(tmp_path, layout):
    written = write_mmproj(tmp_path / "m.gguf", layout=layout, dtype="f16", image_size=56)
    image = picture(80, 45)
    expected = image_features(preprocess(image, 56), written.weights, written.params)
    with ImageEncoder(written.path, n_threads=1, dtype="f16") as encoder:
        rows = np.array(encoder.encode(image))
    assert row_cosines(rows, expected).min() >= 0.99999
    assert np.abs(rows - expected).max() <= 2e-2


def test_the_three_layouts_give_the_same_rows(tmp_path):
    rows = []
    for layout in LAYOUTS:
        path = write_mmproj(tmp_path / f"{layout}.gguf", layout=layout, dtype="f32").path
        widened(path)
        rows.append(encode(path, picture(40, 30)))
    np.testing.assert_allclose(rows[1], rows[0], atol=1e-5)
    np.testing.assert_allclose(rows[2], rows[0], atol=1e-5)


# -- the two defects, computed on purpose: what the tests above would see without the patches ----------


def class_token_last(pixels, weights, params):
    """All rows but the last of what unpatched llama.cpp computes (issue 25814).

    It lays out [patches, class] and keeps rows 1 to n, as if the class token were row 0. Attention knows
    no order, so moving the positions one row on is the same as moving the contents one row back.
    """
    name = "vision_model.embeddings.position_embedding.weight"
    moved = {**weights, name: np.roll(weights[name], 1, axis=0)}
    return image_features(pixels, moved, params)[1:]


def test_rows_are_far_from_the_class_token_last(tmp_path):
    written = write_mmproj(tmp_path / "m.gguf", layout="full", dtype="f32", image_size=56)
    image = picture(80, 45)
    wrong = class_token_last(preprocess(image, 56), written.weights, written.params)
    rows = encode(written.path, image)[:-1]
    assert row_cosines(rows, wrong).mean() < 0.9
    assert np.abs(rows - wrong).max() > 0.1


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("depth", [-1, -3], ids=["one block too many", "one block short"])
def test_rows_are_far_from_another_depth(tmp_path, layout, depth):
    written = write_mmproj(tmp_path / "m.gguf", layout=layout, dtype="f32", image_size=56)
    image = picture(80, 45)
    wrong = image_features(preprocess(image, 56), written.weights, written.params, feature_layer=depth)
    rows = encode(written.path, image)
    assert row_cosines(rows, wrong).mean() < 0.95
    assert np.abs(rows - wrong).max() > 0.1


def test_the_post_layernorm_is_not_applied(tmp_path):
    """A file that carries a post-layernorm must give the same rows whatever is in it."""
    one = write_mmproj(tmp_path / "one.gguf", layout="full", dtype="f32")
    parts = Parts.read(one.path)
    weight = parts.tensors["v.post_ln.weight"]
    parts.tensors["v.post_ln.weight"] = RawTensor(weight.shape, 0, bytes(len(weight.data)))
    (tmp_path / "two.gguf").write_bytes(parts.to_bytes())
    image = picture(40, 30)
    np.testing.assert_array_equal(encode(one.path, image), encode(tmp_path / "two.gguf", image))


def test_the_same_picture_gives_the_same_rows_again(encoder):
    image = picture(64, 48)
    first = np.array(encoder.encode(image))
    np.testing.assert_array_equal(encoder.encode(image), first)
    assert np.abs(np.asarray(encoder.encode(picture(64, 48, seed=1))) - first).max() > 0.1


def test_threads_do_not_change_the_rows(pair, picture):
    one = encode(pair.mmproj.path, picture)
    with ImageEncoder(pair.mmproj.path, n_threads=3) as encoder:
        np.testing.assert_allclose(encoder.encode(picture), one, atol=1e-5)
