"""Reflexives in figures: where is the antecedent's number, and does the pronoun need it?

    python analysis/summarize_reflexives.py [--results DIR] [--layer L --operation attn] [--out DIR]

Circuits are of masculine sentences, and ablation is judged on both genders; for nearest neighbors, which read sentences
up to the pronoun, the two are the same.

Reads and draws what summarize_agreement.py does.
"""


from analysis.language_figures import GEN, IID, summarize
from analysis.method_figures import run

SETS = {f"{name}_{gender}": f"{gender}, {label}" for name, label in (("iid", IID), ("gen", GEN))
        for gender in ("masculine", "feminine")}


def main() -> None:
    summarize(__doc__.splitlines()[0], "Reflexives/small", "reflexive", SETS, "Reflexives, number of the antecedent")


if __name__ == "__main__":
    run("summarize_reflexives", main)
