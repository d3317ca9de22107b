# SPDX-License-Identifier: MIT
"""Tests that are collected on the host and run in a guest.

On the host `Remote` takes each such test's turn: the first one boots the guest, which runs them all
in one pytest; each then waits for its own reports and hands them to pytest as if it had run here.
So names, selection, captured output, tracebacks and durations are what they always are. A test that
the guest did not run has failed. In the guest `Reporter` sends the reports, a line of JSON each.
"""

import compileall
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.vm.kernel import PROJECT, MachineError
from tests.vm.machine import RESULTS, Guest

IN_VM = "VSCSI_IN_VM" in os.environ
REPORTS_FD = 3
"""Where the guest's pytest sends reports: its standard output as the machine gave it."""
TEST_TIMEOUT_S = 1200
"""Only a test that hangs, in the guest's kernel perhaps, takes that long; boot is within it."""
COVERAGE = os.environ.get("VSCSI_COVERAGE")
"""A file on the host for the coverage data of the guest's pytest, if that is wanted."""


class Reporter:
    """In the guest: send every report to the host."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.host = os.fdopen(REPORTS_FD, "w")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send a report of a test's setup, call or teardown."""
        to_data = self.config.hook.pytest_report_to_serializable
        print(json.dumps(to_data(config=self.config, report=report)), file=self.host, flush=True)


class Remote:
    """On the host: run the tests below `folder` in one guest."""

    def __init__(self, config: pytest.Config, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.guest: Guest | None = None
        self.directory = TemporaryDirectory(prefix="vscsi-vm-")
        self.reports: dict[str, list[pytest.TestReport]] = defaultdict(list)
        self.line = b""
        self.terminal = b""
        self.failed_at = ""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report what became of a test in the guest."""
        if not item.path.is_relative_to(self.folder):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self.outcome(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_unconfigure(self) -> None:
        """Leave no guest behind, at whatever point pytest ended."""
        if self.guest is not None:
            self.guest.close()
        self.directory.cleanup()

    def outcome(self, item: pytest.Item) -> list[pytest.TestReport]:
        """Return a test's reports, which end with a failure if the guest did not finish it."""
        reports = self.reports[item.nodeid]
        failure = f"not run: the guest failed at {self.failed_at}"
        if not self.failed_at:
            try:
                if self.guest is None:
                    self.boot(item.session)
                self.receive(reports, to_its_end=item is self.last)
                return reports
            except MachineError as error:
                self.failed_at = item.nodeid
                output = self.terminal.decode(errors="replace")
                failure = f"{error}\n\nOutput of the guest's pytest:\n{output}"
        if not finished(reports) or self.failed_at == item.nodeid:
            report = pytest.TestReport(item.nodeid, item.location, {}, "failed", failure, "call")
            reports.append(report)
        return reports

    def boot(self, session: pytest.Session) -> None:
        """Start the guest with all selected tests that are its."""
        items = [item for item in session.items if item.path.is_relative_to(self.folder)]
        self.last = items[-1]
        compile_for_guest(self.folder)
        coverage = ["-m", "coverage", "run", f"--data-file={RESULTS}/coverage"]
        command = [sys.executable, *(coverage if COVERAGE else []), "-m", "pytest"]
        command += [
            "-p",
            "no:cacheprovider",
            f"--rootdir={session.config.rootpath}",
            f"@{RESULTS}/tests",
        ]
        self.guest = Guest(
            ["sh", "-c", f'exec "$@" {REPORTS_FD}>&1 >&2', "sh", *command],
            Path(self.directory.name),
            {"HYPOTHESIS_STORAGE_DIRECTORY": "/run/tmp/hypothesis"},
        )
        (self.guest.results / "tests").write_text("".join(f"{item.nodeid}\n" for item in items))

    def receive(self, reports: list[pytest.TestReport], to_its_end: bool) -> None:
        """Take in what the guest sends until `reports` are all there, or until it has ended."""
        assert self.guest is not None
        if finished(reports) and not to_its_end:
            return
        for port, data in self.guest.output(TEST_TIMEOUT_S):
            if port == "err":
                self.terminal += data
            elif port == "status":
                self.say_status()
            else:
                *lines, self.line = (self.line + data).split(b"\n")
                for line in lines:
                    self.take(json.loads(line))
            if finished(reports) and not to_its_end:
                return
        if not finished(reports) or self.guest.exit_status not in (0, 1):
            raise MachineError(f"the guest's pytest ended with {self.guest.exit_status}")
        if COVERAGE:
            shutil.copy(self.guest.results / "coverage", COVERAGE)

    def take(self, data: dict[str, object]) -> None:
        """Keep a report until its test's turn comes."""
        from_data = self.config.hook.pytest_report_from_serializable
        report = from_data(config=self.config, data=data)
        self.reports[report.nodeid].append(report)

    def say_status(self) -> None:
        """Tell who watches how long it took to boot; tests show themselves."""
        terminal = self.config.pluginmanager.get_plugin("terminalreporter")
        if terminal is not None and self.guest is not None and self.guest.exit_status is None:
            release, seconds = self.guest.kernel.release, self.guest.boot_s
            terminal.ensure_newline()
            terminal.write_line(f"guest with Linux {release} up in {seconds:.1f} s")


def compile_for_guest(folder: Path) -> None:
    """Compile on the host, which is fast, what the guest could not keep: the project is read-only.

    pytest compiles test modules and plugins itself, when it collects.
    """
    for package in ("vscsi", "tgt_glue"):
        compileall.compile_dir(PROJECT / package, quiet=2)
    if sys.dont_write_bytecode:
        subprocess.run(
            [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", folder],
            env={k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"},
            stdout=subprocess.DEVNULL,
            check=False,
        )


def finished(reports: list[pytest.TestReport]) -> bool:
    """Whether a test has had its last report."""
    return any(report.when == "teardown" for report in reports)
