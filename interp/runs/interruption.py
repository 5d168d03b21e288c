"""Importing this first makes Ctrl-C end in a sentence while a script of this project loads its modules.

It imports little: until it is read, which takes some milliseconds, Ctrl-C ends in Python's own traceback.
"""

import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def interrupted(*signal_and_frame: object) -> None:
    """End at once: an exception in the middle of an import may be taken for that import's own."""
    name = os.path.basename(sys.argv[0]).removesuffix(".py")
    os.write(2, f"{name}: interrupted before anything was computed.\n".encode())
    os._exit(130)


def take_over() -> None:
    """Ctrl-C raises KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is interrupted:
        signal.signal(signal.SIGINT, signal.default_int_handler)


started = os.path.abspath(getattr(sys.modules["__main__"], "__file__", None) or "/")
if os.path.dirname(started) == ROOT and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, interrupted)  # in the background of a shell it is ignored, and stays so
