"""The command line of every script, and what of it is answered before torch is loaded, which takes seconds."""

import argparse
import sys
import textwrap

from interp.runs.config import BadInput, C, ModelSweep, ScriptConfig, describe_keys, load_config
from interp.runs.settings import Setting, expand_settings
from interp.runs.store import check_run


def parse_arguments(name: str, schema: type[ScriptConfig], arguments: list[str] | None) -> argparse.Namespace:
    keys = ["keys of a config (base: FILE takes over those of another; keys that end in _list are swept):\n"]
    for key, default, meaning in sorted(describe_keys(schema), key=lambda key: key[1] != ""):  # those without one first
        keys.append(textwrap.fill(f"{key}{f' ({default})' if default else ''}: {meaning}", 100, initial_indent="  ",
                                  subsequent_indent="      "))
    parser = argparse.ArgumentParser(prog=f"{name}.py", allow_abbrev=False, epilog="\n".join(keys),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="YAML configs, one after another")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="override a key of every config")
    parser.add_argument("--overwrite", action="store_true", help="move an earlier run aside and start again")
    parser.add_argument("--check", action="store_true", help="read and check everything, list what is left to compute")
    parser.add_argument("--answers", action="store_true",
                        help="with --check, of a method: open the models, and say how often they answer correctly")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="K/N",
                        help="compute every N-th setting from the K-th on (of a comparison: with all methods); all "
                             "shards write into the same results_dir, at once or one after another")
    parser.add_argument("--device", help="auto (cuda if present, else cpu), cpu, cuda, cuda:1, mps")
    options = parser.parse_args(arguments)
    if options.answers and not (options.check and issubclass(schema, ModelSweep)):
        parser.error("--answers goes with --check, in the scripts that look into a model")
    return options


def shard(text: str) -> tuple[int, int]:
    number, of = map(int, text.split("/"))
    if not 1 <= number <= of:
        raise ValueError
    return number, of


def answer_early(name: str, schema: type[ScriptConfig]) -> None:
    """Answer --help and refuse a wrong command line or config; without a mistake nothing happens."""
    options = parse_arguments(name, schema, None)
    try:
        for file in options.config:
            read_config(file, schema, options)
    except (BadInput, OSError) as error:
        print(f"{name}: {file}: {error}", file=sys.stderr)
        sys.exit(2)


def read_config(file: str, schema: type[C], options: argparse.Namespace) -> tuple[C, list[Setting]]:
    """A config and its settings; raises BadInput as load_config and check_run."""
    config = load_config(file, schema, options.set)
    settings = expand_settings(config)
    check_run(config, overwrite=options.overwrite)
    return config, settings
