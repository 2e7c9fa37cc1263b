"""Rows to pages: plots and tables made from recorded numbers alone; never trains, never measures."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markdown_it import MarkdownIt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

Row = Mapping[str, Any]

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24 }
table { border-collapse: collapse; font-size: 0.9rem }
td, th { padding: 0.25rem 0.7rem; text-align: right; white-space: nowrap }
th { border-bottom: 2px solid #1b1f24 } td { border-bottom: 1px solid #d0d7de } td:first-child { text-align: left }
img { max-width: 100%; height: auto } figcaption, footer { color: #57606a; font-size: 0.9rem }
"""
_LINES = {
    "prior": ("always guessing the most frequent digit", ":"),
    "label": ("attack on the predicted label alone", (0, (1, 1))),
    "logits": ("attack on the logits alone", "-."),
    "raw": ("attack on the raw feature", "--"),
}


def demo_report(
    rows: Sequence[Row], facts: Mapping[str, Any], pictures: Mapping[str, Tensor], shown: str
) -> tuple[list[str], str]:
    """The demonstration's three sentences and its self-contained HTML page.

    Args:
        rows: one per message, as `Leakage.as_row` gives them, with ``name`` and ``components``.
        facts: what the numbers depend on.
        pictures: strips of images (N, C, H, W) in [0, 1] by caption.
        shown: the name of the row that the sentences speak of.
    """
    row = next(row for row in rows if row["name"] == shown)
    sentences = demo_sentences(row)
    body = [
        "<h1>splitveil: what was sent, what it was worth, what it gave away</h1>",
        "<p>Each image holds two handwritten digits. The service needs the left one; the right one is the secret, "
        "drawn independently, so an adversary who learns nothing is right 10 % of the time.</p>",
        "<ul>" + "".join(f"<li>{html.escape(sentence)}</li>" for sentence in sentences) + "</ul>",
        _figure(tradeoff(rows), "Shares of 1,000 test images; bars are 95 % intervals. Attack: the strongest of the "
                                "suite, chosen on validation."),
        _table(rows),
        _reference_lines(rows[0]),
        _figure(strips(pictures), "A decoder was trained on each kind of message to recover the image."),
        f"<footer>{html.escape(str(dict(facts)))}</footer>",
    ]  # fmt: skip
    return sentences, _page("splitveil demo", body)


def results_page(
    title: str, text: str, figure: Figure | None, pictures: Sequence[bytes], facts: Mapping[str, Any]
) -> str:
    """The self-contained HTML page of an experiment.

    Args:
        title: of the page.
        text: Markdown with the table.
        figure: the plot.
        pictures: more to look at, as PNG files.
        facts: what the numbers depend on.
    """
    # HTML within the text is shown, not obeyed: rows may come from elsewhere.
    shown = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    plot = [_figure(figure, title)] if figure else []
    seen = [
        f"<figure><img src='data:image/png;base64,{base64.b64encode(each).decode()}' alt=''></figure>"
        for each in pictures
    ]
    return _page(title, [*plot, shown, *seen, f"<footer>{html.escape(str(dict(facts)))}</footer>"])


def _page(title: str, body: Sequence[str]) -> str:
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang='en'>{head}<body>" + "\n".join(body) + "</body></html>\n"


def demo_sentences(row: Row) -> list[str]:
    """What was protected, at what price, and what was not, from one row."""
    value = {key: row[key]["value"] for key in ("attack", "raw", "logits", "prior", "target", "undefended")}
    drop = 100 * (value["undefended"] - value["target"])
    low, high = row["attack"]["low"], row["attack"]["high"]
    return [
        f"Protected: with {row['components']} numbers sent, the strongest adversary finds the hidden right digit in "
        f"{value['attack']:.1%} of the images (95 % interval {low:.1%} to {high:.1%}), instead of {value['raw']:.1%} "
        f"from the raw feature; guessing gives {value['prior']:.1%}.",
        f"Price: the left digit is answered right in {value['target']:.1%} of the images instead of "
        f"{value['undefended']:.1%}, a drop of {drop:.1f} points, with {row['message_bytes']:.0f} bytes per query.",
        f"Not protected: the answer itself, the left digit, is told by design; of the right digit its logits alone "
        f"already give {value['logits']:.1%}; and these are attacks we could think of, not a bound on those we could "
        "not.",
    ]


def tradeoff(rows: Sequence[Row]) -> Figure:
    """Target and attack accuracy against the components sent, with the reference lines."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    axes = figure.subplots()
    curve = [row for row in rows if row["name"] != "raw feature"]
    for key, label, colour in (
        ("target", "left digit: the answer", "#0969da"),
        ("attack", "right digit: the attack", "#cf222e"),
    ):
        _curve(axes, curve, key, label, colour)
    for key, (label, dashes) in _LINES.items():
        axes.axhline(100 * rows[0][key]["value"], color="#57606a", linestyle=dashes, linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["components"] for row in curve], [str(row["components"]) for row in curve])
    axes.set_xlabel("components sent, m' (the last is distortion-free)")
    axes.set_ylabel("accuracy, %")
    axes.set_ylim(0, 101)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _curve(axes: Axes, rows: Sequence[Row], key: str, label: str, colour: str) -> None:
    x = [row["components"] for row in rows]
    y = [100 * row[key]["value"] for row in rows]
    below = [100 * (row[key]["value"] - row[key]["low"]) for row in rows]
    above = [100 * (row[key]["high"] - row[key]["value"]) for row in rows]
    axes.errorbar(x, y, yerr=[below, above], label=label, color=colour, marker="o", capsize=3)


def strips(pictures: Mapping[str, Tensor]) -> Figure:
    """Rows of images, one row per caption."""
    figure = Figure(figsize=(9, 1.1 * len(pictures)), layout="constrained")
    count = max(len(strip) for strip in pictures.values())
    grid = figure.subplots(len(pictures), count, squeeze=False)
    for axes_row, (caption, strip) in zip(grid, pictures.items(), strict=True):
        for axes, image in zip(axes_row, strip, strict=False):
            axes.imshow(image.permute(1, 2, 0).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
        for axes in axes_row:
            axes.set_axis_off()
        axes_row[0].set_title(caption, fontsize=9, loc="left")
    return figure


def _figure(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    with mpl.rc_context({"svg.hashsalt": "splitveil"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    picture = base64.b64encode(buffer.getvalue()).decode()
    return (
        f"<figure><img src='data:image/svg+xml;base64,{picture}' alt='{html.escape(caption, quote=True)}'>"
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


def _table(rows: Sequence[Row]) -> str:
    heads = ("sent", "bytes", "left digit", "right digit", "over logits", "balanced", "AUC", "bits", "strongest attack")
    lines = [
        "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in (
            row["name"], f"{row['message_bytes']:.0f}", _share(row["target"]), _share(row["attack"]),
            _share(row["excess"]), _share(row["balanced"]), _share(row["auc"]),
            f"{row['bits']['value']:.2f}", row["best"],
        )) + "</tr>"
        for row in rows
    ]  # fmt: skip
    return "<table><tr>" + "".join(f"<th>{head}</th>" for head in heads) + "</tr>" + "".join(lines) + "</table>"


def _reference_lines(row: Row) -> str:
    lines = "; ".join(f"{label}: {_share(row[key])}" for key, (label, _) in _LINES.items())
    return f"<p>Reference lines, the same attacks on other inputs: {html.escape(lines)}.</p>"


def _share(estimate: Mapping[str, float]) -> str:
    return f"{100 * estimate['value']:.1f} [{100 * estimate['low']:.1f}, {100 * estimate['high']:.1f}]"
