"""Run docs/tour.ipynb and keep the outputs of its cells, without Jupyter.

    python docs/run_tour.py

A cell's outputs are what it prints, and the value of its last line if that is an expression: a picture (`_repr_png_`),
a table (`_repr_html_`) or text.
"""

import ast
import base64
import contextlib
import io
import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("tour.ipynb")


def run_cells(notebook: dict[str, Any], parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run the code cells in order and put their outputs into the notebook; returns the names that they define.

    parameters: values that replace those of the cell that is tagged `parameters`.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for count, cell in enumerate(code, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = run_cell("".join(cell["source"]), names, f"cell {count} of tour.ipynb")
        if "parameters" in cell["metadata"].get("tags", []):
            names |= parameters or {}
        cell["execution_count"], cell["outputs"] = count, []
        if text := printed.getvalue():
            cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
        if value is not None:
            cell["outputs"].append({"output_type": "execute_result", "execution_count": count, "metadata": {},
                                    "data": by_kind(value)})
    return names


def run_cell(source: str, names: dict[str, Any], name: str) -> Any:
    """Run a cell; returns the value of its last line if that is an expression."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return last and eval(compile(last, name, "eval"), names)


def by_kind(value: Any) -> dict[str, Any]:
    """A value as a notebook stores it, by MIME type."""
    if hasattr(value, "_repr_png_"):
        return {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["a figure"]}
    data = {"text/plain": repr(value).splitlines(keepends=True)}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = value._repr_html_().splitlines(keepends=True)
    return data


if __name__ == "__main__":
    notebook = json.loads(FILE.read_text())
    run_cells(notebook)
    FILE.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
