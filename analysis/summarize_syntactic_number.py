"""Syntactic number in figures: where is an object's number, and does the subject's verb depend on it?

    python analysis/summarize_syntactic_number.py [--results DIR] [--layer L --operation attn] [--out DIR]

The control of agreement: circuits are of the number of the object, which the verb does not agree with, and ablation is
judged on the verb.

Reads and draws what summarize_agreement.py does.
"""


from analysis.language_figures import GEN, IID, summarize
from analysis.method_figures import run

SETS = {"iid": IID, "gen": GEN}


def main() -> None:
    summarize(__doc__.splitlines()[0], "Syntactic_Number/small", "syntactic_number", SETS,
              "Verb after ablating the object's number")


if __name__ == "__main__":
    run("summarize_syntactic_number", main)
