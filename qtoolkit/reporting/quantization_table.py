"""The quantization table in a terminal and as Markdown, with the published row beside each."""

from __future__ import annotations

from rich.table import Table

from qtoolkit.artifacts.quantization_table import QuantizationTable, QuantizationTableRow
from qtoolkit.reporting import cells
from qtoolkit.reporting.fitting_table import FittingTable, TableColumn

__all__ = ["quantization_table", "quantization_table_markdown"]

_TITLES = (
    "network", "target", "16-bit layers", "AP", "AP50", "of ReLU %", "GMACs", "GBOPs", "MB", "p50 ms",
    "published AP", "AP50", "of ReLU %",
)  # fmt: skip
_LEFT = 2
_SOURCE = (
    "published: YOLO-Pose (arXiv 2204.06806), table 5, YOLOv5s6-pose at 960 px on COCO val2017; – is not published"
)


def quantization_table(table: QuantizationTable) -> Table:
    """One row a network: its precision, figures and the published ones."""
    texts = [_cells(row) for row in table.rows]
    columns = [
        TableColumn(title, "", tuple(text[i] for text in texts), tuple(text[i] for text in texts), ("",) * len(texts),
                    left=i < _LEFT)
        for i, title in enumerate(_TITLES)
    ]  # fmt: skip
    return FittingTable(columns, title="Quantization table", footer=[cells.plain(line) for line in _footer(table)])


def quantization_table_markdown(table: QuantizationTable) -> str:
    """The same as a Markdown page."""
    lines = [" | ".join(_TITLES), " | ".join(":--" if i < _LEFT else "--:" for i in range(len(_TITLES)))]
    lines += [" | ".join(_cells(row)) for row in table.rows]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"# Quantization table\n\n{body}\n\n" + "\n".join(f"- {line}" for line in _footer(table)) + "\n"


def _cells(row: QuantizationTableRow) -> tuple[str, ...]:
    figures, published = row.figures, row.published
    quantized = row.target != ""
    return (
        row.name,
        row.target or cells.MISSING,
        f"{figures.layers_16bit}/{figures.layers_total}" if quantized else cells.MISSING,
        cells.fixed(figures.ap),
        cells.fixed(figures.ap50),
        cells.percent(None if row.name == "float SiLU" else figures.retention),
        cells.fixed(figures.gmacs),
        cells.fixed(figures.bops_g, 1),
        cells.fixed(figures.size_mb),
        cells.p50(figures.latency),
        cells.fixed(published.ap, 1),
        cells.fixed(published.ap50, 1),
        cells.percent(published.retention),
    )


def _footer(table: QuantizationTable) -> list[str]:
    width, height = table.relu.input_size_wh
    data = table.data
    return [
        f"{table.relu.name} (from {table.silu.name}) at {width}×{height} on {data.name}: {data.images} images, "
        f"calibrated on {data.calibration_images} others",
        _SOURCE,
        *table.notes,
    ]
