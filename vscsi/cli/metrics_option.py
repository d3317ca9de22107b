# SPDX-License-Identifier: MIT
"""`vscsi serve --metrics`: where, and that it can be."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import click

from vscsi.cli.served import Served
from vscsi.transport.export import Export
from vscsi.wire.errors import SetupError

_LOOPBACK = "127.0.0.1"
_FORM = re.compile(r"(?:(?:\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<four>[0-9.]+)):)?(?P<port>\d{1,5})")
_MAX_PORT = 65535

Address = tuple[str, int]


class Endpoint(click.ParamType[Address]):
    """An address and a port: 127.0.0.1:9100, [::1]:9100; or a port of 127.0.0.1 alone."""

    name = "ADDRESS:PORT"

    def convert(
        self, value: str | Address, param: click.Parameter | None, context: click.Context | None
    ) -> Address:
        """Return address and port."""
        if isinstance(value, tuple):
            return value
        match = _FORM.fullmatch(value)
        if match is None or int(match["port"]) > _MAX_PORT:
            known = "127.0.0.1:9100, [::1]:9100 or 9100"
            self.fail(f"{value!r} is no address and port such as {known}", param, context)
        return match["six"] or match["four"] or _LOOPBACK, int(match["port"])


@contextmanager
def metrics_served(
    address: Address | None, export: Export, units: Mapping[int, Served]
) -> Iterator[str | None]:
    """Serve an export's metrics, if an address is given; what is yielded is their URL.

    SetupError if that cannot be.
    """
    if address is None:
        yield None
        return
    try:  # only for those who want it
        from vscsi.analysis import metrics
    except ModuleNotFoundError as error:
        raise SetupError(
            "serve", "--metrics", f"no Python module {error.name}", "pip install 'vscsi[metrics]'"
        ) from error
    from vscsi.analysis.metrics_server import MetricsServer

    def names() -> dict[int, str]:
        return {number: each.name for number, each in list(units.items())}

    shown = metrics.registry(metrics.ExportMetrics(export, names))
    server = MetricsServer(*address, partial(metrics.render, shown))
    try:
        server.start()
        yield server.url
    finally:
        server.close()
