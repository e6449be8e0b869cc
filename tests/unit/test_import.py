"""What an import says where the compiled part is missing, or a library that it needs."""

from __future__ import annotations

import pytest

import llava_native


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ModuleNotFoundError("No module named 'llava_native._model'", name="llava_native._model"),
            r"llava_native\._model is missing: .*pip install \.",
        ),
        (
            ImportError("libcuda.so.1: cannot open shared object file", name="llava_native._native"),
            r"llava_native\._native cannot be loaded: libcuda\.so\.1: .* needs its driver",
        ),
        (ModuleNotFoundError("No module named 'PIL'", name="PIL"), "^No module named 'PIL'$"),
        (ImportError("cannot import name 'x'", name="other"), "^cannot import name 'x'$"),
    ],
    ids=["not built", "no driver", "a dependency", "anything else"],
)
def test_it_says_what_to_do(monkeypatch, error, says):
    def fail(_name):
        raise error

    monkeypatch.delitem(vars(llava_native), "Model", raising=False)
    monkeypatch.setattr(llava_native.importlib, "import_module", fail)
    with pytest.raises(ImportError, match=says):
        _ = llava_native.Model
