"""Reports: tables for a terminal, Markdown, an HTML page, the gate of CI. Reads artefacts, computes nothing anew."""
