# SPDX-License-Identifier: MIT
"""An analysis as one HTML file to look at: no scripts, nothing from elsewhere, light and dark.

markup (escaping), axis and plots are what the parts of the page are made of; page puts them
together, difference those of a comparison. Plots are SVG written here, not by a plotting library:
they stretch with the window while their words stay legible, and their colours are the style
sheet's.
"""

from vscsi.analysis.report.difference import render_diff
from vscsi.analysis.report.page import render

__all__ = ["render", "render_diff"]
