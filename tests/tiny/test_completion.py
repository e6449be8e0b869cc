"""create_chat_completion: OpenAI's shapes, checked against the openai package's own types."""

from __future__ import annotations

import base64
import io
import json

import pytest

from llava_native import Llava
from llava_native.constraint import Constraint
from llava_native.errors import GrammarError, InvalidInputError

openai_types = pytest.importorskip("openai.types.chat", reason="the openai package is a test extra")
HELLO = [{"role": "user", "content": "Hello"}]
GREEDY = {"temperature": 0, "max_tokens": 8}
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "n": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["colour", "n"],
    "additionalProperties": False,
}


@pytest.fixture
def llava(pair):
    with Llava(pair.text.path, pair.mmproj.path, n_ctx=256, n_threads=1) as opened:
        yield opened


def data_uri(picture):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def with_image(url):
    return [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is this?"},
    ]}]  # fmt: skip


def test_an_answer_is_an_openai_chat_completion(llava):
    answer = llava.create_chat_completion(HELLO, **GREEDY)
    checked = openai_types.ChatCompletion.model_validate(answer, strict=True)
    assert checked.choices[0].message.content == llava.generate("Hello", **GREEDY).text
    assert checked.choices[0].finish_reason == "length"
    assert checked.usage.completion_tokens == 8
    assert checked.usage.total_tokens == checked.usage.prompt_tokens + 8
    assert checked.model == "text"
    assert answer.keys() <= openai_types.ChatCompletion.model_fields.keys()


def test_chunks_are_openais_and_make_the_answer(llava):
    chunks = list(
        llava.create_chat_completion(HELLO, stream=True, stream_options={"include_usage": True}, **GREEDY)
    )
    checked = [openai_types.ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    text = "".join(c.choices[0].delta.content or "" for c in checked if c.choices)
    assert text == llava.generate("Hello", **GREEDY).text
    assert checked[0].choices[0].delta.role == "assistant"
    assert checked[-2].choices[0].finish_reason == "length"
    assert checked[-1].usage.completion_tokens == 8
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_images_by_data_uri_path_and_file_url(llava, picture, tmp_path):
    picture.save(tmp_path / "p 1.png")
    path = tmp_path / "p 1.png"
    answers = {
        llava.create_chat_completion(with_image(url), **GREEDY)["choices"][0]["message"]["content"]
        for url in (data_uri(picture), str(path), path.as_uri())
    }
    assert answers == {llava.generate("What is this?", image=picture, **GREEDY).text}
    with pytest.raises(InvalidInputError, match="allow_urls=True"):
        llava.create_chat_completion(with_image("https://example.org/cat.png"))


def test_a_dropped_stream_frees_the_model(llava):
    chunks = llava.create_chat_completion(HELLO, stream=True, **GREEDY)
    next(chunks)
    del chunks
    never_begun = llava.create_chat_completion(HELLO, stream=True, **GREEDY)
    del never_begun
    assert llava.generate("Hello", **GREEDY).text


def test_logprobs(llava):
    answer = llava.create_chat_completion(HELLO, logprobs=True, top_logprobs=3, **GREEDY)
    openai_types.ChatCompletion.model_validate(answer, strict=True)
    content = answer["choices"][0]["logprobs"]["content"]
    assert len(content) == 8
    for one in content:
        tops = [top["logprob"] for top in one["top_logprobs"]]
        assert tops == sorted(tops, reverse=True)
        assert one["logprob"] == tops[0] < 0  # greedy took the likeliest
    joined = b"".join(bytes(one["bytes"]) for one in content).decode("utf-8", "replace")
    assert joined == answer["choices"][0]["message"]["content"]
    assert llava.create_chat_completion(HELLO, **GREEDY)["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("seed", range(4))
def test_json_of_a_schema_about_an_image(llava, picture, seed):
    answer = llava.create_chat_completion(
        with_image(data_uri(picture)), temperature=1.5, seed=seed, max_tokens=60,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}},
    )["choices"][0]  # fmt: skip
    found = json.loads(answer["message"]["content"])
    assert found.keys() == {"colour", "n"}
    assert found["colour"] in ("red", "blue")
    assert 0 <= found["n"] <= 99
    assert answer["finish_reason"] == "stop"


def test_regex_and_lark(llava):
    def ask(constraint):
        return llava.generate("x", constraint=constraint, temperature=1.5, seed=3, max_tokens=20).text

    assert ask(Constraint.regex("(ab){2,3}!")) in ("abab!", "ababab!")
    assert ask(Constraint.lark('start: "yes" | "no"')) in ("yes", "no")


@pytest.mark.parametrize(
    "constraint",
    [
        lambda: Constraint.json_schema({"type": "nothing"}),
        lambda: Constraint.json_schema({"allOf": [{"type": "string"}, {"type": "number"}]}),
        lambda: Constraint.regex("("),
        lambda: Constraint.lark("start: nothing"),
        lambda: Constraint.json_schema({"a": object()}),
    ],
)
def test_a_constraint_that_nothing_can_meet(llava, constraint):
    with pytest.raises(GrammarError, match=r"\w"):
        llava.generate("x", constraint=constraint(), max_tokens=4)
    assert llava.generate("x", max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"functions": [{}]}, "use tools"),
        ({"tool_choice": {"type": "function"}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "'xml'"),
        ({"response_format": {"type": "json_schema"}}, "json_schema must be"),
        ({"response_format": {"type": "json_object"}, "grammar": 'root ::= "a"'}, "not both"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "0 to 20"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"n": 2}, "n=2"),
        ({"temperatur": 0}, "temperatur"),
    ],
)
def test_refusals(llava, options, match):
    with pytest.raises(InvalidInputError, match=match):
        llava.create_chat_completion(HELLO, **options)


def test_what_llama_cpp_python_passes_by_default_is_taken(llava):
    llava.create_chat_completion(
        HELLO, functions=None, function_call=None, tools=None, tool_choice=None, temperature=0, top_p=0.95,
        top_k=40, min_p=0.05, typical_p=1.0, stream=False, stop=[], seed=None, response_format=None,
        max_tokens=1, presence_penalty=0.0, frequency_penalty=0.0, repeat_penalty=1.0, tfs_z=1.0,
        mirostat_mode=0, mirostat_tau=5.0, mirostat_eta=0.1, model=None, logits_processor=None, grammar=None,
        logit_bias=None, logprobs=None, top_logprobs=None,
    )  # fmt: skip


def test_every_sampling_parameter_and_what_openais_clients_pass_is_taken(llava):
    found = llava.create_chat_completion(
        HELLO, max_completion_tokens=2, n=1, user="somebody", repeat_last_n=8, dry_multiplier=0.5,
        xtc_probability=0.1, grammar_root="root",
    )  # fmt: skip
    assert found["usage"]["completion_tokens"] <= 2
