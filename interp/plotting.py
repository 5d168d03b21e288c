"""One style for every figure, saved as PDF and PNG, and the figures that the methods draw themselves."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor

from interp.runs.config import shown
from interp.runs.files import write, writing

plt.switch_backend("Agg")  # figures are files; no display is needed
sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")

COLORS = {  # one colour has one meaning in every figure
    "whole": "C0",  # the full sublayer, the full model, the interchange of everything
    "circuit": "C1", "random": "C2", "linear probe": "C4", "MLP probe": "#7b2d6f", "LEACE": "C9", "DAS": "#8b1a1a",
    "closed form": "#7f7f00", "difference in means": "#9acd32", "baseline": "0.4",  # chance, the majority, nothing done
    "other": "0.1"}
LETTERS_AN_INCH = 130  # at a font size of 1


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PATH.pdf and PATH.png, with titles wrapped to the figure's width, and print the path."""
    for title in (*figure.texts, *(axis.title for axis in figure.axes if len(figure.axes) == 1)):
        title.set_text(wrapped(title.get_text(), LETTERS_AN_INCH / float(title.get_fontsize()) * figure.get_figwidth()))
    for ending in ("pdf", "png"):
        file = path.with_name(f"{path.name}.{ending}")
        with writing(file) as temporary:
            figure.savefig(temporary, format=ending, dpi=150, bbox_inches="tight")
            temporary.replace(file)
    plt.close(figure)
    print(f"{shown(path)}.png and .pdf")


def wrapped(text: str, letters: float, broken: bool = False) -> str:
    """A text in lines of at most so many letters; a longer word has a line to itself, or is broken."""
    return "\n".join(textwrap.fill(line, max(8, int(letters)), break_long_words=broken) for line in text.splitlines())


def draw_curves(table: pd.DataFrame, setting_names: Sequence[str], title: str, path: Path) -> None:
    """Loss and accuracy over epochs: a colour for each setting, dashes for test, which often hides train.

    table: a row for each setting and epoch, with train_loss, test_loss, train_acc, test_acc.
    """
    varying = [name for name in setting_names if table[name].nunique() > 1]
    names = table[varying].astype(str).apply(lambda row: ", ".join(f"{name} {row[name]}" for name in varying), axis=1)
    table = table.assign(setting=names if varying else "", epoch=table["epoch"].astype(float))
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for axis, measure in zip(axes, ("loss", "acc")):
        long = table.melt(["epoch", "setting"], [f"train_{measure}", f"test_{measure}"], "split", "value")
        long["split"] = long["split"].str.removesuffix(f"_{measure}")
        sns.lineplot(long.astype({"value": float}), x="epoch", y="value", hue="setting" if varying else "split",
                     style="split", palette="crest" if varying else ["0.1", "0.55"], legend=axis is axes[1], ax=axis)
        axis.set_xlabel("epoch (one full-batch step each)")
        axis.xaxis.set_major_locator(plt.MaxNLocator(5))  # the numbers of long trainings run into each other
    axes[0].set(yscale="log", ylabel="cross-entropy (nats)")
    axes[1].set(ylim=(-0.02, 1.02), ylabel="accuracy")
    axes[1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(title, parse_math=False)
    save_figure(figure, path)


class UpdateAnimation:
    """Frames of a 2-D PCA of updates, a colour for each class, joined into a GIF."""

    def __init__(self, labels: Tensor):
        self.labels = labels.cpu().numpy()  # (examples,)
        self.frames: list[Any] = []
        self.before: np.ndarray | None = None

    def add_frame(self, updates: Tensor, title: str) -> None:
        """updates: (examples, d_model)."""
        points = PCA(2).fit_transform(updates.cpu().numpy())  # (examples, 2)
        if self.before is not None:  # an axis of a PCA has no sign: keep the one that moves least
            points *= np.where((points * self.before).sum(0) < 0, -1, 1)
        self.before = points
        figure, axis = plt.subplots(figsize=(5, 4.5), layout="constrained")
        few = len(set(self.labels)) <= plt.get_cmap("tab10").N
        sns.scatterplot(x=points[:, 0], y=points[:, 1], hue=self.labels, palette="tab10" if few else "viridis", s=45,
                        legend="full" if few else "brief", ax=axis)
        axis.legend(title="value", fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
        axis.set(title=title, xlabel="first principal component", ylabel="second principal component")
        figure.canvas.draw()
        self.frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # type: ignore  # of Agg's canvas
        plt.close(figure)

    def save(self, path: Path, seconds_per_frame: float = 0.5) -> None:
        content = io.BytesIO()  # to a full disk, the writer would print a traceback and leave its file open
        imageio.mimsave(content, self.frames, format="GIF", duration=1000 * seconds_per_frame, loop=0)
        write(path, content.getbuffer(), replaces=False)
