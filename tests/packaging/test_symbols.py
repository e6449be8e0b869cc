"""What the compiled modules show to the process: their init function and nothing else.

Another ggml (llama_cpp, a torch extension) may be loaded beside ours, before or after. A symbol that
leaves our module would bind the other's calls, or ours to the other's.
"""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import llava_native

MODULES = sorted(path.stem for path in Path(llava_native.__file__).parent.glob("_*.pyi"))

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="ELF symbols"),
    pytest.mark.skipif(shutil.which("nm") is None, reason="needs nm of binutils"),
]


def symbols(module: str, *options: str) -> list[tuple[str, str]]:
    path = import_module(f"llava_native.{module}").__file__
    out = subprocess.run(["nm", "-D", *options, path], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\S* *(\w) (\S+)$", out, flags=re.MULTILINE)


@pytest.mark.parametrize("module", MODULES)
def test_exports_its_init_function_alone(module):
    assert [name for _, name in symbols(module, "--defined-only")] == [f"PyInit_{module}"]


@pytest.mark.parametrize("module", MODULES)
def test_has_no_process_wide_unique_symbol(module):
    assert not [name for kind, name in symbols(module) if kind == "u"]


@pytest.mark.parametrize("module", MODULES)
def test_takes_nothing_of_ggml_from_the_process(module):
    wanted = [name for _, name in symbols(module, "--undefined-only")]
    assert not [name for name in wanted if re.match(r"_?(ggml|gguf|llama|mtmd|clip)_", name)]


@pytest.mark.parametrize("module", MODULES)
def test_is_named_as_a_stable_abi_module(module):
    assert Path(import_module(f"llava_native.{module}").__file__).name == f"{module}.abi3.so"


@pytest.mark.parametrize("module", MODULES)
def test_uses_the_stable_abi_alone(module):
    """A private name of CPython that is not in its stable ABI may be gone from a later Python."""
    allowed = {
        "_Py_Dealloc", "_Py_NoneStruct", "_Py_TrueStruct", "_Py_FalseStruct", "_Py_NotImplementedStruct",
        "_Py_EllipsisObject", "_PyObject_GC_New", "_PyObject_CallFunction_SizeT",
        "_PyObject_CallMethod_SizeT",
    }  # fmt: skip
    private = {name for _, name in symbols(module, "--undefined-only") if name.startswith("_Py")}
    assert private <= allowed
