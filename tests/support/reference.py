"""What LLaVA-1.5 and Llama compute, in NumPy, from the papers' and Hugging Face's definitions.

Nothing here follows llama.cpp: where the two differ, llama.cpp is the one under test. Sums are in
float64, so that a difference is the native side's rounding and not ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from .tiny_models import CLIP_MEAN, CLIP_STD, TextParams, VisionParams, Weights

MEAN_COLOUR = (122, 116, 104)  # int(255 * mean), as LLaVA's process_images computes it

_erf = np.vectorize(math.erf, otypes=[float])


def preprocess(image: Image.Image, size: int) -> np.ndarray:
    """Return the pixels that LLaVA-1.5 gives to its vision tower.

    Parameters
    ----------
    image : PIL.Image.Image
        An RGB image of any size.
    size : int
        Side of the tower's input.

    Returns
    -------
    ndarray of uint8, shape (size, size, 3)
        The image in the middle of a square of the mean colour, resized by Pillow.
    """
    width, height = image.size
    side = max(width, height)
    square = Image.new("RGB", (side, side), MEAN_COLOUR)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))


def normalise(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 pixels (h, w, 3) as CLIP's input (3, h, w)."""
    return np.asarray((pixels / 255.0 - np.asarray(CLIP_MEAN)) / np.asarray(CLIP_STD)).transpose(2, 0, 1)


def image_features(
    pixels: np.ndarray, weights: Weights, params: VisionParams, *, feature_layer: int = -2
) -> np.ndarray:
    """Return the rows that LLaVA-1.5 puts in place of an image.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (image_size, image_size, 3)
        Preprocessed pixels.
    weights : mapping of str to ndarray
        The whole tower and the projector under Hugging Face's names.
    params : VisionParams
        Shape of the tower.
    feature_layer : int
        Which of the ``n_layer + 1`` hidden states to take; LLaVA's is the last but one.

    Returns
    -------
    ndarray of float64, shape (n_patches, n_embd_text)
    """
    states = hidden_states(normalise(pixels), weights, params)
    patches = states[feature_layer][1:]
    inner = _gelu(_linear(patches, weights, "multi_modal_projector.linear_1"))
    return _linear(inner, weights, "multi_modal_projector.linear_2")


def hidden_states(pixel_values: np.ndarray, weights: Weights, params: VisionParams) -> list[np.ndarray]:
    """Return CLIP's hidden states: after the embeddings, then after each block; the class row first."""
    patch, side = params.patch_size, params.image_size // params.patch_size
    kernel = weights["vision_model.embeddings.patch_embedding.weight"].astype(float)
    tiles = pixel_values.reshape(3, side, patch, side, patch).transpose(1, 3, 0, 2, 4)
    rows = tiles.reshape(side * side, -1) @ kernel.reshape(len(kernel), -1).T
    x = np.vstack([weights["vision_model.embeddings.class_embedding"].astype(float), rows])
    x = x + weights["vision_model.embeddings.position_embedding.weight"]
    x = _layer_norm(x, weights, "vision_model.pre_layrnorm", params.eps)
    states = [x]
    for i in range(params.n_layer):
        block = f"vision_model.encoder.layers.{i}."
        x = x + _clip_attention(
            _layer_norm(x, weights, f"{block}layer_norm1", params.eps), weights, block, params
        )
        inner = _linear(
            _layer_norm(x, weights, f"{block}layer_norm2", params.eps), weights, f"{block}mlp.fc1"
        )
        x = x + _linear(inner / (1.0 + np.exp(-1.702 * inner)), weights, f"{block}mlp.fc2")
        states.append(x)
    return states


def llama_logits(
    parts: Sequence[int | Sequence[int] | np.ndarray], weights: Weights, params: TextParams
) -> np.ndarray:
    """Return a Llama's logits after every position.

    Parameters
    ----------
    parts : sequence
        Token ids, lists of token ids, and float arrays (n, n_embd) of ready rows, in order.
    weights : mapping of str to ndarray
        Weights under their GGUF names.
    params : TextParams
        Shape of the model.

    Returns
    -------
    ndarray of float64, shape (n_positions, n_vocab)
    """
    x = np.vstack([_rows(part, weights) for part in parts])
    for i in range(params.n_layer):
        block = f"blk.{i}."
        h = _rms_norm(x, weights[f"{block}attn_norm.weight"], params.eps)
        x = x + _llama_attention(h, weights, block, params)
        h = _rms_norm(x, weights[f"{block}ffn_norm.weight"], params.eps)
        gate = _linear(h, weights, f"{block}ffn_gate")
        inner = gate / (1.0 + np.exp(-gate)) * _linear(h, weights, f"{block}ffn_up")
        x = x + _linear(inner, weights, f"{block}ffn_down")
    return _linear(_rms_norm(x, weights["output_norm.weight"], params.eps), weights, "output")


def row_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine between each row of `a` and the same row of `b`."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    return np.asarray((a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)))


def _clip_attention(x: np.ndarray, weights: Weights, block: str, params: VisionParams) -> np.ndarray:
    q, k, v = (
        _heads(_linear(x, weights, f"{block}self_attn.{part}"), params.n_head)
        for part in ("q_proj", "k_proj", "v_proj")
    )
    return _linear(_attend(q, k, v), weights, f"{block}self_attn.out_proj")


def _llama_attention(x: np.ndarray, weights: Weights, block: str, params: TextParams) -> np.ndarray:
    q = _rotate(_heads(_linear(x, weights, f"{block}attn_q"), params.n_head), params.rope_base)
    k = _rotate(_heads(_linear(x, weights, f"{block}attn_k"), params.n_head_kv), params.rope_base)
    v = _heads(_linear(x, weights, f"{block}attn_v"), params.n_head_kv)
    shared = params.n_head // params.n_head_kv
    causal = np.triu(np.full((len(x), len(x)), -np.inf), 1)
    mixed = _attend(q, k.repeat(shared, 0), v.repeat(shared, 0), causal)
    return _linear(mixed, weights, f"{block}attn_output")


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | float = 0.0) -> np.ndarray:
    """Attend within each head (heads, rows, width); return the heads joined (rows, heads * width)."""
    scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1]) + mask
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    mixed: np.ndarray = (scores / scores.sum(-1, keepdims=True)) @ v
    return mixed.transpose(1, 0, 2).reshape(q.shape[1], -1)


def _heads(x: np.ndarray, n_head: int) -> np.ndarray:
    return x.reshape(len(x), n_head, -1).transpose(1, 0, 2)


def _rotate(x: np.ndarray, base: float) -> np.ndarray:
    """Rotate the pairs (0, 1), (2, 3), … of each head; GGUF stores Llama's rows in that order."""
    n_rows, width = x.shape[1:]
    angles = np.outer(np.arange(n_rows), base ** (-np.arange(0, width, 2) / width))
    turned = (x[..., 0::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([turned.real, turned.imag], -1).reshape(x.shape)


def _rows(part: int | Sequence[int] | np.ndarray, weights: Weights) -> np.ndarray:
    if isinstance(part, np.ndarray) and part.dtype.kind == "f":
        return part.astype(float)
    return weights["token_embd.weight"][np.atleast_1d(np.asarray(part, dtype=np.int64))].astype(float)


def _linear(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    return np.asarray(x @ weights[f"{name}.weight"].astype(float).T + weights.get(f"{name}.bias", 0.0))


def _layer_norm(x: np.ndarray, weights: Weights, name: str, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])


def _rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight)


def _gelu(x: np.ndarray) -> np.ndarray:
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))
