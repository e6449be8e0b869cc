"""create_chat_completion: OpenAI's shapes, checked against the openai package's own types."""

from __future__ import annotations

import base64
import io
import json

import pytest

from llava_native import Llava
from llava_native._cancel import CancelToken
from llava_native.constraint import Constraint
from llava_native.errors import GrammarError, ImageDecodeError, InvalidInputError

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


@pytest.mark.parametrize("url", ["data:image/png;base64,iVBO", "data:;base64,???", __file__])
def test_a_bad_image_fails_before_anything_is_told(llava, url):
    chunks = llava.create_chat_completion(with_image(url), stream=True, **GREEDY)
    with pytest.raises(ImageDecodeError):
        next(chunks)


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


def logprobs_of(llava, **options):
    """Return an answer's text and the texts of its log-probabilities, of the whole and of its chunks."""
    options |= {"logprobs": True, "temperature": 0, "max_tokens": 20}
    choice = llava.create_chat_completion(HELLO, **options)["choices"][0]
    chunks = [c["choices"][0] for c in llava.create_chat_completion(HELLO, stream=True, **options)]
    streamed = [one["token"] for c in chunks if c["logprobs"] for one in c["logprobs"]["content"]]
    tokens = [one["token"] for one in choice["logprobs"]["content"]]
    assert tokens == streamed
    return choice["message"]["content"], tokens, choice["finish_reason"]


def test_logprobs_end_where_a_stop_string_ends_the_text(llava):
    text, tokens, _ = logprobs_of(llava)
    assert "".join(tokens) == text
    start = len("".join(tokens[:5]))
    stop = "".join(tokens[5:9])
    assert text.find(stop) == start
    assert logprobs_of(llava, stop=stop) == (text[:start], tokens[:5], "stop")
    # one that begins inside of a token, and one that holds back all to the end
    inside = next(i for i, token in enumerate(tokens) if i and len(token) > 2)
    start = len("".join(tokens[:inside])) + 1
    stop = text[start : start + 8]
    assert text.find(stop) == start
    assert logprobs_of(llava, stop=stop) == (text[:start], tokens[: inside + 1], "stop")
    assert logprobs_of(llava, stop=text + "!") == (text, tokens, "length")


def test_the_end_token_has_no_logprob(llava):
    text, tokens, reason = logprobs_of(llava, grammar='root ::= "abc"', stop="cx")
    assert (text, "".join(tokens), reason) == ("abc", "abc", "stop")


def test_an_answer_that_was_cancelled_is_not_complete(llava):
    token = CancelToken()
    token.cancel()
    choice = llava.create_chat_completion(HELLO, cancel=token, response_format={"type": "json_object"})
    assert choice["choices"][0]["message"]["content"] == ""
    assert choice["choices"][0]["finish_reason"] == "length"


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


def test_a_templates_stop_strings_do_not_cut_json(pair):
    text = {"text": "A sign: USER: bob"}
    with Llava(pair.text.path, n_ctx=256, n_threads=1, chat_template="vicuna") as llava:
        answer = llava.create_chat_completion(
            HELLO, temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": text}}},
        )["choices"][0]  # fmt: skip
    assert json.loads(answer["message"]["content"]) == text
    assert answer["finish_reason"] == "stop"


def test_a_constraint_is_kept_beside_a_format_of_plain_text(llava):
    answer = llava.create_chat_completion(
        HELLO, constraint=Constraint.regex("yes|no"), response_format={"type": "text"}, temperature=0
    )
    assert answer["choices"][0]["message"]["content"] in ("yes", "no")


@pytest.mark.parametrize("kind", ["json_object", "json_schema"])
def test_a_schema_may_be_a_truth_value(llava, kind):
    def ask(schema):
        form = {"type": kind, "schema": schema} if kind == "json_object" else {
            "type": kind, "json_schema": {"name": "x", "schema": schema}}  # fmt: skip
        llava.create_chat_completion(HELLO, response_format=form, temperature=0, max_tokens=4)

    ask(True)
    with pytest.raises(GrammarError, match="no JSON can meet"):
        ask(False)


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
        ({"response_format": {"type": "json_object"}, "constraint": Constraint.regex("a")}, "not both"),
        ({"max_completion_tokens": 0}, "max_completion_tokens must be"),
        ({"max_tokens": "8"}, "max_tokens must be"),
        ({"logprobs": True, "top_logprobs": "3"}, "0 to 20, not '3'"),
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


def test_none_is_the_default_and_minus_one_what_it_is_to_llama_cpp(llava):
    plain = llava.create_chat_completion(HELLO, seed=7, max_tokens=8, top_k=0)
    same = llava.create_chat_completion(
        HELLO, seed=7, max_tokens=8, top_k=-1, temperature=None, top_p=None, presence_penalty=None,
        frequency_penalty=None, min_p=None, timeout=None, overflow=None,
    )  # fmt: skip
    assert same["choices"] == plain["choices"]
    hot = {"temperature": 3, "max_tokens": 8, "top_k": None, "seed": -1}
    assert len({llava.create_chat_completion(HELLO, **hot)["choices"][0]["message"]["content"]
                for _ in range(9)}) > 1  # fmt: skip


@pytest.mark.parametrize("n", [0, -1])
def test_no_limit_is_zero_or_less(llava, n):
    bias = {str(llava.model.eos): -1e9}
    usage = llava.create_chat_completion(HELLO, max_tokens=n, logit_bias=bias)["usage"]
    assert usage["total_tokens"] == llava.context.n_ctx_seq


def test_every_sampling_parameter_and_what_openais_clients_pass_is_taken(llava):
    found = llava.create_chat_completion(
        HELLO, max_completion_tokens=2, n=1, user="somebody", repeat_last_n=8, dry_multiplier=0.5,
        xtc_probability=0.1, grammar_root="root",
    )  # fmt: skip
    assert found["usage"]["completion_tokens"] <= 2
