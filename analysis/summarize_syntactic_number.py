"""Syntactic number in figures: where is an object's number, and does the verb depend on it? As summarize_agreement.py.

The control of agreement: circuits are of the object's number, with which the verb does not agree.
"""

from functools import partial

from analysis.language_figures import summarize
from analysis.tables import run

main = partial(summarize, "syntactic_number", __doc__)

if __name__ == "__main__":
    run("summarize_syntactic_number", main)
