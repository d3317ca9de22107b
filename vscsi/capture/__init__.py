# SPDX-License-Identifier: MIT
"""The tap, pcapng files, what a capture says line by line, and the scapy layers."""
