"""Reflexives in figures: where is the antecedent's number, and does the pronoun need it? As summarize_agreement.py.

Circuits are of masculine sentences, and the answers without them are of both genders; for nearest neighbors, which read
sentences up to the pronoun, the two are the same.
"""

from functools import partial

from analysis.language_figures import summarize
from analysis.tables import run

main = partial(summarize, "reflexive", __doc__)

if __name__ == "__main__":
    run("summarize_reflexives", main)
