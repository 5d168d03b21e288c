"""Reflexives in figures: where is the antecedent's number, and does the pronoun need it? As summarize_agreement.py.

Circuits are of masculine sentences, answers of both genders; nearest neighbors read sentences up to the pronoun.
"""

from functools import partial

from analysis.language_figures import summarize
from analysis.tables import run

main = partial(summarize, "reflexive", __doc__)

if __name__ == "__main__":
    run("summarize_reflexives", main)
