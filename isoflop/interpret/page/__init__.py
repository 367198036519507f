"""`isoflop interpret page`: a recording as one HTML page to read a model's experts in.

The file needs nothing else: no network, no other file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from isoflop.files import write_text_atomic
from isoflop.interpret.load import LoadedRun
from isoflop.interpret.page.content import Content, gather
from isoflop.interpret.page.describe import Limits
from isoflop.pages import render_page
from isoflop.spec import shown_id

PAGE_FILE = "page.html"

__all__ = ["PAGE_FILE", "Limits", "page_html", "write_page"]

_USAGE_HEADS = (
    "Layer, channel",
    "Experts",
    "Choices",
    "Used",
    "Never used",
    "Entropy",
    "Coefficient of variation",
)
_TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    loaded: LoadedRun, recording: Path, path: Path, limits: Limits | None = None
) -> None:
    """Write the page of a recording to ``path``, atomically.

    Args:
        loaded: the model that was recorded.
        recording: folder with gates.parquet and tokens.parquet.
        path: the HTML file.
        limits: how much the page holds; None: the defaults.

    Raises:
        UserError: the family's experts are no single neurons; the recording is damaged or is that
            of another run.
    """
    write_text_atomic(path, page_html(loaded, recording, limits or Limits()))


def page_html(loaded: LoadedRun, recording: Path, limits: Limits) -> str:
    """Return the page, all texts escaped; see :func:`write_page`."""
    content = gather(loaded, recording, limits)
    spec = loaded.spec
    return render_page(
        _TEMPLATES,
        "page",
        title=f"Experts of run {shown_id(loaded.run_id)}",
        subtitle=f"{spec.family}, {spec.n_layers} layers of width {spec.d_model}, "
        f"trained on {spec.n_tokens:,} tokens.",
        notes=_notes(content, limits),
        usage_heads=_USAGE_HEADS,
        usage=[_usage_row(row) for row in content.usage],
        data=_json(content.data),
    )


def _notes(content: Content, limits: Limits) -> list[str]:
    """Return what was left out, and how figures are to be read."""
    data = content.data
    return [
        f"The beginnings of {len(data['documents'])} of {content.num_recorded_documents} recorded "
        f"documents: {len(data['tokens']):,} of {data['numRecorded']:,} recorded tokens. At most "
        f"{limits.documents} documents and {limits.tokens_per_document} tokens of each are shown. "
        "Every window is read from a begin token on; its last token is predicted, never read.",
        "The share of an expert is the length of what it adds to the residual stream at the token, "
        "over the sum of the lengths of all chosen experts of the layer. "
        f"The {limits.strongest} largest of each layer are shown.",
        "What an expert writes is the change of the logits by its output weights along the direct "
        "path, past all later layers, in standard deviations over the vocabulary (σ). At a token "
        "the expert's coefficient scales it, and turns it around where it is negative; "
        "what a token's table calls raised has that taken into account.",
        f"{content.num_shown_experts:,} experts are among the strongest somewhere; "
        f"{content.num_described_experts:,}, those with the largest shares, are described.",
        "Contexts are the recorded tokens at which the router gave the expert its highest scores; "
        "the marked token is the one that was read. Equal excerpts appear once.",
        f"Neighbours are looked for among {content.num_searched:,} recorded tokens, whole "
        "documents drawn at random; the first token of a window, which has nothing before it, is "
        "left out.",
    ]


def _usage_row(row: dict[str, Any]) -> list[str]:
    channel = "all channels" if row["channel"] is None else f"channel {row['channel']}"
    return [
        f"layer {row['layer']}, {channel}",
        f"{row['num_experts']:,}",
        f"{row['num_choices']:,}",
        f"{100 * row['fraction_used']:.1f} %",
        f"{row['num_dead']:,}",
        _number(row["entropy"]),
        _number(row["cv"]),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _json(data: Mapping[str, Any]) -> str:
    """Return JSON that no parser of HTML takes for the end of its element or for a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
