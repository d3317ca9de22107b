# SPDX-License-Identifier: MIT
"""The tap's listeners, pcapng files, what a capture says line by line, and the scapy layers.

A server captures to a file with `writer.CaptureWriter`, to whoever asks with `live.LiveCaptures`:

    writer = CaptureWriter(open(path, "wb"), f"vscsi {__version__}", units=export.tap.units)
    export.tap.add(writer, writer.choice.payload.wanted)
    live = LiveCaptures(export, f"vscsi {__version__}")     # before export.start()
    ...
    export.stop()
    live.close()
    writer.close()      # the file is complete now; writer.error says if that failed

`choice` says what a capture keeps, `metadata` what it says of each ring, `rotate` splits it over
files. `reader` gives a file's messages back, `decode` says what each is, `exchange` joins requests
and answers, `show` puts them into words. `replay` sends captured commands again. `wireshark` has
the dissector in Lua. `scapy_layers` is under another licence (GPL-2.0-only) and imported by nothing
here.
"""
