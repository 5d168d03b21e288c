"""How far long work has got: a bar on a terminal, now and then a line in a log."""

import sys

from tqdm.auto import tqdm

SECONDS_BETWEEN_LINES = 30


def Progress(steps, **options) -> tqdm:
    """A tqdm, which in a log, where standard error is no terminal, writes a line at times instead of moving a bar."""
    if not sys.stderr.isatty():
        options |= {"bar_format": "{desc}: {n_fmt} of {total_fmt} {unit}s after {elapsed}{postfix}\n", "leave": True,
                    **dict.fromkeys(("delay", "mininterval", "maxinterval"), SECONDS_BETWEEN_LINES)}
    return tqdm(steps, **options)
