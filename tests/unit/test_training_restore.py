"""What training exports can be trained on: GGUF files give back the weights and the tokenizer."""

import pytest

torch = pytest.importorskip("torch", reason="the training extra is not installed")
gguf = pytest.importorskip("gguf")
pytest.importorskip("transformers")
pytest.importorskip("tokenizers")

from training import data, export, restore  # noqa: E402
from training.model import Trainee, make_config  # noqa: E402


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return data.train_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json", scenes=50)


def new_network(tokenizer, seed):
    torch.manual_seed(seed)
    return Trainee(make_config(tokenizer.get_vocab_size(), data.special_ids(tokenizer)))


@pytest.mark.parametrize(("file_type", "difference"), [("f32", 0), ("f16", 2e-3), ("q8_0", 2e-2)])
def test_an_exported_pair_gives_the_weights_back(tokenizer, tmp_path, file_type, difference):
    written, restored = new_network(tokenizer, 1), new_network(tokenizer, 2)
    text, vision = tmp_path / "text.gguf", tmp_path / "mmproj.gguf"
    export.write_text_model(written, tokenizer, text, file_type)
    export.write_mmproj(written, vision, file_type)
    restore.read_weights(restored, gguf.GGUFReader(text), gguf.GGUFReader(vision))
    pairs = [
        (tensors(written)[name], tensors(restored)[name])
        for tensors in (export.text_tensors, export.vision_tensors)
        for name in tensors(written)
    ]
    assert len(pairs) == 2 + 5 * 9 + 5 + 6 * 16 + 4
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=difference)


def test_an_exported_file_holds_the_tokenizer(tokenizer, tmp_path):
    path = tmp_path / "text.gguf"
    export.write_text_model(new_network(tokenizer, 1), tokenizer, path, "q8_0")
    read = restore.read_tokenizer(gguf.GGUFReader(path))
    assert read.get_vocab() == tokenizer.get_vocab()
    for text in ("What's left of the star?\n", "<|user|>\n<image>\nIt says ÄŸ 界.<|end|>"):
        assert read.encode(text).ids == tokenizer.encode(text).ids
