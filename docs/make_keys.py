"""Write docs/keys.md: every key that a config may have, from the descriptions at the fields of the scripts' configs.

    python docs/make_keys.py

Keys that several scripts share word for word stand in a table of their own, once.
"""

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

from interp.runs.config import ALIASES, ModelSweep, ScriptConfig, describe_keys
from interp.runs.files import write_text
from interp.tasks.keys import QuestionConfig

FILE = Path(__file__).with_name("keys.md")
SCRIPTS = ("train_algorithmic_models", "generate_language_data", "circuit_probing", "probing", "amnesic_probing", "DAS",
           "compare_methods")
SHARED = {
    "Every script": (ScriptConfig, "Keys that all scripts have."),
    "The methods": (QuestionConfig, "Keys by which circuit_probing.py, probing.py, amnesic_probing.py, DAS.py and "
                    "compare_methods.py are told of which data and models they are asked."),
}
HEAD = """# Keys

What may stand in a config. A key without a default must be given. The default `null` means that the key may be left
out. Keys that end in `_list` are swept: every combination of their values is a setting, and a row of `results.csv`.
`base: FILE` takes over the keys of another config, and `python SCRIPT.py --help` shows this page for one script.

This page is written by `python docs/make_keys.py`, from what stands at the keys in the scripts.
"""

Row = tuple[str, str, str]  # key, default, meaning


def table(rows: list[Row]) -> Iterator[str]:
    yield "| key | default | meaning |"
    yield "|---|---|---|"
    for name, default, meaning in rows:
        meaning = meaning.replace("|", "\\|")
        yield f"| `{name}` | {f'`{default}`' if default else ''} | {meaning} |"


def page() -> str:
    lines, told = [HEAD], set()
    for title, (schema, about) in SHARED.items():
        rows = [row for row in describe_keys(schema) if row not in told]
        told |= set(rows)
        lines += [f"## {title}", "", about, "", *table(rows), ""]
    aliases = ", ".join(f"`{alias}` for `{name}`" for alias, name in ALIASES.items())
    lines += [f"Some keys have two names, as in the paper's configs: {aliases}. A script takes either.", ""]
    for script in SCRIPTS:
        schema = import_module(script).Config
        shared = "the methods" if issubclass(schema, ModelSweep) else "every script"
        rows = [row for row in describe_keys(schema) if row not in told]
        lines += [f"## {script}.py", "", f"Besides those of [{shared}](#{shared.replace(' ', '-')}):", "",
                  *table(rows), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    write_text(FILE, page())
