"""A program with a thread of its own for pictures: the rest goes on while the model works.

python examples/in_a_program.py examples/shapes.png [more.jpg …]

The thread owns the Llava; questions come through a queue and answers leave through futures. The main
thread counts on while it waits: native calls hold no GIL. Ctrl-C stops the running answer at once.
"""

import argparse
import queue
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future

from llava_native import CancelToken, Llava, LlavaError, Result

Job = tuple[str, str, "Future[Result]"]


def serve(open_llava: Callable[[], Llava], jobs: "queue.Queue[Job | None]", cancel: CancelToken) -> None:
    """Answer jobs until None comes."""
    with open_llava() as llava:
        while job := jobs.get():
            image, question, future = job
            try:
                future.set_result(llava.generate(question, image=image, max_tokens=32, cancel=cancel))
            except Exception as exc:  # the asker's to handle
                future.set_exception(exc)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+")
    parser.add_argument("-m", "--model", help="a text model, GGUF; the embedded one if not given")
    parser.add_argument("--mmproj", help="its image encoder, GGUF")
    args = parser.parse_args()
    jobs: queue.Queue[Job | None] = queue.Queue()
    cancel = CancelToken()

    def open_llava() -> Llava:
        if args.model:
            return Llava(args.model, args.mmproj, cancel=cancel)
        return Llava.demo(cancel=cancel)

    worker = threading.Thread(target=serve, args=(open_llava, jobs, cancel))
    worker.start()
    try:
        for image in args.images:
            future: Future[Result] = Future()
            jobs.put((image, "What is this?", future))
            ticks = 0
            while not future.done() and worker.is_alive():  # your program's own work
                time.sleep(0.01)
                ticks += 1
            if not future.done():
                return  # the thread has ended, with a traceback that says why
            try:
                print(f"{image}: {future.result().text!r} ({ticks} ticks meanwhile)")
            except (LlavaError, OSError) as exc:  # this image is bad; the next may be sound
                print(f"{image}: {exc}", file=sys.stderr)
    except KeyboardInterrupt:
        cancel.cancel()
    finally:
        jobs.put(None)
        worker.join()


if __name__ == "__main__":
    main()
