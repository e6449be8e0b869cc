"""The hand-written declarations of layer 1 must say what the pinned headers say.

A wrong parameter count or type fails in the C++ compiler only if a call uses it; a bumped pin changes
meanings silently. So every declaration is compared with the header that it is taken from.
"""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CAPI = ROOT / "src" / "llava_native" / "capi"
LLAMA_CPP = ROOT / "vendor" / "llama.cpp"
PATCHES = sorted((ROOT / "vendor" / "patches").glob("*.patch"))
HEADERS = {
    "ggml.h": "ggml/include/ggml.h",
    "ggml-backend.h": "ggml/include/ggml-backend.h",
    "llama.h": "include/llama.h",
    "mtmd.h": "tools/mtmd/mtmd.h",
}
# spellings of one type; int and unsigned are 32 bits on every platform that we build for
SAME_TYPES = {
    "cbool": "bool",
    "unsigned int": "uint32_t",
    "int": "int32_t",
    "llama_vocab_type_t": "llama_vocab_type",
}

pytestmark = pytest.mark.skipif(
    not (LLAMA_CPP / "include").is_dir(), reason="vendor/llama.cpp is not filled; a build fills it"
)


def header_text(name: str) -> str:
    text = (LLAMA_CPP / HEADERS[name]).read_text("utf-8")
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    return re.sub(r"\b(struct|enum)\s+(?=\w+\s*[*\w])", "", re.sub(r"\s+", " ", text))


def normal_type(text: str) -> str:
    """Spell a type so that Cython's and C's compare equal: no `struct`, no spaces around stars."""
    text = re.sub(r"\b(struct|enum)\b", "", text)
    text = re.sub(r"\s+", " ", text).strip()
    for spelling, name in SAME_TYPES.items():
        text = re.sub(rf"\b{spelling}\b", name, text)
    return re.sub(r"\s*\*\s*", "*", text)


def parameter_types(text: str) -> list[str]:
    """Return the types of a parameter list, its names dropped."""
    parts = [part.strip() for part in text.split(",")]
    if parts in ([""], ["void"]):
        return []
    types = []
    for part in parts:
        head, last = re.fullmatch(r"(.*?)(\w+)(?:\[\w*\])?", part).groups()
        # a lone word is the type itself: a parameter without a name
        found = normal_type(head) if head.strip() else normal_type(last)
        # what a function promises about its own copy of an argument is no part of its type
        types.append(found if "*" in found else found.removeprefix("const "))
    return types


def declared_blocks(kind: str):
    """Yield (header, line, members) for each declaration of a kind: a function, struct, enum or other."""
    for path in sorted(CAPI.glob("*.pxd")):
        header, block = None, None
        text = re.sub(r"#[^\n]*", "", path.read_text("utf-8"))
        text = re.sub(r"\(([^()]|\([^()]*\))*\)", lambda found: re.sub(r"\s+", " ", found[0]), text)
        for line in text.splitlines():
            if opened := re.match(r'cdef extern from (?:"([^"]+)"|\*)', line):
                header = opened[1]
            elif header is None or not line.strip():
                continue
            elif line.startswith(" " * 8):
                if block is not None:
                    block.append(line.strip())
            elif line.startswith(" " * 4):
                line, block = line.strip(), []
                if found := re.match(r"(?:ctypedef )?(struct|enum) ", line):
                    found_kind = found[1]
                elif line.startswith("ctypedef"):
                    found_kind = "typedef"
                else:
                    found_kind = "function"
                if found_kind == kind:
                    yield header, line, block


def declared(kind: str):
    # the list of members is filled while its generator runs on, so run it to the end first
    found = list(declared_blocks(kind))
    return [pytest.param(*entry, id=re.search(r"(\w+)\W*(\(|:|$)", entry[1])[1]) for entry in found]


@pytest.mark.parametrize(("header", "line", "members"), declared("function"))
def test_function(header, line, members):
    returned, name, alias, parameters = re.match(r'(.*?)(\w+)(?: "(\w+)")?\((.*)\)', line).groups()
    name = alias or name
    text = header_text(header)
    found = re.search(rf"(?:API|DEPRECATED\()\s*([\w *]*?)\b{name}\s*\(([^()]*)\)\s*([;,])", text)
    assert found, f"{header} declares no function {name}"
    assert found[3] == ";", f"{name} is deprecated in {header}"
    assert parameter_types(parameters) == parameter_types(found[2])
    assert normal_type(returned) == normal_type(found[1])


def body_of(header: str, kind: str, name: str) -> str:
    """Return what stands between the braces of a struct or enum, which may hold a union."""
    text = (LLAMA_CPP / HEADERS[header]).read_text("utf-8")
    text = re.sub(r"//[^\n]*|/\*.*?\*/", " ", text, flags=re.DOTALL)
    inside = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
    found = re.search(rf"\b{kind}\s+{name}\s*{inside}", text) or re.search(
        rf"\btypedef\s+{kind}\s*(?:\w+\s*)?{inside}\s*{name}\s*;", text
    )
    assert found, f"{header} has no {kind} {name}"
    return found[1]


@pytest.mark.parametrize(("header", "line", "members"), declared("struct"))
def test_struct(header, line, members):
    name = re.search(r"struct (\w+)", line)[1]
    if members == ["pass"]:  # opaque: its name is all that is used
        assert re.search(rf"\b{name}\b", header_text(header)), f"{header} knows no {name}"
        return
    body = body_of(header, "struct", name)
    fields = {}
    for field in re.split(r"[;{}]", body):
        if found := re.fullmatch(r"\s*(.*?)\b(\w+)\s*(\[\w+\])?\s*", field, flags=re.DOTALL):
            fields[found[2]] = normal_type(found[1]) + (found[3] or "")
    for member in members:
        kind, field, array = re.fullmatch(r"(.*?)(\w+)(\[\w+\])?", member).groups()
        assert field in fields, f"struct {name} has no field {field}"
        assert normal_type(kind) + (array or "") == fields[field], f"{name}.{field}"


@pytest.mark.parametrize(("header", "line", "members"), declared("enum"))
def test_enum(header, line, members):
    cython_name, alias = re.search(r'enum (\w+)(?: "(\w+)")?', line).groups()
    body = body_of(header, "enum", alias or cython_name)
    values = dict(re.findall(r"(\w+)\s*(?:=\s*([^,]+?))?\s*(?:,|$)", body.strip()))
    for member in members:
        name, value = re.fullmatch(r"(\w+)(?:\s*=\s*(\S+))?", member).groups()
        assert name in values, f"{alias or cython_name} has no value {name}"
        assert value is None or value == values[name]


@pytest.mark.parametrize(("header", "line", "members"), declared("typedef"))
def test_typedef(header, line, members):
    text = header_text(header)
    if pointer := re.match(r"ctypedef (.*?)\(\*(\w+)\)\((.*)\)", line):
        returned, name, parameters = pointer.groups()
        found = re.search(rf"typedef ([\w *]*?)\(\s*\*\s*{name}\s*\)\s*\(([^()]*)\)\s*;", text)
        assert found, f"{header} has no function pointer {name}"
        assert parameter_types(parameters) == parameter_types(found[2])
        assert normal_type(returned) == normal_type(found[1])
        return
    target, name = re.fullmatch(r"ctypedef (.*?)(\w+)", line).groups()
    found = re.search(rf"typedef ([\w *]*?)\b{name}\s*;", text)
    assert found, f"{header} has no type {name}"
    assert normal_type(target) == normal_type(found[1])


def test_something_was_compared():
    assert len(declared("function")) > 80
    assert len(declared("struct")) > 15
    assert len(declared("enum")) >= 8


def test_the_pin_is_complete():
    pin = tomllib.loads((ROOT / "vendor" / "llama.cpp.toml").read_text("utf-8"))
    assert re.fullmatch(r"[0-9a-f]{64}", pin["source"]["sha256"])
    assert re.fullmatch(r"[0-9a-f]{9,40}", pin["upstream"]["commit"])


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.name)
def test_a_patch_says_why_and_names_its_test(patch):
    says = patch.read_text("utf-8").split("diff --git", 1)[0]
    assert len(says.strip().splitlines()[0]) < 110, "the first line is a summary"
    assert "https://github.com/ggml-org/llama.cpp/" in says or len(says) > 200, "no issue and no reason"
    tests = re.findall(r"Fails without it: (\S+)", says)
    assert tests, "names no test that fails without it"
    for test in tests:
        assert (ROOT / test).is_file(), f"{patch.name} names {test}, which does not exist"


def test_patches_are_numbered_without_a_gap():
    assert [path.name[:4] for path in PATCHES] == [f"{i:04}" for i in range(1, len(PATCHES) + 1)]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.name)
def test_the_filled_folder_carries_each_patch(patch):
    """Each added line is in the file, so that a stale vendor folder is noticed."""
    target = None
    for line in patch.read_text("utf-8").splitlines():
        if line.startswith("+++ "):
            target = (LLAMA_CPP / line[6:].split("\t")[0]).read_text("utf-8")
        elif line.startswith("+") and target is not None and line[1:].strip():
            assert line[1:].strip() in target


def test_vulkan_compiles_with_the_headers_of_debian_12():
    """They know no VK_EXT_layer_settings (patch 0004)."""
    text = (LLAMA_CPP / "ggml/src/ggml-vulkan/ggml-vulkan.cpp").read_text("utf-8")
    guarded = re.sub(r"#ifdef VK_EXT_layer_settings\n.*?#else\n", "", text, flags=re.DOTALL)
    assert "vk::LayerSetting" in text
    assert "vk::LayerSetting" not in guarded
