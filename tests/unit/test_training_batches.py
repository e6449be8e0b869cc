"""Batches: the n-th is always the same, whoever draws it; and a recipe for each device."""

import itertools

import pytest

torch = pytest.importorskip("torch", reason="the extra training is not installed")
pytest.importorskip("transformers", reason="the extra training is not installed")

from training import train  # noqa: E402
from training.data import Batches, train_tokenizer  # noqa: E402
from training.data_scene import training_fonts  # noqa: E402


def some_rows(_step):
    return 2, 1, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    try:
        training_fonts()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    path = tmp_path_factory.mktemp("training")
    train_tokenizer(path / "tokenizer.json", scenes=50)
    return path


@pytest.mark.parametrize("workers", [1, 2])
def test_several_workers_make_the_batches_of_one(folder, workers):
    expected = itertools.islice(iter(Batches(folder, 7, some_rows)), 4)
    loader = torch.utils.data.DataLoader(Batches(folder, 7, some_rows), batch_size=None, num_workers=workers)
    for ours, theirs in zip(itertools.islice(loader, 4), expected, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ("ids", "label", "pixels", "patches", "counted"):
            assert torch.equal(ours[name], theirs[name])


def test_what_the_command_line_leaves_out_is_the_recipe_of_the_device():
    cpu, cuda = (train.parse(["--device", device]) for device in ("cpu", "cuda"))
    assert (cpu.processes, cpu.eyes_rows) == (2, 10)
    assert (cuda.processes, cuda.eyes_rows) == (1, 112)
    assert train.parse(["--device", "cuda", "--rows", "8"]).rows == 8


def test_a_batch_moves_at_any_depth():
    batch = {"ids": torch.zeros(2), "words": [torch.ones(1)], "pointing": [(torch.ones(3), torch.ones(2))]}
    moved = train.move(batch, "meta")
    assert moved["ids"].is_meta
    assert moved["words"][0].is_meta
    assert moved["pointing"][0][1].is_meta
