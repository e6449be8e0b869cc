"""The wheel: small, abi3, with its licences, without sources, and importable from anywhere."""

import email
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = (
    "_batch", "_buffer", "_cancel", "_context", "_embedding", "_encoder", "_lora", "_model", "_native",
    "_sampler", "_state", "_strings",
)  # fmt: skip
SOURCES = (".pyx", ".pxi", ".c", ".cpp", ".cxx", ".hpp", ".h")


@pytest.fixture(scope="module")
def archive(wheel):
    with zipfile.ZipFile(wheel) as opened:
        yield opened


@pytest.fixture(scope="module")
def names(archive) -> set[str]:
    return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(archive, names) -> email.message.Message:
    (name,) = (name for name in names if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(archive.read(name))


def test_stays_small(wheel, archive):
    model = sum(info.compress_size for info in archive.infolist() if info.filename.endswith(".gguf"))
    assert wheel.stat().st_size - model < 4e6
    assert model < 12e6


def test_carries_the_embedded_model_and_its_card(names):
    folder = {path.name for path in (ROOT / "src/llava_native/demo").iterdir() if path.is_file()}
    assert {f"llava_native/demo/{name}" for name in folder} <= names
    assert {"llava-native-demo.gguf", "mmproj-llava-native-demo.gguf", "README.md"} <= folder


def test_is_abi3_from_3_11(wheel, archive, names):
    assert re.match(r"llava_native-[\w.]+-cp311-abi3-\w+\.whl", wheel.name)
    (tags,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
    assert re.search(r"^Tag: cp311-abi3-", archive.read(tags).decode(), re.MULTILINE)


def test_carries_modules_stubs_and_declarations(names):
    for module in MODULES:
        binaries = [name for name in names if re.fullmatch(rf"llava_native/{module}\.(abi3\.so|pyd)", name)]
        assert len(binaries) == 1, module
        stub, declarations = f"llava_native/{module}.pyi", f"llava_native/{module}.pxd"
        assert stub in names
        assert (declarations in names) == (ROOT / "src" / declarations).exists()
    assert {"llava_native/py.typed", "llava_native/_build_info.json", "llava_native/capi/llama.pxd"} <= names


def test_carries_every_python_file_and_no_other_source(names):
    ours = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert ours <= names
    assert not [name for name in names if name.endswith(SOURCES)]
    assert not [name for name in names if not name.startswith(("llava_native/", "llava_native-"))]


def test_carries_the_licences_of_what_is_linked_in(names):
    found = {name.split(".dist-info/licenses/")[1] for name in names if ".dist-info/licenses/" in name}
    assert found == {"LICENSE"} | {f"licenses/{path.name}" for path in (ROOT / "licenses").iterdir()}


def test_metadata(metadata):
    assert metadata["Name"] == "llava-native"
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    needed = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    names = {re.match(r"[\w-]+", line)[0] for line in needed}
    assert names == {"click", "jinja2", "llguidance", "pillow", "platformdirs"}
    assert len(metadata.get_payload()) > 1000, "the README is the long description"


def test_names_no_folder_of_the_build_machine(archive, names):
    # what a compiler, an assertion's __FILE__ or a debug section would leave behind
    folders = {str(ROOT), str(Path.home()), "/pip-build-env", "/pip-req-build", "/site-packages/"}
    for name in names:
        if name.endswith((".so", ".json", ".pyd")):
            content = archive.read(name)
            assert not [folder for folder in folders if folder.encode() in content], name


def test_imports_from_an_empty_directory(archive, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    archive.extractall(site)
    empty.mkdir()
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import importlib, llava_native\n"
        f"for name in {MODULES!r}: importlib.import_module('llava_native.' + name)\n"
        "assert llava_native.__file__.startswith(sys.argv[1]), llava_native.__file__\n"
        "assert llava_native.build_info()['llama_cpp_commit']\n"
        "assert any(device['type'] == 'cpu' for device in llava_native.devices())\n"
    )
    subprocess.run([sys.executable, "-c", code, str(site)], cwd=empty, check=True)
