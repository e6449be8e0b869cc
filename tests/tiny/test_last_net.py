"""The last net: an assertion inside the native library, which the checks above it never let happen.

A child process takes one check away and lets llama.cpp run into its own assertion.
"""

from __future__ import annotations

from support.child import outcome

UNCHECKED = """
    import faulthandler
    import sys
    import llava_native._context as module
    from llava_native import Context, Model
    from llava_native._native import live_counts
    from llava_native.errors import NativeAbort

    faulthandler.disable()  # the report has the stack by itself
    module.check_range = lambda name, value, low, high: None  # what keeps callers from the assertion
    model = Model(sys.argv[1])
    ctx = Context(model, n_ctx=64, n_threads=1)
"""


def test_an_abort_on_the_callers_thread_is_an_exception(pair):
    code = (
        UNCHECKED
        + """
    ctx.eval([1, 2])
    other = Context(model, n_ctx=64)
    try:
        ctx.copy_sequence(0, 5000)
    except NativeAbort as exc:
        print("GGML_ASSERT" in str(exc), exc.call)
    for use in (lambda: ctx.eval([1]), lambda: ctx.truncate_sequence(0, 0), lambda: ctx.logits):
        try:
            use()
        except NativeAbort as exc:
            print(exc)
    print(other.eval([1, 2, 3]))
    for thing in (ctx, other, model):
        thing.close()
    print(live_counts()["context"], live_counts()["model"])
    """
    )
    used = "the native library aborted in this object; make another\n"
    assert outcome(code, pair.text.path) == (0, "True llama_memory_seq_rm\n" + used * 3 + "3\n0 0", "")


def test_a_process_that_another_starts_again_ends(pair):
    code = (
        UNCHECKED
        + """
    from llava_native._native import end_on_abort

    end_on_abort()
    ctx.copy_sequence(0, 5000)
    """
    )
    status, out, err = outcome(code, pair.text.path)
    assert (status, out) == (-6, "")
    assert "GGML_ASSERT" in err.splitlines()[0]


def test_an_abort_elsewhere_tells_where_python_was_and_ends_the_process(pair):
    code = (
        UNCHECKED
        + """
    def ask_for_too_many_rows():
        ctx.eval_batch([(0, [1, 2, 3], 3)])

    ask_for_too_many_rows()
    """
    )
    status, out, err = outcome(code, pair.text.path)
    assert (status, out) == (-6, "")
    assert err.startswith("llava_native: the native library aborted: ")
    assert "GGML_ASSERT" in err.splitlines()[0]
    assert "in ask_for_too_many_rows" in err
