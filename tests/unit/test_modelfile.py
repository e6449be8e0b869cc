"""Modelfiles as Ollama reads them, and errors with the line."""

from __future__ import annotations

import contextlib

import hypothesis
import hypothesis.strategies as st
import pytest
from support.seeds import STOPS, modelfile

from llava_native.errors import InvalidInputError, LlavaError, ModelfileError
from llava_native.modelfile import parse_modelfile, read_modelfile


@pytest.mark.parametrize(
    ("seed", "template"), [("llava-phi-3-mini", "phi-3"), ("llava-llama-3-8b-v1_1", "llama-3")]
)
def test_the_seeds_modelfiles(seed, template):
    read = parse_modelfile(modelfile(seed))
    assert [source.value for source in read.sources] == [f"./{seed}-int4.gguf", f"./{seed}-mmproj-f16.gguf"]
    assert read.chat_template == template
    assert read.answer == {"stop": STOPS[seed]}
    assert read.load == {"n_ctx": 4096}
    assert read.system is None
    assert read.warnings == ()


def test_everything_at_once():
    read = parse_modelfile(
        "# a comment\n\n  # another\n"
        "from a b.gguf  \n"
        'System """You are\n  "brief" \n\n# and no comment\n"""\n'
        "PARAMETER temperature 0.5\nparameter STOP a b\nPARAMETER stop \" x \"\n"
        "PARAMETER num_predict -1\nPARAMETER num_gpu 0\nPARAMETER num_thread 2\nPARAMETER seed -1\n"
        'MESSAGE user "Is this\na cat?"\nMESSAGE Assistant Yes. # it is\n'
        "LICENSE one\nLICENSE \"\"\"two\n\"\"\"\n"
        "TEMPLATE {{ .Prompt }}\n"
    )  # fmt: skip
    assert [(i.line, i.command, i.value) for i in read.sources] == [(4, "FROM", "a b.gguf")]
    assert read.system == 'You are\n  "brief" \n\n# and no comment\n'
    assert read.answer == {"temperature": 0.5, "stop": ["a b", " x "], "max_tokens": None, "seed": None}
    assert read.load == {"n_gpu_layers": 0, "n_threads": 2}
    assert read.messages == (("user", "Is this\na cat?"), ("assistant", "Yes. # it is"))
    assert read.licenses == ("one", "two\n")
    assert read.chat_template is not None


def test_the_last_one_holds():
    read = parse_modelfile(
        "FROM x\nSYSTEM a\nSYSTEM b\nPARAMETER top_k 1\nPARAMETER top_k 2\nTEMPLATE a\nTEMPLATE"
    )
    assert (read.system, read.answer, read.chat_template) == ("b", {"top_k": 2}, None)


def test_spaces_at_the_end_of_a_line_count_inside_quotes():
    read = parse_modelfile('FROM x\nSYSTEM """a  \n b"""   \n')
    assert read.system == "a  \n b"


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_endings(ending):
    read = parse_modelfile(ending.join(["FROM x", 'SYSTEM """a', 'b"""', "PARAMETER top_k 3", ""]))
    assert (read.system, read.answer) == ("a\nb", {"top_k": 3})


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(tmp_path, encoding):
    path = tmp_path / "Modelfile"
    path.write_text("FROM x\nSYSTEM Grüße 😀\n", encoding=encoding)
    assert read_modelfile(path).system == "Grüße 😀"


def test_parameters_that_mean_nothing_here_are_told():
    read = parse_modelfile(
        "FROM x\nPARAMETER tfs_z 1\nPARAMETER colour red\nPARAMETER num_keep 4\nPARSER x", "M"
    )
    assert read.warnings == (
        "M:2: tfs_z has no meaning here, ignored",
        "M:3: unknown parameter 'colour', ignored",
        "M:5: PARSER has no meaning here",
    )


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (f"FROM x\nPARAMETER num_batch {10**20}", 2, "num_batch cannot be 1000"),
        (f"FROM x\nPARAMETER num_gpu {2**31}", 2, "num_gpu cannot be"),
        ("FROM x\nPARAMETER num_thread 513", 2, "num_thread cannot be 513"),
        ("FROM x\n" + "PARAMETER stop a\n" * 300, 258, "more than 256 stops"),
        ("FROM x\n\nFORM y\n", 3, "unknown instruction 'FORM'; known are FROM, PARAMETER"),
        ("hello", 1, "unknown instruction 'hello'"),
        ("\x7fELF\x02\x01", 1, "unknown instruction"),
        ("FROM", 1, "FROM needs a file or a name"),
        ("FROM x\nPARAMETER", 2, "needs a name and a value"),
        ("FROM x\nPARAMETER top_k", 2, "needs a name and a value"),
        ("FROM x\nMESSAGE user", 2, "needs a role and a text"),
        ("FROM x\nMESSAGE robot hi", 2, "a MESSAGE is by system, user, assistant, not 'robot'"),
        ("FROM x\nPARAMETER top_k many", 2, "top_k cannot be 'many'"),
        ("FROM x\nPARAMETER top_p 7", 2, "top_p must be"),
        ("FROM x\nPARAMETER temperature nan", 2, "temperature must be"),
        ("FROM x\nPARAMETER num_ctx 0", 2, "num_ctx cannot be 0"),
        ("FROM x\nPARAMETER num_batch -1", 2, "num_batch cannot be -1"),
        ("FROM x\nPARAMETER use_mmap perhaps", 2, "use_mmap cannot be"),
        ('FROM x\nPARAMETER stop ""', 2, "empty stop"),
        ('FROM x\n# y\nSYSTEM """a\nFROM z\n', 3, 'the """ that begins here'),
        ('FROM x\nSYSTEM "a\nb', 2, 'the " that begins here'),
        ('FROM x\nSYSTEM """a""" b\n', 2, "begins here"),
        ("FROM x\nTEMPLATE {{ .Nonsense }}", 2, r"TEMPLATE: .*\.Nonsense"),
        ('FROM x\n\nTEMPLATE """\n{{ if }}"""', 3, "TEMPLATE: the template, line 2"),
    ],
)  # fmt: skip
def test_errors_name_the_line(text, line, says):
    with pytest.raises(ModelfileError, match=says) as caught:
        parse_modelfile(text, "M")
    assert str(caught.value).startswith(f"M:{line}: ")


def test_without_from():
    with pytest.raises(ModelfileError, match="no FROM line"):
        parse_modelfile("SYSTEM x", "M")
    with pytest.raises(ModelfileError, match="no FROM line"):
        parse_modelfile("", "M")


def test_files_that_are_no_modelfile(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"FROM x\nSYSTEM \xff\xff\n")
    with pytest.raises(ModelfileError, match=r"m:2: not a text in UTF-8"):
        read_modelfile(path)
    with path.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(ModelfileError, match="larger than"):
        read_modelfile(path)
    with pytest.raises(FileNotFoundError):
        read_modelfile(tmp_path / "nowhere")
    with pytest.raises(IsADirectoryError):
        read_modelfile(tmp_path)


PIECES = [
    "FROM", "TEMPLATE", "SYSTEM", "PARAMETER", "MESSAGE", " ", "\n", '"', '"""', "#", "x", "user", "stop",
    "top_k", "1", "\r", "\0", "{{", "}}", ".Prompt",
]  # fmt: skip


@hypothesis.given(st.lists(st.sampled_from(PIECES)).map("".join))
@hypothesis.settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused_with_its_line(text):
    with contextlib.suppress(ModelfileError):
        parse_modelfile("FROM x\n" + text)


def test_the_errors_class():
    assert issubclass(ModelfileError, (LlavaError, ValueError))
    assert not issubclass(ModelfileError, InvalidInputError)
