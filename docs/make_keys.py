"""Write docs/keys.md: every key that a config may have, from the descriptions at the fields of the scripts' configs.

    python docs/make_keys.py

Keys that several scripts share word for word stand in a table of their own.
"""

from importlib import import_module
from pathlib import Path

from interp.methods.interchange.registry import INTERCHANGES
from interp.runs.config import ALIASES, ModelSweep, ScriptConfig, describe_keys
from interp.runs.files import write_text
from interp.tasks.keys import QuestionConfig

FILE = Path(__file__).with_name("keys.md")
SCRIPTS = ("train_algorithmic_models", "train_known_models", "generate_language_data", "circuit_probing", "probing",
           "amnesic_probing", "DAS", "compare_methods")
SHARED = {"Every script": (ScriptConfig, "Keys that all scripts have."),
          "The methods": (QuestionConfig, "Keys of circuit_probing.py, probing.py, amnesic_probing.py, DAS.py and "
                          "compare_methods.py: which data and which models they look at.")}
HEAD = """# Keys

What may stand in a config. A key without a default must be given. The default `null` means that the key may be left
out. Keys that end in `_list` are swept: every combination of their values is a setting, and a row of `results.csv`.
`base: FILE` takes over the keys of another config, and `python SCRIPT.py --help` shows this page for one script.

`python docs/make_keys.py` writes this page from the descriptions of the keys in the scripts.
"""


def table(rows: list[tuple[str, str, str]]) -> list[str]:
    """Rows of key, default and meaning, in Markdown."""
    cells = [(f"`{name}`", f"`{default}`" if default else "", meaning.replace("|", "\\|"))
             for name, default, meaning in rows]
    return ["| key | default | meaning |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in cells), ""]


def page() -> str:
    lines, seen = [HEAD], set()
    for title, (schema, about) in SHARED.items():
        rows = [row for row in describe_keys(schema) if row not in seen]
        seen |= set(rows)
        lines += [f"## {title}", "", about, "", *table(rows)]
    aliases = ", ".join(f"`{alias}` for `{name}`" for alias, name in ALIASES.items())
    lines += [f"Some keys have two names, as in the paper's configs: {aliases}. A script takes either.", ""]
    for script in SCRIPTS:
        schema = import_module(script).Config
        shared = "the methods" if issubclass(schema, ModelSweep) else "every script"
        rows = [row for row in describe_keys(schema) if row not in seen]
        lines += [f"## {script}.py", "", f"Besides those of [{shared}](#{shared.replace(' ', '-')}):", "", *table(rows)]
    lines += ["## Options of the compared methods", "", "In `method_options` of compare_methods.py, by method:", ""]
    for options in dict.fromkeys(method.options for method in INTERCHANGES.values() if method.options.model_fields):
        names = [f"`{name}`" for name, method in INTERCHANGES.items() if method.options is options]
        lines += [f"{', '.join(names)}:", "", *table(describe_keys(options))]
    return "\n".join(lines)


if __name__ == "__main__":
    write_text(FILE, page())
