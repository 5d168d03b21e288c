"""Subject-verb agreement in figures: where is the subject's number, and does the verb need it?

    python analysis/summarize_agreement.py [--results DIR] [--layer L --operation attn] [--out DIR]

Draws one_circuit, what ablating one circuit does to the model's answers (by default that whose ablation costs most
beyond that of as many random neurons), ablation_by_layer, the same of each sublayer, and nearest_neighbors, is the
variable there? Writes and prints strongest_sublayers.csv, sublayers by what their ablation costs beyond a random one's.
"""

from functools import partial

from analysis.language_figures import summarize
from analysis.tables import run

main = partial(summarize, "agreement", __doc__)

if __name__ == "__main__":
    run("summarize_agreement", main)
