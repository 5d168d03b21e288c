"""Subject-verb agreement in figures: where is the subject's number, and does the verb need it?

    python analysis/summarize_agreement.py [--results DIR] [--layer L --operation attn] [--out DIR]

Reads DIR/results.csv and DIR/ablations.csv, as far as they have come, and draws (--layer and --operation choose the
circuit of the first figure)

one_circuit         what ablating one circuit does to the model's answers: the one whose ablation costs most accuracy
                    beyond that of as many random neurons, if no other was asked for
ablation_by_layer   what ablating each sublayer's circuit does to the model's answers; a triangle where it costs more
                    than every random draw, a star where it does so significantly
nearest_neighbors   is the variable there? circuit and full sublayer, by layer

and writes and prints strongest_sublayers.csv, all sublayers by what their ablation costs beyond a random one's.
"""


from analysis.language_figures import GEN, IID, summarize
from analysis.method_figures import run

SETS = {"iid": IID, "gen": GEN}


def main() -> None:
    summarize(__doc__.splitlines()[0], "SV_Agreement/small", "agreement", SETS, "Agreement, number of the subject")


if __name__ == "__main__":
    run("summarize_agreement", main)
