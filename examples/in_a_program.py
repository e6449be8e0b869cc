"""A program with a thread of its own for pictures: the rest goes on while the model works.

python examples/in_a_program.py text.gguf mmproj.gguf photo.jpg [more.jpg …]

The thread owns the Llava; questions come through a queue and answers leave through futures. The main
thread counts on while it waits: native calls hold no GIL. Ctrl-C stops the running answer at once.
"""

import queue
import sys
import threading
import time
from concurrent.futures import Future

from llava_native import CancelToken, Llava, Result

Job = tuple[str, str, "Future[Result]"]


def serve(model: str, mmproj: str, jobs: "queue.Queue[Job | None]", cancel: CancelToken) -> None:
    """Answer jobs until None comes."""
    with Llava(model, mmproj, cancel=cancel) as llava:
        while job := jobs.get():
            image, question, future = job
            try:
                future.set_result(llava.generate(question, image=image, max_tokens=32, cancel=cancel))
            except Exception as exc:  # the asker's to handle
                future.set_exception(exc)


def main() -> None:
    model, mmproj, *images = sys.argv[1:]
    jobs: queue.Queue[Job | None] = queue.Queue()
    cancel = CancelToken()
    worker = threading.Thread(target=serve, args=(model, mmproj, jobs, cancel))
    worker.start()
    try:
        for image in images:
            future: Future[Result] = Future()
            jobs.put((image, "What is this?", future))
            ticks = 0
            while not future.done() and worker.is_alive():  # your program's own work
                time.sleep(0.01)
                ticks += 1
            print(f"{image}: {future.result(timeout=1).text!r} ({ticks} ticks meanwhile)")
    except KeyboardInterrupt:
        cancel.cancel()
    finally:
        jobs.put(None)
        worker.join()


if __name__ == "__main__":
    main()
