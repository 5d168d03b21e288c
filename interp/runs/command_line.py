"""The command line of every script, and what of it is answered before torch is loaded, which takes seconds."""

import argparse
import sys
from contextlib import contextmanager

from interp.runs.config import (
    DATA,
    BadInput,
    C,
    ScriptConfig,
    find_config,
    keys_as_text,
    keys_that_read,
    load_config,
    project_path,
    require_file,
    shown,
)
from interp.runs.directory import check_folder, check_results_dir
from interp.runs.parts import narrow, parse_part
from interp.runs.settings import Setting, expand_settings


def parse_arguments(name: str, schema: type[ScriptConfig], arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"{name}.py", allow_abbrev=False, epilog=keys_as_text(schema),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE",
                        help="YAML configs, run one after another")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="override a key of every config")
    parser.add_argument("--overwrite", action="store_true",
                        help="move an earlier run in results_dir aside and begin anew")
    parser.add_argument("--check", action="store_true",
                        help="read and check all of it, say what would be computed, compute and write nothing")
    parser.add_argument("--part", type=parse_part, metavar="K/N",
                        help="compute every N-th setting from the K-th on, of a comparison with all its methods, in "
                             "results_dir/part_K_of_N; once all parts are complete, the command without --part joins "
                             "them")
    parser.add_argument("--wait", action="store_true",
                        help="wait for another process that is at work on the same run, instead of refusing")
    parser.add_argument("--device", help="auto (cuda if present, else cpu), cpu, cuda, cuda:1, mps")
    return parser.parse_args(arguments)


def answer_early(name: str, schema: type[ScriptConfig]) -> None:
    """Answer --help, and refuse a wrong command line or config, for a script that is started; else nothing happens.
    """
    options = parse_arguments(name, schema, None)
    try:
        for file in options.config:
            with naming_config(file):
                read_config(file, schema, options)
    except BadInput as error:
        print(f"{name}: {error}", file=sys.stderr)
        sys.exit(2)


def read_config(file: str, schema: type[C], options: argparse.Namespace) -> tuple[C, list[Setting]]:
    """A config with its settings; those of a part, which may have none, where one is asked for.

    Raises:
        BadInput: it is wrong, its results_dir cannot be written or is another run's, or a data file is missing.
    """
    config = load_config(file, schema, options.set)
    settings = expand_settings(config)
    if options.part:
        check_folder("results_dir", project_path(config.results_dir))
        config, settings = narrow(config, settings, options.part, options.overwrite)
    check_results_dir(config, options.overwrite)
    for key in keys_that_read(schema, DATA):
        if config.reads(key) and getattr(config, key):
            require_file(key, getattr(config, key))
    return config, settings


@contextmanager
def naming_config(file: str):
    """Begin the sentence of bad input with the config that it is in."""
    try:
        yield
    except BadInput as error:
        where = shown(find_config(file))
        raise BadInput(str(error) if str(error).startswith(where) else f"{where}: {error}") from None
