# SPDX-License-Identifier: MIT
"""What happened to a test in the guest is what the host reports; here the guest is a process."""

import selectors
import subprocess

import pytest

from tests.vm import remote
from tests.vm.kernel import MachineError

pytest_plugins = ["pytester"]

TESTS = """
import os
import pytest

def test_passes():
    assert "VSCSI_IN_VM" in os.environ

@pytest.mark.parametrize("name", ["a::b", "[c d]", "é"])
def test_with_a_name(name):
    pass

def test_fails():
    print("said in the guest")
    assert [1, 2] == [1, 3]

@pytest.fixture
def broken():
    yield
    raise RuntimeError("in teardown")

def test_ends_badly(broken):
    pass

@pytest.mark.xfail(strict=True)
def test_fails_as_expected():
    assert False
"""
CRASH = """
def test_ends_the_guest():
    os._exit(9)

def test_has_no_guest():
    pass
"""
CONFTEST = """
from tests.vm.remote import IN_VM, Reporter

def pytest_configure(config):
    if IN_VM:
        config.pluginmanager.register(Reporter(config))
"""


class ProcessGuest:
    """A process in place of a guest."""

    died_with = 9

    def __init__(self, command, directory, environment):
        self.results = directory / "results"
        self.results.mkdir()
        self.command = [*command[:-1], f"@{self.results}/tests"]
        self.environment = {**remote.os.environ, **environment, "VSCSI_IN_VM": "1"}
        self.exit_status = None
        self.process = None

    def output(self, timeout_s):
        if self.process is None:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self.environment,
            )
        with selectors.DefaultSelector() as streams:
            for name, stream in (("out", self.process.stdout), ("err", self.process.stderr)):
                if not stream.closed:
                    streams.register(stream, selectors.EVENT_READ, name)
            while streams.get_map():
                for key, _ in streams.select():
                    data = key.fileobj.read1()
                    if not data:
                        streams.unregister(key.fileobj)
                        key.fileobj.close()
                    else:
                        yield key.data, data
        if self.process.wait() == self.died_with:
            raise MachineError("the guest died")
        self.exit_status = self.process.returncode

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture
def run(pytester, monkeypatch):
    """Run tests as if in a guest; return what pytest on the host says."""
    monkeypatch.setattr(remote, "Guest", ProcessGuest)

    def runner(tests, *arguments):
        monkeypatch.setenv("PYTHONPATH", str(remote.PROJECT))
        pytester.makepyfile(tests)
        pytester.makeconftest(CONFTEST)

        class Plugin:
            def pytest_configure(self, config):
                config.pluginmanager.register(remote.Remote(config, pytester.path))

        return pytester.runpytest_inprocess(
            "-p", "no:cacheprovider", *arguments, plugins=[Plugin()]
        )

    return runner


def test_each_outcome_is_the_guests(run):
    result = run(TESTS)
    result.assert_outcomes(passed=5, failed=1, errors=1, xfailed=1)
    result.stdout.fnmatch_lines(["*assert *1, 2* == *1, 3*", "*said in the guest*"])
    result.stdout.fnmatch_lines(["*RuntimeError: in teardown*"])


def test_what_is_not_selected_does_not_run(run):
    run(TESTS, "-k", "name").assert_outcomes(passed=3, deselected=4)


def test_tests_that_did_not_run_have_failed(run):
    result = run(TESTS + CRASH)
    result.assert_outcomes(passed=5, failed=3, errors=1, xfailed=1)
    result.stdout.fnmatch_lines(["*the guest died*", "*Output of the guest's pytest:*"])
    result.stdout.fnmatch_lines(["*not run: the guest failed at *::test_ends_the_guest*"])


def test_a_guest_that_cannot_collect_fails_every_test(run):
    result = run("import os\nassert 'VSCSI_IN_VM' not in os.environ\n" + TESTS)
    result.assert_outcomes(failed=7)
    result.stdout.fnmatch_lines(["*the guest's pytest ended with *", "*ERROR collecting*"])
