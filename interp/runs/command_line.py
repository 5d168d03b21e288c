"""The command line of every script, and what of it is answered before torch is loaded, which takes seconds."""

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from interp.runs.config import DATA, BadInput, C, ScriptConfig, inputs_of, keys_as_text, load_config, require_file
from interp.runs.settings import Setting, expand_settings
from interp.runs.store import check_run


def parse_arguments(name: str, schema: type[ScriptConfig], arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{name}.py", allow_abbrev=False, epilog=keys_as_text(schema),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE",
                        help="YAML configs, run one after another")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="override a key of every config")
    parser.add_argument("--overwrite", action="store_true",
                        help="move an earlier run in results_dir aside and start again")
    parser.add_argument("--check", action="store_true",
                        help="read and check everything, say what would be computed, compute and write nothing")
    parser.add_argument("--shard", type=parse_shard, default=(1, 1), metavar="K/N",
                        help="compute every N-th setting from the K-th on (of a comparison: with all methods); all "
                             "shards write into the same results_dir, at once or one after another")
    parser.add_argument("--device", help="auto (cuda if present, else cpu), cpu, cuda, cuda:1, mps")
    return parser.parse_args(arguments)


def parse_shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"'{text}' is not a shard such as 3/8, the third of eight")
    return int(found[1]), int(found[2])


def answer_early(name: str, schema: type[ScriptConfig]) -> None:
    """Answer --help and refuse a wrong command line or config; without a mistake nothing happens."""
    options = parse_arguments(name, schema, None)
    try:
        for file in options.config:
            with naming_config(file):
                read_config(file, schema, options)
    except BadInput as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


def read_config(file: str, schema: type[C], options: argparse.Namespace) -> tuple[C, list[Setting]]:
    """A config and its settings; raises BadInput as load_config and check_run, and where a data file is missing."""
    config = load_config(file, schema, options.set)
    settings = expand_settings(config)
    check_run(config, overwrite=options.overwrite)
    for key, path in inputs_of(config, DATA).items():
        require_file(key, path)
    return config, settings


@contextmanager
def naming_config(file: str) -> Iterator[None]:
    """Begin the sentence of bad input with the config that it is in."""
    try:
        yield
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
