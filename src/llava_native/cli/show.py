"""``llava-native show``: what a named model, or a GGUF file, is."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llava_native.cli.options import visible
from llava_native.errors import ModelNotFoundError

if TYPE_CHECKING:
    from llava_native.gguf import GGUFHeader
    from llava_native.store import NamedModel

__all__ = ["show"]

# llama.cpp's llama_ftype: what `general.file_type` means
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S",
    12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K",
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL",
    26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
    37: "TQ2_0", 38: "MXFP4",
}  # fmt: skip
_LONG = 200  # characters of a value that are shown


@click.command()
@click.argument("name")
@click.option("--metadata", is_flag=True, help="All metadata of the files.")
@click.option("--template", is_flag=True, help="Only the chat template, whole.")
@click.option("--system", is_flag=True, help="Only the system text.")
@click.option("--license", "licenses", is_flag=True, help="Only the licences.")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show(name: str, metadata: bool, template: bool, system: bool, licenses: bool, as_json: bool) -> None:
    """Show what NAME is: a named model, the path of a GGUF file, or "demo", the embedded model.

    Only headers are read.
    """
    named, paths = _find(name)
    headers = [_header(path) for path in paths]
    if template:
        _print((named.chat_template if named else None) or _text_of(headers[0], "tokenizer.chat_template"))
        return
    if system or licenses:
        _print((named.system or "") if named and system else "\n\n".join(named.licenses if named else ()))
        return
    found: dict[str, Any] = _named(named) if named else {}
    found["files"] = [_file(header, metadata) for header in headers]
    n_ctx = found.get("options", {}).get("n_ctx", 4096)
    found["memory"] = _memory(headers, n_ctx)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(found)))


def _print(text: str) -> None:
    """Write a text that is asked for by itself: as it is into a file, and to a terminal what it is."""
    text = text.removesuffix("\n")
    print(visible(text) if sys.stdout.isatty() else text)


def _text_of(header: GGUFHeader, key: str) -> str:
    value = header.get(key)
    return value if isinstance(value, str) else ""


def _find(name: str) -> tuple[NamedModel | None, list[str]]:
    """Return a named model and its files, or the file that the name is a path of."""
    from llava_native import store
    from llava_native.cli.run import DEMO
    from llava_native.demo import demo_files
    from llava_native.errors import InvalidInputError

    if Path(name).is_file():
        return None, [name]
    try:
        named = store.find(name)
    except InvalidInputError:
        raise FileNotFoundError(f"{name}: no such file, and no name of a model") from None
    except ModelNotFoundError as exc:
        if name == DEMO:
            return None, [str(path) for path in demo_files()]
        raise ModelNotFoundError(f"{exc}; nor is there a file of that name") from None
    arguments = named.arguments()
    return named, [arguments[key] for key in ("model", "mmproj") if key in arguments]


def _header(path: str) -> GGUFHeader:
    from llava_native.gguf import read_header

    return read_header(path)


def _named(named: NamedModel) -> dict[str, Any]:
    found = {
        "name": named.name,
        "created": named.created,
        "chat template": named.chat_template,
        "system": named.system,
        "messages": [f"{role}: {text}" for role, text in named.messages],
        "options": {**named.load, **named.answer},
        "licences": len(named.licenses),
    }
    return {key: value for key, value in found.items() if value}


def _file(header: GGUFHeader, metadata: bool) -> dict[str, Any]:
    from llava_native.pairs import is_mmproj

    sizes: Counter[str] = Counter()
    for tensor in header.tensors.values():
        sizes[tensor.type] += tensor.nbytes
    found: dict[str, Any] = {
        "path": header.path,
        "kind": "image encoder (mmproj)" if is_mmproj(header) else "text model",
        "architecture": _plain(header.get("general.architecture")),
        "called": _plain(header.get("general.name")),
        "parameters": sum(_n_values(tensor.shape) for tensor in header.tensors.values()),
        "quantisation": _FILE_TYPES.get(header.get("general.file_type")),
        "weights": dict(sizes.most_common()),
        "size": header.file_size,
    }
    found |= _encoder(header) if is_mmproj(header) else _text(header)
    if metadata:
        found["metadata"] = {key: _plain(value.value) for key, value in header.metadata.items()}
    return {key: value for key, value in found.items() if value is not None}


def _memory(headers: list[GGUFHeader], n_ctx: int) -> dict[str, Any]:
    """Return what loading these files will take."""
    from llava_native import devices
    from llava_native.machine import gpus, host_room
    from llava_native.memory import estimate_memory
    from llava_native.pairs import is_mmproj

    texts, encoders = [h for h in headers if not is_mmproj(h)], [h for h in headers if is_mmproj(h)]
    machine = devices()
    estimate = estimate_memory(
        texts[0] if texts else None,
        encoders[0] if encoders else None,
        n_ctx=n_ctx,
        devices=machine,
        on_gpu=bool(gpus(machine)),
    )
    room = host_room()
    found: dict[str, Any] = {"n_ctx": n_ctx} if texts else {}
    found |= {name: size for name, size in estimate._asdict().items() if size}
    found |= {"total": estimate.total, "free of " + room.of: room.free} if room else {"total": estimate.total}
    return found


def _text(header: GGUFHeader) -> dict[str, Any]:
    """Return what is particular to a text model, and what a profile supplies."""
    from llava_native.preflight.text import check_text_model
    from llava_native.profiles import text_overrides

    info = check_text_model(header)
    template = _text_of(header, "tokenizer.chat_template")
    return {
        "context length": info.n_ctx_train,
        "embedding length": info.n_embd,
        "blocks": info.n_layer,
        "vocabulary": info.n_vocab,
        "tokenizer": f"{info.tokenizer} {info.tokenizer_pre}".strip(),
        "own chat template": f"{len(template)} characters" if template else "none",
        "supplied": text_overrides(header) or None,
    }


def _encoder(header: GGUFHeader) -> dict[str, Any]:
    from llava_native.preflight.mmproj import check_mmproj
    from llava_native.profiles import assumed_mmproj_keys

    assumed = assumed_mmproj_keys(header)
    info = check_mmproj(header, assumed=assumed)
    return {
        "image size": f"{info.image_size} x {info.image_size}, patches of {info.patch_size}",
        "rows of an image": info.n_patches if info.is_llava15 else f"{info.n_patches} a tile",
        "embedding length": info.n_embd,
        "blocks": info.n_layer,
        "projector": info.projector_type,
        "supplied": ", ".join(sorted(assumed)) or None,
    }


def _n_values(shape: tuple[int, ...]) -> int:
    n = 1
    for size in shape:
        n *= size
    return n


def _plain(value: Any) -> Any:
    """Return a value of the metadata as JSON has it; long arrays by their length."""
    if hasattr(value, "tolist"):
        return [_plain(item) for item in value.tolist()] if len(value) <= 16 else f"{len(value)} items"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no form for it
    return list(value) if isinstance(value, tuple) else value


def _lines(found: dict[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    for key, value in found.items():
        if key == "files":
            for file in value:
                lines += ["", *_lines(file)]
        elif isinstance(value, dict) and value:
            lines += [f"{indent}{_shown('', key)}:", *_lines(value, indent + "  ")]
        else:
            lines.append(f"{indent}{_shown('', key)}: {_shown(key, value)}")
    return lines if indent or lines[:1] != [""] else lines[1:]


def _shown(key: str, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" + (f" bytes ({value / 2**30:.2f} GiB)" if key == "size" else "")
    text = str(value)
    text = text if len(text) <= _LONG else f"{text[:_LONG]}… ({len(text)} characters)"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
