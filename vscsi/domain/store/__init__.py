# SPDX-License-Identifier: MIT
"""A xenstore of our own, speaking the wire protocol of Xen's on a UNIX socket.

From the inside out: `permissions`, `paths`, `tree` and `transaction` are the database as a value;
`watches` and `session` are what one client has in it; `requests` turns messages into calls;
`stream` and `connection` frame them; `daemon` serves connections. `operations` is the client side
of the messages, `local` sends them by a call and `client` over the socket.

The facts are those of Xen's docs/misc/xenstore.txt and xs_wire.h.
"""
