"""One style for every figure, saved as PDF and PNG."""

import io
from collections.abc import Sequence
from pathlib import Path

import imageio.v2 as imageio
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch import Tensor

from interp.runs.config import shown
from interp.runs.files import place, writing

plt.switch_backend("Agg")  # figures are files; no display is needed
sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")


def save_figure(figure: Figure, path: Path) -> None:
    """Save as PATH.pdf and PATH.png and say so."""
    for ending in ("pdf", "png"):
        file = path.with_name(f"{path.name}.{ending}")
        with writing(file) as temporary:
            figure.savefig(temporary, format=ending, dpi=150, bbox_inches="tight")
            temporary.replace(file)
    plt.close(figure)
    print(f"{shown(path)}.png and .pdf")


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
                     style="split", legend=axis is axes[1], ax=axis)
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
        self.frames: list[np.ndarray] = []
        self.before: np.ndarray | None = None

    def add_frame(self, updates: Tensor, title: str) -> None:
        """updates: (examples, d_model)."""
        points = PCA(2).fit_transform(updates.cpu().numpy())  # (examples, 2)
        if self.before is not None:  # an axis of a PCA has no sign: keep the one that moves least
            points *= np.where((points * self.before).sum(0) < 0, -1, 1)
        self.before = points
        figure, axis = plt.subplots(figsize=(5, 4.5), layout="constrained")
        sns.scatterplot(x=points[:, 0], y=points[:, 1], hue=self.labels, palette="tab10", s=45, ax=axis)
        axis.legend(title="value", fontsize="x-small", loc="center left", bbox_to_anchor=(1, 0.5))
        axis.set(title=title, xlabel="first principal component", ylabel="second principal component")
        figure.canvas.draw()
        self.frames.append(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
        plt.close(figure)

    def save(self, path: Path, seconds_per_frame: float = 0.5) -> None:
        content = io.BytesIO()  # to a full disk, the writer would print a traceback as it goes
        imageio.mimsave(content, self.frames, format="GIF", duration=1000 * seconds_per_frame, loop=0)
        with writing(path) as temporary:
            temporary.write_bytes(content.getbuffer())
            place(temporary, path)


def draw_bars(axis: Axes, heights: pd.DataFrame, errors: pd.DataFrame) -> None:
    """A group of bars for each row, a bar for each column, its value above it, n/a where there is none (nan).

    errors: of the same shape, nan where there is none.
    """
    width = 0.8 / len(heights.columns)
    for number, label in enumerate(heights):
        places = np.arange(len(heights)) + (number - (len(heights.columns) - 1) / 2) * width
        axis.bar(places, heights[label], width, color=f"C{number}", label=label, yerr=errors[label],
                 error_kw={"elinewidth": 1.2, "capsize": 2})
        for x, height, top in zip(places, heights[label], heights[label] + errors[label].fillna(0)):
            axis.text(x, np.nan_to_num(top) + 0.01, "n/a" if np.isnan(height) else f"{height:.2f}", ha="center",
                      va="bottom", fontsize=8)
    axis.set_xticks(range(len(heights)), heights.index)
    axis.set(xlim=(-0.5, len(heights) - 0.5), ylim=(0, 1.12))
    axis.grid(axis="x", visible=False)


def draw_line(axis: Axes, mean: pd.Series, spread: pd.Series, label: str, color: str, marker: str = "o") -> None:
    """A line over the index of `mean`, interrupted where it is nan, with a band of `spread` where there is one."""
    spread = spread.reindex(mean.index).fillna(0)
    axis.plot(mean.index, mean, marker=marker, markersize=4, color=color, label=label)
    axis.fill_between(mean.index, mean - spread, mean + spread, color=color, alpha=0.25, linewidth=0)
