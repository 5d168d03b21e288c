"""Subject-verb agreement in figures: where is the subject's number, and does the verb need it?

    python analysis/summarize_agreement.py [--results DIR] [--layer L --operation attn] [--out DIR]

Reads DIR/results.csv and DIR/ablations.csv and draws (--layer and --operation choose the circuit of the first figure)

one_circuit         what ablating one circuit does to the model's answers: by default the one whose ablation costs most
                    accuracy beyond that of as many random neurons
ablation_by_layer   the same of each sublayer's circuit; a triangle where it costs more than every random draw, a star
                    where it does so significantly
nearest_neighbors   is the variable there? circuit and full sublayer, by layer

and writes and prints strongest_sublayers.csv, all sublayers by what their ablation costs beyond a random one's.
"""

from functools import partial

from analysis.language_figures import summarize
from analysis.tables import run

main = partial(summarize, "agreement", __doc__)

if __name__ == "__main__":
    run("summarize_agreement", main)
