"""The network: an ordinary Hugging Face LLaVA, small, and what training adds to it for a while."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    AttentionInterface,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from .data_scene import CHARS, COLOURS, SHAPES, SIZES

IMAGE_SIZE, PATCH_SIZE = 96, 8
N_IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # CLIP's; 255 times it is the colour that pads
OFFSETS = (  # of the patches that a layer's four heads look at first
    ((1, 0), (-1, 0), (0, 1), (0, -1)),
    ((1, 1), (-1, -1), (1, -1), (-1, 1)),
    ((2, 0), (-2, 0), (0, 2), (0, -2)),
)
SHARPNESS = 0.5
WORD_SCALE = 2.0
POINTING_LAYERS = (1, 2, 3)  # of the text model: whose first head looks at what is named, asked, to be said
COUNTING_HEADS = ((4, 0), (4, 1), (4, 2), (5, 0), (5, 1))  # of the tower, (layer, head): see `counting_loss`
PATCH_CLASSES = {  # name: number of classes, and the weight of class 0, since most patches show nothing
    "shape": (len(SHAPES) + 1, 0.2),
    "colour": (len(COLOURS) + 1, 0.2),
    "size": (len(SIZES) + 1, 0.2),
    "character": (len(CHARS) + 1, 0.06),
    "order": (6, 0.2),
    "place": (6, 0.06),
    "height": (6, 0.2),
    "number": (6, 0.2),
    "number of its shape": (6, 0.2),
    "number of its colour": (6, 0.2),
}
CHUNK = 64  # queries of a causal attention that are taken together
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


def make_config(vocab_size: int, special: dict[str, int]) -> LlavaConfig:
    """Describe the network.

    Parameters
    ----------
    vocab_size : int
    special : dict of str to int
        Ids of ``<s>``, ``<|end|>``, ``<pad>`` and ``<image>``.

    Returns
    -------
    LlavaConfig
    """
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=7,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="quick_gelu",
        layer_norm_eps=1e-5,
        projection_dim=160,
    )
    text = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=160,
        intermediate_size=448,
        num_hidden_layers=5,
        num_attention_heads=5,
        num_key_value_heads=5,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=special["<s>"],
        eos_token_id=special["<|end|>"],
        pad_token_id=special["<pad>"],
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=special["<image>"],
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        image_seq_length=N_IMAGE_TOKENS,
        tie_word_embeddings=True,
    )


def normalise(pixels: torch.Tensor) -> torch.Tensor:
    """Turn uint8 ``(n, h, w, 3)`` into the tower's float32 ``(n, 3, h, w)``."""
    mean, std = pixels.new_tensor([IMAGE_MEAN, IMAGE_STD], dtype=torch.float32)
    return ((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


class CausalAttention(torch.autograd.Function):
    """Softmax attention in chunks of queries, each with the keys up to its end only.

    Half of the scores are never computed, and those that are stay in the processor's cache. `bias` has to
    forbid later keys; what else it forbids is its own affair.
    """

    @staticmethod
    def forward(ctx, query, key, value, bias):
        """Attend; ``(n, heads, length, head)`` each, `bias` ``(n, 1, length, length)``."""
        out, weights = torch.empty_like(query), []
        for first in range(0, query.shape[2], CHUNK):
            rows, end = slice(first, first + CHUNK), first + CHUNK
            scores = query[:, :, rows] @ key[:, :, :end].transpose(-1, -2)
            weights.append(scores.add_(bias[:, :, rows, :end]).softmax(-1))
            out[:, :, rows] = weights[-1] @ value[:, :, :end]
        ctx.save_for_backward(query, key, value, *weights)
        return out

    @staticmethod
    def backward(ctx, grad):
        """Turn the output's gradient into the inputs'."""
        query, key, value, *weights = ctx.saved_tensors
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for number, weight in enumerate(weights):
            rows, end = slice(number * CHUNK, (number + 1) * CHUNK), (number + 1) * CHUNK
            out = grad[:, :, rows]
            d_value[:, :, :end] += weight.transpose(-1, -2) @ out
            d_weight = (out @ value[:, :, :end].transpose(-1, -2)).mul_(weight)
            d_scores = d_weight.addcmul_(weight, d_weight.sum(-1, keepdim=True), value=-1)
            d_query[:, :, rows] = d_scores @ key[:, :, :end]
            d_key[:, :, :end] += d_scores.transpose(-1, -2) @ query[:, :, rows]
        return d_query, d_key, d_value, None


def lean_attention(module, query, key, value, mask, scaling, **_unused):
    """Attend with few passes over the scores: on a CPU, faster to train than SDPA; on a GPU, SDPA."""
    query = query * scaling
    if hasattr(module, "seen"):
        module.seen = query, key, mask
    if query.is_cuda:
        out = functional.scaled_dot_product_attention(query, key, value, mask, scale=1.0)
    elif mask is None:
        out = (query @ key.transpose(-1, -2)).softmax(-1) @ value
    else:
        out = CausalAttention.apply(query, key, value, mask)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register("lean", lean_attention)


def look_around(tower: nn.Module, pixels: torch.Tensor) -> None:
    """Start the tower as a convolutional network would: patches as cosines, heads that look at neighbours.

    The first quarter of the width holds sines and cosines of the position, whose products are 1 where two
    positions agree along an axis and 0 elsewhere; a head's keys are turned by its own offset, so that it
    attends to that neighbour. The rest holds each patch's cosine transform, every filter as strong as the
    others on the pictures given. All of it goes on learning. After 3,500 pictures the patch heads' loss
    is 4.13, and 4.46 from random weights.

    Parameters
    ----------
    tower : CLIPVisionModel
    pixels : Tensor
        uint8 ``(n, h, w, 3)``.
    """
    embed = tower.embeddings
    width = embed.patch_embedding.weight.shape[0]
    head = width // tower.config.num_attention_heads
    pairs = head // 4
    waves = math.pi * (torch.arange(pairs) + 0.5) / pairs
    rows = IMAGE_SIZE // PATCH_SIZE
    where = torch.arange(rows)[:, None] * waves
    axis = torch.cat([where.cos(), where.sin()], 1)  # (rows, head / 2)
    grid = torch.cat([axis.repeat(rows, 1), axis.repeat_interleave(rows, 0)], 1)  # x, then y
    with torch.no_grad():
        embed.position_embedding.weight[1:, :head] = grid
        filters = embed.patch_embedding.weight.zero_()[head:]
        filters[:] = cosine_filters(width - head, PATCH_SIZE)
        seen = embed.patch_embedding(normalise(pixels)).transpose(0, 1).flatten(1)[head:]
        filters *= (0.5 / seen.std(1).clamp_min(1e-3))[:, None, None, None]
        for number, layer in enumerate(tower.encoder.layers[:-3]):
            attention = layer.self_attn
            for n, (dx, dy) in enumerate(OFFSETS[number % len(OFFSETS)]):
                turn = torch.block_diag(turning(waves, dx), turning(waves, dy))
                rows_of = slice(n * head, (n + 1) * head)
                attention.q_proj.weight[rows_of] *= 0.3
                attention.k_proj.weight[rows_of] *= 0.3
                attention.q_proj.weight[rows_of, :head] += SHARPNESS * torch.eye(head)
                attention.k_proj.weight[rows_of, :head] += SHARPNESS * turn


def turning(waves: torch.Tensor, offset: int) -> torch.Tensor:
    """Make the matrix that moves a position's cosines and sines back by `offset`."""
    c, s = torch.diag((waves * offset).cos()), torch.diag((waves * offset).sin())
    return torch.cat([torch.cat([c, s], 1), torch.cat([-s, c], 1)])


def cosine_filters(n: int, side: int) -> torch.Tensor:
    """Make the `n` lowest cosine filters ``(n, 3, side, side)``, half of brightness and half of colour."""
    at = (torch.arange(side) + 0.5) * math.pi / side
    order = sorted((a * a + b * b, a, b) for a in range(side) for b in range(side))
    mixes = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])
    filters = []
    for mix, count in zip(mixes, (n - n // 4 * 2, n // 4, n // 4), strict=True):
        for _, a, b in order[:count]:
            wave = (a * at).cos()[:, None] * (b * at).cos()
            scale = (1 + a * a + b * b) ** 0.5 / wave.norm() / mix.norm() / side
            filters.append(scale * mix[:, None, None] * wave)
    return torch.stack(filters)


class PatchHeads(nn.Module):
    """Say, for each image token, what is there: only for training, dropped at export.

    `PATCH_CLASSES` (class 0: nothing there) are the shape, colour and size of the thing on the patch, the
    character on it, the thing's place from left to right, the character's place in the text, the thing's
    place from the top, the number of all things, of those of its shape, and of those of its colour. Then
    whether the patch holds a thing's centre, the way from the patch to that centre, and where in the picture
    the centre is. What a language model needs to tell things apart, in order, and to count them is so in
    every token.
    """

    def __init__(self, width: int):
        super().__init__()
        self.classes = [size for size, _ in PATCH_CLASSES.values()]
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, sum(self.classes) + 5)

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the logits of each class, the centre flag's, and the four lengths."""
        return self.out(self.norm(features.float())).split((*self.classes, 1, 4), dim=-1)

    def loss(self, features: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compare with the truth ``(n, n_patches, 15)``: ten classes, centre flag, dx, dy, x and y."""
        *classes, flag, lengths = self(features)
        total = functional.binary_cross_entropy_with_logits(flag[..., 0], target[..., 10])
        for i, (part, (size, nothing)) in enumerate(zip(classes, PATCH_CLASSES.values(), strict=True)):
            weight = features.new_ones(size)
            weight[0] = nothing
            truth = target[..., i].flatten().long()
            total = total + functional.cross_entropy(part.flatten(0, 1), truth, weight)
        on = (target[..., 0] > 0).float().unsqueeze(-1)
        return total + 2 * ((lengths - target[..., 11:] * 4).abs() * on).sum() / (on.sum() * 4 + 1)


def word_loss(features: torch.Tensor, table: torch.Tensor, words: list, target: torch.Tensor) -> torch.Tensor:
    """Let a patch say what is on it in the language model's own words.

    Its features are to point where the tokens of its shape, colour, size and character point. To find the
    star that a question is about, and to name its colour, is then to compare and to copy; without this,
    2,000 steps did not teach the language model to find a thing by its shape.

    Parameters
    ----------
    features : Tensor
        ``(n, n_patches, n_embd)``.
    table : Tensor
        The token embeddings, ``(n_vocab, n_embd)``.
    words : list of Tensor
        Token ids of each group's words.
    target : Tensor
        As for `PatchHeads.loss`; 0 in its first four columns means nothing there.
    """
    features = functional.rms_norm(features, features.shape[-1:])
    total = features.new_zeros(())
    for column, ids in enumerate(words):
        on = target[..., column] > 0
        logits = WORD_SCALE * features[on] @ functional.normalize(table[ids], dim=-1).T
        losses = functional.cross_entropy(logits, target[..., column][on].long() - 1, reduction="sum")
        total = total + losses / on.sum().clamp_min(1)
    return total


def counting_loss(query: torch.Tensor, key: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Let a head of the tower count: look equally at the class token and at each thing to be counted.

    The class token's share is then 1 / (1 + number), whatever the things' sizes. From a thing's patches, one
    head looks so at the centres of the things left of it, others at those above it, at all, at those of its
    shape and at those of its colour. Without this, one patch in six did not know its thing's place in order.

    Parameters
    ----------
    query, key : Tensor
        Of the head, ``(n, 1 + n_patches, head)``, the query scaled.
    counted : Tensor
        float32 ``(n, n_patches, 1 + n_patches)``: where to look from which patch, the class token first; only
        zeros for a patch with nothing on it.
    """
    number = counted.sum(-1)
    on = number > 0
    looks = (query[:, 1:] @ key.transpose(-1, -2)).log_softmax(-1)
    return -((looks * counted).sum(-1)[on] / number[on] + number[on].log()).mean()


def pointing_loss(query, key, bias, point: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Let one head look at the patches of the things that a question is about.

    First from the words that name them, then, where there is one, from the token before the answer.

    Parameters
    ----------
    query, key : Tensor
        Of the head, ``(rows, length, head)``, the query scaled.
    bias : Tensor
        ``(rows, length, length)``.
    point : Tensor
        Tokens of the flattened rows.
    target : Tensor
        For each of them, flags ``(n, length)``: where to look.
    """
    row, at = point // key.shape[1], point % key.shape[1]
    scores = torch.einsum("nd,nld->nl", query[row, at], key[row]) + bias[row, at]
    found = scores.log_softmax(-1).masked_fill(~target, -torch.inf).logsumexp(-1)
    return -found.sum() / max(1, len(point))


class Trainee(nn.Module):
    """A LLaVA with patch heads and a forward pass for packed sequences.

    Parameters
    ----------
    config : LlavaConfig
    """

    def __init__(self, config: LlavaConfig):
        super().__init__()
        self.llava = LlavaForConditionalGeneration(config)
        self.llava.set_attn_implementation("eager")  # generation, evaluation; training: see `train_lean`
        self.heads = PatchHeads(config.text_config.hidden_size)
        text, tower = self.llava.model.language_model.layers, self.llava.model.vision_tower.encoder.layers
        self.pointers = [text[number].self_attn for number in POINTING_LAYERS]
        self.counters = [(tower[number].self_attn, head) for number, head in COUNTING_HEADS]
        for attention in [*self.pointers, *(attention for attention, _ in self.counters)]:
            attention.seen = None  # queries, keys and mask, kept for `pointing_loss` and `counting_loss`

    def train_lean(self) -> None:
        """Use the fast attention, which knows only the masks of `logits`."""
        self.llava.set_attn_implementation("lean")

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pictures as LLaVA does (layer -2, no class token): ``(n, n_patches, n_embd)``."""
        tower = self.llava.model.vision_tower
        hidden = tower.pre_layrnorm(tower.embeddings(normalise(pixels)))
        for layer in tower.encoder.layers[:-1]:  # the last layer's output is never used
            hidden = layer(hidden, None)
        return self.llava.model.multi_modal_projector(hidden[:, 1:])

    def logits(self, features: torch.Tensor, batch: dict) -> torch.Tensor:
        """Run the text model over packed sequences; returns logits where `batch["where"]` asks for them."""
        text = self.llava.model.language_model
        embeddings = text.embed_tokens(batch["ids"])
        flat = embeddings.flatten(0, 1)
        flat = flat.index_copy(0, batch["image_at"], features.flatten(0, 1).to(flat.dtype))
        seg, length = batch["segment"], batch["ids"].shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=seg.device).tril()
        mask = causal & ((seg[:, None, :] == 0) | (seg[:, None, :] == seg[:, :, None]))
        bias = flat.new_zeros(mask.shape).masked_fill(~mask, -1e9)[:, None]
        out = text(
            inputs_embeds=flat.view_as(embeddings),
            attention_mask=bias,
            position_ids=batch["position"],
            use_cache=False,
        ).last_hidden_state
        return self.llava.lm_head(out.flatten(0, 1)[batch["where"]])

    def forward(self, batch: dict, text: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the losses of a batch.

        Returns
        -------
        answer, patches : Tensor
            Cross-entropy of the answers' tokens (0 if `text` is false); what else is to be learnt.
        """
        features = self.features(batch["pixels"])
        patches = self.heads.loss(features, batch["patches"])
        table = self.llava.get_input_embeddings().weight
        patches = patches + word_loss(features, table, batch["words"], batch["patches"])
        for (counter, head), counted in zip(self.counters, batch["counted"].float().unbind(1), strict=True):
            query, key, _ = counter.seen
            patches = patches + counting_loss(query[:, head], key[:, head], counted)
        if not text:
            return patches.new_zeros(()), patches
        losses = functional.cross_entropy(self.logits(features, batch), batch["label"], reduction="none")
        answer = (losses @ batch["weight"]) / batch["weight"].sum()
        for pointer, lesson in zip(self.pointers, batch["pointing"], strict=True):
            patches = patches + pointing_loss(*(part[:, 0] for part in pointer.seen), *lesson)
        return answer, patches


def split_parameters(model: nn.Module) -> tuple[list, list]:
    """Separate the hidden layers' matrices (for Muon) from everything else (for AdamW)."""
    matrices, others = [], []
    for name, p in model.named_parameters():
        hidden = p.ndim == 2 and not any(s in name for s in ("embed", "lm_head", "heads.", "position"))
        (matrices if hidden else others).append(p)
    return matrices, others


def learning_rate(step: int, total: int, peak: float, cooldown: int, warmup: int = 40) -> float:
    """Warm up linearly, stay, and fall to nothing over the last `cooldown` steps.

    Where to stop need not be known when starting: a checkpoint may go on to any other total.
    """
    return peak * min(1.0, (step + 1) / warmup, (total - step) / max(1, cooldown))
