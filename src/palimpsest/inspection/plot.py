"""Zeros and changes of every layer as a picture; needs matplotlib."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from palimpsest.errors import BadRun, BadSetting, MissingExtra
from palimpsest.inspection.inspecting import Inspection
from palimpsest.inspection.kinds import KINDS

# Okabe and Ito's colours, which colour-blind people tell apart, and greys for what is seldom erased.
COLOURS = {
    "cross-attention K/V": "#D55E00",
    "cross-attention Q/out": "#E69F00",
    "self-attention": "#CC79A7",
    "feed-forward, first linear": "#56B4E9",
    "feed-forward, second linear": "#0072B2",
    "convolutions": "#009E73",
    "text encoder": "#000000",
    "text embeddings": "#666666",
    "block projections": "#8C6D31",
    "time embeddings": "#A0A0A0",
    "norms": "#C0C0C0",
    "autoencoder": "#D8C8E8",
    "other linears": "#5A7D5A",
}


def require_plot(path: Path) -> None:
    """Raises for what cannot be written, before anything is computed."""
    if path.suffix != ".png":
        raise BadSetting(f"expected a file ending in .png, got {path}")
    if path.exists():
        raise BadRun(f"expected a new file, got {path}, which exists")
    if not path.parent.is_dir():
        raise BadRun(f"expected a file in a folder that is there, got {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra("a plot", "matplotlib", "plots") from None


def plot(inspection: Inspection, path: Path, *, title: str) -> None:
    """Writes a PNG: the share of zeros per matrix, and below it, if there is a base, the relative change per weight."""
    from matplotlib.figure import Figure

    names = [one.name for one in inspection.changes] or [one.name for one in inspection.zeros]
    place = {name: index for index, name in enumerate(_by_depth(names))}
    panels = 2 if inspection.changes else 1
    figure = Figure(figsize=(12, 1.6 + 3.2 * panels), dpi=120, layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    shown = _zeros(axes[0], inspection, place)
    if inspection.changes:
        shown |= _changes(axes[1], inspection, place)
    _stages(list(axes), list(place))
    handles = [axes[0].plot([], [], "o", color=COLOURS[kind], label=kind)[0] for kind in KINDS if kind in shown]
    if any(not one.beyond and one.zeros for one in inspection.zeros):
        handles.append(axes[0].plot([], [], "o", mfc="white", mec="#888888", label="within chance")[0])
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.savefig(path)


def _by_depth(names: Sequence[str]) -> list[str]:
    """Text encoder, denoiser as a picture passes through it, autoencoder; within each as the model has them."""
    order = ("text_encoder.", "unet.")
    depth = ("down_blocks", "input_blocks", "mid", "up_blocks", "output_blocks", "conv_norm_out", "conv_out", "out")

    def rank(name: str) -> tuple[int, int]:
        network = next((at for at, start in enumerate(order) if name.startswith(start)), len(order))
        return network, next((at for at, part in enumerate(depth, 1) if f".{part}" in name), 0)

    return sorted(names, key=rank)


def _zeros(axis: Any, inspection: Inspection, place: dict[str, int]) -> set[str]:
    shown = set()
    for one in inspection.zeros:
        if one.zeros and one.tested:
            colour = COLOURS[one.kind] if one.beyond else "#888888"
            axis.vlines(place[one.name], 0, one.share, color=colour, lw=1.2, alpha=0.6)
            axis.plot(place[one.name], one.share, "o", ms=5, mec=colour, mfc=colour if one.beyond else "white")
            shown |= {one.kind} if one.beyond else set()
    _scale(axis, [one.share for one in inspection.zeros if one.zeros and one.tested], "share of exact zeros")
    if not any(one.beyond for one in inspection.zeros):
        axis.text(0.5, 0.9, "no zeros beyond chance", transform=axis.transAxes, ha="center", color="#555555")
    return shown


def _changes(axis: Any, inspection: Inspection, place: dict[str, int]) -> set[str]:
    shown = set()
    for one in inspection.changes:
        if one.changed:
            axis.vlines(place[one.name], 0, one.relative, color=COLOURS[one.kind], lw=1.2, alpha=0.6)
            axis.plot(place[one.name], one.relative, "o", ms=5, color=COLOURS[one.kind])
            shown.add(one.kind)
    _scale(axis, [one.relative for one in inspection.changes if one.changed], "relative change  ‖W−W₀‖ / ‖W₀‖")
    if not shown:
        axis.text(0.5, 0.5, "nothing changed", transform=axis.transAxes, ha="center", color="#555555")
    return shown


def _scale(axis: Any, values: Sequence[float], label: str) -> None:
    """Logarithmic where values differ by more than a factor of thirty."""
    axis.set_ylabel(label)
    if not values:
        axis.set_yticks([])
    elif max(values) > 30 * min(values):
        axis.set_yscale("log")
        axis.set_ylim(min(values) / 2, max(values) * 2)
    else:
        axis.set_ylim(0, max(values) * 1.1)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value * 100:.3g} %")
    axis.grid(axis="y", color="#E6E6E6", lw=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def _stages(axes: Sequence[Any], names: Sequence[str]) -> None:
    """Bands and names for the parts of the networks, along the axis that all panels share."""
    stages = list(_runs([_stage(name) for name in names]))
    for number, (_, first, last) in enumerate(stages):
        for axis in axes:
            if number % 2:
                axis.axvspan(first - 0.5, last + 0.5, color="#F5F5F5", lw=0, zorder=0)
    wide = [(stage, first, last) for stage, first, last in stages if last - first >= len(names) / 60]
    axes[-1].set_xticks([(first + last) / 2 for _, first, last in wide], [stage for stage, _, _ in wide])
    for axis in axes:
        axis.tick_params(axis="x", length=0, labelsize=9)
    axes[-1].set_xlim(-1, len(names))


def _stage(name: str) -> str:
    network, _, rest = name.partition(".")
    if network != "unet":
        return {"text_encoder": "text encoder", "vae": "autoencoder"}.get(network, network)
    part, *more = rest.split(".")
    for word in ("down", "up", "input", "output"):
        if part == f"{word}_blocks":
            return f"{word} {more[0]}"
    return "mid" if part.startswith("mid") else "" if "out" not in part else " "


def _runs(stages: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(stage, first, last) of each run of the same stage."""
    first = 0
    for at in range(1, len(stages) + 1):
        if at == len(stages) or stages[at] != stages[first]:
            yield stages[first], first, at - 1
            first = at
