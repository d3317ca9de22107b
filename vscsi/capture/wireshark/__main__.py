# SPDX-License-Identifier: MIT
"""Write the tables of vscsi.lua anew."""

from vscsi.capture.wireshark import SCRIPT, script

SCRIPT.write_text(script())
