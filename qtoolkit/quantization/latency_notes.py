"""What a reader of the latencies of one run must know, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from qtoolkit.artifacts.scorecard import LatencyFigures

__all__ = ["latency_notes"]


def latency_notes(latencies: Mapping[str, LatencyFigures]) -> list[str]:
    """Whether 8 bit, or the mix, gains no time over 16 bit, and what a modelled latency rests on."""
    notes = []
    wide, int8, mixed = (latencies.get(variant) for variant in ("16bit", "int8", "mixed"))
    was = "was" if wide is None or wide.measured else "is modelled"
    if wide is not None and int8 is not None and wide.p50_ms < int8.p50_ms:
        notes.append(f"16 bit {was} faster than 8 bit here, so 8 bit gains nothing but size: take the 16-bit network.")
    elif wide is not None and int8 is not None and wide.p50_ms == int8.p50_ms:
        notes.append(
            "8 bit is modelled no faster than 16 bit here, so it gains nothing but size: take the 16-bit network."
        )
    elif wide is not None and mixed is not None and wide.p50_ms <= mixed.p50_ms:
        notes.append(f"The mix {was} no faster than 16 bit: take the 16-bit network, or a smaller share.")
    modelled = [each for each in latencies.values() if not each.measured]
    if modelled:
        notes.append("Latencies are modelled, not measured: docs/JETSON_MODEL.md says how, and how wrong they are.")
    notes += dict.fromkeys(remark for each in modelled for remark in each.conditions.get("remarks", ()))
    return notes
