"""Reflexives in figures: where is the antecedent's number, and does the pronoun need it?

    python analysis/summarize_reflexives.py [--results DIR] [--layer L --operation attn] [--out DIR]

Circuits are of masculine sentences, and ablation is judged on both genders; for nearest neighbors, which read sentences
up to the pronoun, the two are the same.

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

SETS = {"iid_masculine": "IID, masculine", "iid_feminine": "IID, feminine",
        "gen_masculine": "generalization, masculine", "gen_feminine": "generalization, feminine"}


def main() -> None:
    summarize(__doc__.splitlines()[0], "Reflexives/small", SETS, "Reflexives, number of the antecedent")


if __name__ == "__main__":
    run("summarize_reflexives", main)
