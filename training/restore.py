"""Make a checkpoint of a GGUF pair that `export` wrote, to train on where it stopped.

``python -m training.restore --out DIR --step N`` writes DIR/tokenizer.json and DIR/checkpoint.pt. Exact for
F32; of Q8_0, what was rounded away is lost. The optimisers begin anew, and the patch heads, which no export
holds, are fitted to the features.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, models

from .data import SPECIAL, Batches, make_tokenizer
from .export import NAME, ROTARY, text_tensors, vision_tensors
from .model import PatchHeads, Trainee
from .train import Trainer, parse

SHIPPED = Path(__file__).parents[1] / "src/llava_native/demo"


def read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    """Build the tokenizer of a GGUF file's vocabulary."""
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = [tuple(m.split(" ")) for m in reader.fields["tokenizer.ggml.merges"].contents()]
    tokenizer = make_tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIAL])
    return tokenizer


def unpermute(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo `export.permute`."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


@torch.no_grad()
def read_weights(model: Trainee, text: gguf.GGUFReader, vision: gguf.GGUFReader) -> None:
    """Copy a GGUF pair's tensors (today's layout, of any type) into the network."""
    heads = model.llava.config.text_config.num_attention_heads
    for reader, wanted in ((text, text_tensors(model)), (vision, vision_tensors(model))):
        found = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
        for name, parameter in wanted.items():
            tensor = torch.from_numpy(found[name].copy()).float().view_as(parameter)
            rotary = reader is text and name.endswith(ROTARY)
            parameter.copy_(unpermute(tensor, heads) if rotary else tensor)


def fit_heads(trainer: Trainer, steps: int) -> float:
    """Fit new patch heads while everything else stands still; returns the last step's loss."""
    model = trainer.model
    model.heads = PatchHeads(model.llava.config.text_config.hidden_size)
    optimiser = torch.optim.AdamW(model.heads.parameters(), lr=1e-2, weight_decay=0.0)
    batches = iter(Batches(trainer.args.out, 0, lambda _step: (trainer.args.eyes_rows, 0, 5)))
    for step in range(steps):
        batch = next(batches)
        with torch.no_grad():
            features = model.features(batch["pixels"])
        loss = model.heads.loss(features, batch["patches"])
        optimiser.zero_grad()
        loss.backward()
        optimiser.param_groups[0]["lr"] = 1e-2 * (1 - step / steps)
        optimiser.step()
    return loss.item()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--model", type=Path, default=SHIPPED / f"{NAME}.gguf")
    add("--mmproj", type=Path, default=SHIPPED / f"mmproj-{NAME}.gguf")
    add("--out", type=Path, default=Path.home() / ".cache/llava_native/training")
    add("--step", type=int, required=True, help="number of the step that training goes on from")
    add("--fit", type=int, default=400, help="steps to fit the patch heads")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    text, vision = gguf.GGUFReader(args.model), gguf.GGUFReader(args.mmproj)
    read_tokenizer(text).save(str(args.out / "tokenizer.json"))
    trainer = Trainer(parse(["--out", str(args.out), "--device", "cpu", "--processes", "1"]), 0)
    read_weights(trainer.model, text, vision)
    print(f"patch heads' loss {fit_heads(trainer, args.fit):.2f}")
    trainer.ema = {k: v.detach().clone() for k, v in trainer.model.state_dict().items()}
    trainer.step = args.step
    trainer.save()


if __name__ == "__main__":
    main()
