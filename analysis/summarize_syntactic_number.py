"""Syntactic number in figures: where is an object's number, and does the subject's verb depend on it?

    python analysis/summarize_syntactic_number.py [--results DIR] [--layer L --operation attn] [--out DIR]

The control of agreement: circuits are of the number of the object, which the verb does not agree with, and ablation is
judged on the verb.

Reads DIR/results.csv and DIR/ablations.csv, as far as they have come, and draws

one_circuit         what ablating one circuit does to the model's answers: that of --layer and --operation, or else the
                    one whose ablation costs most accuracy beyond that of as many random neurons
ablation_by_layer   the same for every sublayer; a star where a circuit's ablation costs more than random draws do
nearest_neighbors   is the variable there? circuit and full model, by layer

and writes and prints strongest_sublayers.csv, all sublayers by what their ablation costs beyond a random one's.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from analysis.language_figures import summarize
from analysis.method_figures import run

SETS = {"iid": "IID", "gen": "generalization"}


def main() -> None:
    summarize(__doc__.splitlines()[0], "Syntactic_Number/small", SETS, "Verb after ablating the object's number")


if __name__ == "__main__":
    run("summarize_syntactic_number", main)
