"""Compare PyTorch with `llava_native` on the same weights: image features, next-token logits, greedy answers.

``python -m training.parity --out DIR --model F32.gguf --mmproj MMPROJ-F32.gguf`` needs both installed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from .data import Packer, load_tokenizer
from .data_scene import preprocess
from .evaluate import HELD_OUT, held_out
from .export import load_trained
from .model import IMAGE_SIZE


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Measure the cosine of matching rows."""
    return (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


class Reference:
    """The checkpoint in PyTorch, through Hugging Face's own forward pass."""

    def __init__(self, folder: Path):
        self.model = load_trained(folder)
        self.packer = Packer(load_tokenizer(folder))

    @torch.inference_mode()
    def features(self, picture) -> np.ndarray:
        """Encode one picture."""
        return self.model.features(torch.tensor(preprocess(picture, IMAGE_SIZE))[None])[0].numpy()

    @torch.inference_mode()
    def logits(self, ids: list[int], picture) -> np.ndarray:
        """Run a whole sequence; `ids` has one ``<image>`` for each of the picture's tokens."""
        llava = self.model.llava
        tokens = torch.tensor([ids])
        embeddings = llava.get_input_embeddings()(tokens)
        embeddings[0, tokens[0] == self.packer.id["<image>"]] = torch.from_numpy(self.features(picture))
        out = llava.model.language_model(inputs_embeds=embeddings).last_hidden_state
        return llava.lm_head(out)[0].numpy()


def compare(reference: Reference, model_path: str, mmproj_path: str, pictures: int) -> dict[str, float]:
    """Compare over `pictures` held-out scenes.

    Returns
    -------
    dict
        Smallest cosine of a feature row, largest difference of a logit, share of equal next tokens.
    """
    from llava_native import Context, ImageEncoder, Model

    items = [i for i in held_out(pictures, start=HELD_OUT + 12345) if i.kind == "describe"]
    packer = reference.packer
    worst, gap, agreed, asked = 1.0, 0.0, 0, 0
    with (
        ImageEncoder(mmproj_path) as encoder,
        Model(model_path) as model,
        Context(model, n_ctx=1024, n_batch=640, type_k="f32", type_v="f32") as context,
    ):
        for item in items:
            embedding = encoder.encode(item.pictures[0])
            ours = np.array(embedding)
            worst = min(worst, cosine(ours, reference.features(item.pictures[0])).min())
            prefix, tail = packer.prefix(1), packer.turns(item.turns)[0]
            start = prefix[: prefix.index(packer.id["<image>"])]
            truth = reference.logits(prefix + tail, item.pictures[0])
            context.clear()
            context.eval(start)
            context.eval(embedding)
            context.eval(prefix[len(start) + len(ours) :])
            for i, token in enumerate(tail):
                context.eval([token])
                logits = np.array(context.logits).ravel()
                expected = truth[len(prefix) + i]
                gap = max(gap, float(np.abs(logits - expected).max()))
                agreed += int(logits.argmax() == expected.argmax())
                asked += 1
    return {
        "feature cosine (worst row)": worst,
        "logit gap (largest)": gap,
        "same next token": agreed / asked,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path.home() / ".cache/llava_native/training")
    parser.add_argument("--model", required=True)
    parser.add_argument("--mmproj", required=True)
    parser.add_argument("--pictures", type=int, default=20)
    args = parser.parse_args()
    for name, value in compare(Reference(args.out), args.model, args.mmproj, args.pictures).items():
        print(f"{name:30s} {value:.7f}")


if __name__ == "__main__":
    main()
