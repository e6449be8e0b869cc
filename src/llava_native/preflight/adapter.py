"""The check of a LoRA adapter, against the header of the model that it is for."""

from __future__ import annotations

from ..gguf import GGUFHeader, Tensor
from ._rules import FLOATS, MATRIX, Keys

__all__ = ["check_adapter"]

_EMBEDDING = "token_embd.weight"


def check_adapter(header: GGUFHeader, base: GGUFHeader) -> None:
    """Refuse what is no LoRA adapter of this model.

    Parameters
    ----------
    header : GGUFHeader
        Of the adapter.
    base : GGUFHeader
        Of the model.

    Raises
    ------
    ModelFormatError
        It is no adapter, damaged, or one of another model.
    UnsupportedModelError
        It is of a kind that is not run here.

    Notes
    -----
    ``llama_adapter_lora_init`` reads keys without looking at their types, which aborts, and compares two of
    the four dimensions of a tensor; the graph asserts on the others.
    """
    keys = Keys(header)
    if keys.text("general.type", "") != "adapter" or keys.text("adapter.type", "") != "lora":
        keys.fail("this is no LoRA adapter (general.type and adapter.type say so)")
    architecture = keys.text("general.architecture", "")
    if architecture != base.get("general.architecture"):
        keys.fail(f"an adapter of {architecture} models; {base.path} is a {base.get('general.architecture')}")
    keys.f32("adapter.lora.alpha", 0.0)
    if keys.has("adapter.alora.invocation_tokens"):
        keys.unsupported("adapters that tokens invoke (aLoRA) are not run here")
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in header.tensors.items():
        stem, _, half = name.rpartition(".")
        if half in ("lora_a", "lora_b"):
            halves.setdefault(stem, {})[half] = tensor
        elif not name.endswith("_norm.weight"):  # which llama.cpp leaves out
            keys.fail(f"the tensor {name} is no half of a pair")
    if not halves:
        keys.fail("there is no pair of matrices in it")
    for stem, pair in halves.items():
        _check_pair(keys, stem, pair, base)


def _check_pair(keys: Keys, stem: str, pair: dict[str, Tensor], base: GGUFHeader) -> None:
    if len(pair) != 2:
        keys.fail(f"the pair {stem} has {next(iter(pair))} only")
    target = base.tensors.get(stem)
    if target is None:
        keys.fail(f"{stem} is not in {base.path}: an adapter of another model")
    a, b = pair["lora_a"], pair["lora_b"]
    n_in, n_out = target.ne[:2]
    if stem == _EMBEDDING:  # its rows are looked up
        if "output.weight" not in base.tensors:
            keys.unsupported("it changes the embedding of a model that uses it for its output, too")
        rank, types = a.ne[0], FLOATS
        expected = ((rank, n_out, 1, 1), (rank, n_in, 1, 1))
    else:
        rank, types = a.ne[1], MATRIX
        expected = ((n_in, rank, 1, 1), (rank, n_out, 1, 1))
    if target.ne[2:] != (1, 1) or (a.ne, b.ne) != expected:
        keys.fail(f"the pair {stem} has shapes {a.shape} and {b.shape}; the model's is {target.shape}")
    for tensor in (a, b):
        if tensor.type not in types:
            keys.unsupported(f"the tensor {tensor.name} has type {tensor.type}")
