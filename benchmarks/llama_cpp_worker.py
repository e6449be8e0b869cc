"""llama-cpp-python as somebody who answers: `answerers.py` starts this with a Python that has llama_cpp.

It reads a question a line, in JSON, and writes a line for each token, and one at the end.
"""

from __future__ import annotations

import json
import sys

import llama_cpp
from llama_cpp.llama_chat_format import Llava15ChatHandler


def main() -> None:
    """Answer until stdin ends."""
    text, mmproj, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    handler = Llava15ChatHandler(clip_model_path=mmproj, verbose=False)
    llm = llama_cpp.Llama(
        text, chat_handler=handler, n_ctx=4096, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    vocab = llama_cpp.llama_model_get_vocab(llm.model)
    never = {str(t): -100.0 for t in range(llm.n_vocab()) if llama_cpp.llama_vocab_is_eog(vocab, t)}
    print("ready", flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        url = "data:image/png;base64," + asked["picture"]
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": asked["question"]},
        ]
        chunks = llm.create_chat_completion(
            [{"role": "user", "content": content}],
            max_tokens=asked["n"], temperature=0, logit_bias=never, stream=True,
        )  # fmt: skip
        for chunk in chunks:
            if chunk["choices"][0]["delta"].get("content") is not None:
                print("token", flush=True)
        print("end", flush=True)


if __name__ == "__main__":
    main()
