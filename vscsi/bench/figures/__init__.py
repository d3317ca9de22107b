# SPDX-License-Identifier: MIT
"""The named figures of the project, each measured beside the limit it is told against.

`make figures` runs it (`python -m vscsi.bench.figures`): it needs a checkout's compiler, a few
Debian packages and a quiet machine, so it is no verb of `vscsi`. `catalogue` says what the figures
are, `bed` builds what they are measured on, `figure` turns rounds into a figure, `report` shows it.
Another issue's figures are more rows of `catalogue.FIGURES`.
"""
