"""How far long work has got: a bar on a terminal, now and then a line in a log."""

import sys

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30


class Progress(tqdm):
    """tqdm, which in a log (where standard error is no terminal) writes a line at times instead of moving a bar."""

    def __init__(self, steps, **options):
        self.in_log = not sys.stderr.isatty()
        if self.in_log:
            options |= {
                "mininterval": SECONDS_BETWEEN_LINES, "maxinterval": SECONDS_BETWEEN_LINES, "leave": False,
                "bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s after {elapsed}, {remaining} left{postfix}"}
        super().__init__(steps, **({"leave": False, "smoothing": 0} | options))  # 0: time left by the mean

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if not self.in_log:
            super().display(msg, pos)
        elif msg is None and self.n > self.initial:  # tqdm also calls this to draw an empty bar, and to wipe it out
            print(self, file=sys.stderr, flush=True)
