"""One style for every figure, saved as PDF and PNG."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402  (the backend must be chosen first)
import seaborn as sns  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from interp.config import shown  # noqa: E402

sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PATH.pdf and PATH.png and say so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for ending in (".pdf", ".png"):
        figure.savefig(path.with_name(path.name + ending), dpi=150, bbox_inches="tight")
    plt.close(figure)
    print(f"{shown(path)}.png and .pdf")
