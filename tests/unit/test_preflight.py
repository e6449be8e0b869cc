"""The checks before any native call: every file of `damage` is refused, every good one is not."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from support import damage
from support.gguf_file import _value
from support.gguf_parts import Parts, RawTensor
from support.tiny_models import write_mmproj

from llava_native.errors import LlavaError, ModelFormatError, UnsupportedModelError
from llava_native.gguf import Value, read_header
from llava_native.preflight import check_mmproj, check_text_model, missing_mmproj_keys

CHECKS = {"text": check_text_model, "mmproj": check_mmproj}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("good")
    return {
        "text": damage.good_text(folder / "text.gguf"),
        "mmproj": damage.good_mmproj(folder / "mmproj.gguf"),
    }


@pytest.mark.parametrize("case", damage.CASES, ids=lambda case: case.name)
def test_damaged_file_is_refused(case: damage.Case, good: dict[str, Path], tmp_path: Path) -> None:
    path = case.write(good[case.source], tmp_path / "broken.gguf")
    with pytest.raises(LlavaError, match=f"(?s){case.says}") as caught:
        CHECKS[case.role](read_header(path))
    assert caught.type is case.error
    assert str(path) in str(caught.value), "the message must name the file"


def test_case_names_are_unique() -> None:
    names = [case.name for case in damage.CASES]
    assert len(set(names)) == len(names) > 200


@pytest.mark.parametrize("role", ["text", "mmproj"])
def test_taking_apart_and_writing_back_changes_nothing(role: str, good: dict[str, Path]) -> None:
    assert Parts.read(good[role]).to_bytes() == good[role].read_bytes()


def test_text_model(good: dict[str, Path]) -> None:
    info = check_text_model(read_header(good["text"]))
    assert info.files == (str(good["text"]),)
    assert (info.architecture, info.tokenizer, info.tokenizer_pre) == ("llama", "llama", "")
    assert (info.n_embd, info.n_layer, info.n_ctx_train, info.n_vocab) == (64, 2, 512, 300)
    assert info.tensors_checked
    assert not info.has_chat_template
    assert info.weights_nbytes == sum(len(t.data) for t in Parts.read(good["text"]).tensors.values())


def test_phi3(tmp_path: Path) -> None:
    path = damage.good_text(tmp_path / "phi3.gguf", architecture="phi3")
    assert check_text_model(read_header(path)).tensors_checked
    for name in ("attn_qkv", "ffn_up"):
        parts = Parts.read(path)
        del parts.tensors[f"blk.1.{name}.weight"]
        broken = tmp_path / f"{name}.gguf"
        broken.write_bytes(parts.to_bytes())
        with pytest.raises(ModelFormatError, match=r"blk\.1\.(attn_q|ffn_up)\.weight is missing"):
            check_text_model(read_header(broken))


@pytest.mark.parametrize("n_rot", [0, 7, 18])
def test_phi3_may_rotate_a_part_of_each_head(n_rot: int, tmp_path: Path) -> None:
    kv = {"phi3.rope.dimension_count": 8}
    path = damage.good_text(tmp_path / "part.gguf", architecture="phi3", **kv)
    assert check_text_model(read_header(path)).tensors_checked
    kv = {"phi3.rope.dimension_count": n_rot}
    path = damage.good_text(tmp_path / "broken.gguf", architecture="phi3", **kv)
    with pytest.raises(ModelFormatError, match=f"dimension_count is {n_rot} for heads of length 16"):
        check_text_model(read_header(path))


def test_mixture_of_experts(good: dict[str, Path], tmp_path: Path) -> None:
    parts = Parts.read(good["text"])
    parts.set("llama.expert_count", 4)
    parts.set("llama.expert_used_count", 2)
    for i in range(2):
        for name, shape in (("gate", (64, 128, 4)), ("up", (64, 128, 4)), ("down", (128, 64, 4))):
            del parts.tensors[f"blk.{i}.ffn_{name}.weight"]
            parts.tensors[f"blk.{i}.ffn_{name}_exps.weight"] = RawTensor(shape, 1, bytes(2 * 64 * 128 * 4))
        parts.tensors[f"blk.{i}.ffn_gate_inp.weight"] = RawTensor((64, 4), 0, bytes(1024))
    path = tmp_path / "moe.gguf"
    path.write_bytes(parts.to_bytes())
    assert check_text_model(read_header(path)).tensors_checked
    parts.reshape("blk.1.ffn_up_exps.weight", (64, 128, 3))
    path.write_bytes(parts.to_bytes())
    with pytest.raises(ModelFormatError, match="ffn_up_exps"):
        check_text_model(read_header(path))


def test_other_architectures_get_the_generic_checks(tmp_path: Path) -> None:
    path = damage.good_text(tmp_path / "qwen2.gguf", architecture="qwen2")
    assert not check_text_model(read_header(path)).tensors_checked
    path = damage.good_text(tmp_path / "broken.gguf", architecture="qwen2", **{"qwen2.block_count": 0})
    with pytest.raises(ModelFormatError, match="block_count is 0"):
        check_text_model(read_header(path))


def test_vocabulary_alone(good: dict[str, Path], tmp_path: Path) -> None:
    parts = Parts.read(good["text"])
    parts.tensors.clear()
    path = tmp_path / "vocab.gguf"
    path.write_bytes(parts.to_bytes())
    assert check_text_model(read_header(path), vocab_only=True).n_vocab == 300
    with pytest.raises(ModelFormatError, match=r"token_embd\.weight is missing"):
        check_text_model(read_header(path))


@pytest.mark.parametrize(
    ("kv", "message"),
    [
        ({}, None),
        ({"tokenizer.ggml.padding_token_id": 300}, None),  # upstream ignores it, and such files are in use
        ({"tokenizer.ggml.bos_token_id": 2**32 - 1}, None),  # "none": the default id 1 stands
        ({"tokenizer.ggml.eos_token_id": 999}, "eos_token_id is 999"),
        ({"tokenizer.ggml.add_eos_token": True}, None),
    ],
)
def test_special_tokens(kv: dict[str, object], message: str | None, tmp_path: Path) -> None:
    header = read_header(damage.good_text(tmp_path / "text.gguf", **kv))
    if message is None:
        assert check_text_model(header).n_vocab == 300
    else:
        with pytest.raises(ModelFormatError, match=message):
            check_text_model(header)


def test_missing_bos_matters_only_where_it_is_added(tmp_path: Path) -> None:
    """Upstream asserts it while it tokenizes, long after loading."""
    one = {
        "tokenizer.ggml.tokens": ["<unk>"], "tokenizer.ggml.scores": [0.0], "tokenizer.ggml.token_type": [2],
        "tokenizer.ggml.bos_token_id": 2**32 - 1, "tokenizer.ggml.eos_token_id": 2**32 - 1,
    }  # fmt: skip
    header = read_header(damage.good_text(tmp_path / "text.gguf", **one))
    with pytest.raises(ModelFormatError, match="adds a BOS token"):
        check_text_model(header, vocab_only=True)
    quiet = header.with_values({"tokenizer.ggml.add_bos_token": Value("bool", False)})
    assert check_text_model(quiet, vocab_only=True).n_vocab == 1


def test_empty_tokens_are_not_duplicates(good: dict[str, Path], tmp_path: Path) -> None:
    """Upstream names each after its index."""
    parts = Parts.read(good["text"])
    parts.set("tokenizer.ggml.tokens", ["", "", *(f"t{i}" for i in range(298))])
    path = tmp_path / "text.gguf"
    path.write_bytes(parts.to_bytes())
    assert check_text_model(read_header(path)).n_vocab == 300
    parts.set("tokenizer.ggml.tokens", ["", "[EMPTY_0]", *(f"t{i}" for i in range(298))])
    path.write_bytes(parts.to_bytes())
    with pytest.raises(ModelFormatError, match="occurs twice"):
        check_text_model(read_header(path))


class TestSplit:
    """A model in parts."""

    @pytest.fixture
    def parts(self, good: dict[str, Path], tmp_path: Path) -> list[Path]:
        whole = Parts.read(good["text"])
        names = list(whole.tensors)
        paths = []
        for i, chosen in enumerate((names[:7], names[7:])):
            kv = dict(whole.kv) if i == 0 else {}
            part = Parts(kv, {name: whole.tensors[name] for name in chosen})
            damage._split(i)(part)
            part.set("split.tensors.count", np.int32(len(names)))
            paths.append(tmp_path / f"text-0000{i + 1}-of-00002.gguf")
            paths[-1].write_bytes(part.to_bytes())
        return paths

    def test_all_parts(self, parts: list[Path]) -> None:
        info = check_text_model(read_header(parts[0]))
        assert info.files == tuple(map(str, parts))
        assert info.tensors_checked

    def test_not_the_first(self, parts: list[Path]) -> None:
        first = Parts.read(parts[0])
        first.kv |= {"split.no": _value(np.uint16(1))}
        parts[1].write_bytes(first.to_bytes())
        with pytest.raises(ModelFormatError, match=r"pass the first part, .*-00001-of-00002\.gguf"):
            check_text_model(read_header(parts[1]))

    def test_missing(self, parts: list[Path]) -> None:
        parts[1].unlink()
        with pytest.raises(ModelFormatError, match=r"-00002-of-00002\.gguf is missing"):
            check_text_model(read_header(parts[0]))

    def test_number_of_another_type(self, parts: list[Path]) -> None:
        """Upstream asserts the type in every part but the first."""
        second = Parts.read(parts[1])
        second.set("split.no", 1)
        parts[1].write_bytes(second.to_bytes())
        with pytest.raises(ModelFormatError, match=r"split\.no must be of type u16"):
            check_text_model(read_header(parts[0]))

    def test_cut_short(self, parts: list[Path]) -> None:
        parts[1].write_bytes(parts[1].read_bytes()[:-64])
        with pytest.raises(ModelFormatError, match=r"00002-of-00002\.gguf is cut short"):
            check_text_model(read_header(parts[0]))

    def test_parts_share_a_tensor(self, parts: list[Path]) -> None:
        first, second = map(Parts.read, parts)
        second.tensors["token_embd.weight"] = first.tensors["token_embd.weight"]
        parts[1].write_bytes(second.to_bytes())
        with pytest.raises(ModelFormatError, match="not a part of the same model"):
            check_text_model(read_header(parts[0]))

    def test_same_part_twice(self, parts: list[Path]) -> None:
        parts[1].write_bytes(parts[0].read_bytes())
        with pytest.raises(ModelFormatError, match="says part 2, its header says 1"):
            check_text_model(read_header(parts[0]))


@pytest.mark.parametrize("layout", ["legacy", "full", "modern"])
def test_mmproj(layout: str, tmp_path: Path) -> None:
    path = write_mmproj(tmp_path / "mmproj.gguf", layout=layout).path
    info = check_mmproj(read_header(path))
    assert (info.image_size, info.patch_size, info.n_patches) == (28, 14, 4)
    assert (info.n_embd_vision, info.n_embd, info.n_head) == (32, 64, 4)
    assert info.n_layer == (3 if layout == "full" else 2)
    assert info.has_post_ln == (layout == "full")
    assert info.feature_layers == ((2,) if layout == "modern" else ())
    assert (info.projector_type, info.dtype, info.is_llava15) == ("mlp", "F16", True)
    assert info.has_class_embd
    assert info.image_mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert info.image_std == pytest.approx((0.26862954, 0.26130258, 0.27577711))
    assert info.fingerprint == read_header(path).fingerprint()


def test_llava16(good: dict[str, Path]) -> None:
    """Either sign of tiles is enough."""
    header = read_header(good["mmproj"])
    merged = header.with_values({"clip.vision.mm_patch_merge_type": Value("str", "spatial_unpad")})
    assert not check_mmproj(merged).is_llava15


def test_pinpoints(good: dict[str, Path], tmp_path: Path) -> None:
    parts = Parts.read(good["mmproj"])
    parts.set("clip.vision.image_grid_pinpoints", [336, 672, 672, 336])
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(parts.to_bytes())
    info = check_mmproj(read_header(path))
    assert info.image_grid_pinpoints == ((336, 672), (672, 336))
    assert not info.is_llava15


def test_norm_projector_of_yi(good: dict[str, Path], tmp_path: Path) -> None:
    parts = Parts.read(good["mmproj"])
    for old, new in (("mm.2.weight", "mm.3.weight"), ("mm.2.bias", "mm.3.bias")):
        parts.tensors[new] = parts.tensors.pop(old)
    path = tmp_path / "mmproj.gguf"
    path.write_bytes(parts.to_bytes())
    with pytest.raises(ModelFormatError, match=r"mm\.1\.weight is missing"):
        check_mmproj(read_header(path))
    for name in ("mm.1.weight", "mm.1.bias", "mm.4.weight", "mm.4.bias"):
        parts.tensors[name] = RawTensor((64,), 0, struct.pack("<64f", *[1.0] * 64))
    path.write_bytes(parts.to_bytes())
    info = check_mmproj(read_header(path))
    assert (info.projector_type, info.n_embd) == ("mlp_norm", 64)
    parts.reshape("mm.4.bias", (32,))
    path.write_bytes(parts.to_bytes())
    with pytest.raises(ModelFormatError, match=r"mm\.4\.bias has shape"):
        check_mmproj(read_header(path))


def test_file_of_2023_can_be_completed(good: dict[str, Path], tmp_path: Path) -> None:
    """A profile tells what the native loader supplies by itself."""
    parts = Parts.read(good["mmproj"])
    for key in ("clip.projector_type", "clip.vision.image_std"):
        del parts.kv[key]
    path = tmp_path / "old.gguf"
    path.write_bytes(parts.to_bytes())
    old, new = read_header(path), read_header(good["mmproj"])
    missing = missing_mmproj_keys(old)
    assert missing == ("clip.projector_type", "clip.vision.image_std")
    assert missing_mmproj_keys(new) == ()
    with pytest.raises(UnsupportedModelError, match=r"lacks clip\.projector_type, clip\.vision\.image_std"):
        check_mmproj(old)
    assert check_mmproj(old, missing).n_embd == 64


def test_projector_type_under_the_vision_key(good: dict[str, Path]) -> None:
    header = read_header(good["mmproj"])
    values = dict(header.metadata)
    values["clip.vision.projector_type"] = values.pop("clip.projector_type")
    assert check_mmproj(header._replace(metadata=values)).projector_type == "mlp"
