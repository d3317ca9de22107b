# SPDX-License-Identifier: MIT
"""`python -m vscsi` is the `vscsi` command."""

from vscsi.cli.main import main

main()
