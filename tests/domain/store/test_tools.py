# SPDX-License-Identifier: MIT
"""Xen's own command line tools (libxenstore) and pyxs against our server."""

import os
import subprocess

import pytest
import pyxs


@pytest.fixture
def tool(served):
    """Run a tool; return its standard output, or None if it failed."""
    environment = dict(os.environ, XENSTORED_PATH=os.fspath(served.path))

    def run(name, *arguments):
        done = subprocess.run(
            [f"xenstore-{name}", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        return done.stdout if done.returncode == 0 else None

    run.environment = environment
    return run


def test_what_is_written_is_read_and_listed(tool):
    assert tool("write", "/vm/1/name", "guest one", "/vm/1/memory", "512") == ""
    assert tool("read", "/vm/1/name") == "guest one\n"
    assert tool("read", "-p", "/vm/1/name") == "/vm/1/name: guest one\n"
    assert tool("list", "/vm/1") == "name\nmemory\n"
    assert tool("ls", "-f") == (
        '/vm = ""\n/vm/1 = ""\n/vm/1/name = "guest one"\n/vm/1/memory = "512"\n'
    )
    assert tool("ls", "/vm") == '1 = ""\n name = "guest one"\n memory = "512"\n'


def test_existence_and_removal(tool):
    tool("write", "/a/b", "1")
    assert tool("exists", "/a/b") == ""
    assert tool("rm", "/a/b") == ""
    assert tool("exists", "/a/b") is None
    assert tool("read", "/a/b") is None
    assert tool("rm", "/a/b/c") is None
    tool("write", "/t/u/v", "1")
    assert tool("rm", "-t", "/t/u/v") == ""  # and its parents, in a transaction
    assert tool("ls", "-f") == '/a = ""\n'


def test_permissions_are_changed_and_shown(tool, served):
    tool("write", "/a/b", "1")
    assert tool("chmod", "/a/b", "n3", "r5") == ""
    assert tool("chmod", "-r", "/a", "n3", "b6") == ""
    assert tool("ls", "-f", "-p") == '/a = ""   (n3,b6)\n/a/b = "1"   (n3,b6)\n'
    assert served.local(6).read("/a/b") == "1"


def test_a_directory_larger_than_a_message(tool, served):
    names = [f"entry-with-a-longish-name-{number:05}" for number in range(2000)]
    client = served.local()
    for name in names:
        client.write(f"/big/{name}", "x")
    assert tool("list", "/big").split() == names
    assert tool("ls", "-f", "/big").splitlines() == [f'/big/{name} = "x"' for name in names]
    assert client.directory("/big") == served.connect().directory("/big") == names


def test_watch_prints_what_changes(tool, served):
    client = served.local()
    with subprocess.Popen(
        ["xenstore-watch", "-n", "4", "/w"],
        env=tool.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as watching:
        assert watching.stdout.readline() == "/w\n"
        client.write("/w/1", "a")
        assert watching.stdout.readline() == "/w/1\n"
        client.write("/elsewhere", "a")
        client.rm("/w/1")
        assert watching.stdout.readline() == "/w/1\n"
        client.rm("/w")
        assert watching.stdout.read() == "/w\n"
    assert watching.returncode == 0


def test_pyxs_reads_writes_and_watches(served):
    with pyxs.Client(unix_socket_path=os.fspath(served.path)) as client:
        client.write(b"/p/q", b"1")
        client.mkdir(b"/p/dir")
        assert client.read(b"/p/q") == b"1"
        assert client.list(b"/p") == [b"q", b"dir"]
        client.set_perms(b"/p/q", [b"n0", b"r5"])
        assert client.get_perms(b"/p/q") == [b"n0", b"r5"]
        assert client.get_domain_path(5) == b"/local/domain/5"
        assert client.is_domain_introduced(0)
        assert not client.is_domain_introduced(5)
        monitor = client.monitor()
        monitor.watch(b"/p", b"token")
        waiting = monitor.wait()
        assert next(waiting) == (b"/p", b"token")
        client.delete(b"/p/q")
        assert next(waiting) == (b"/p/q", b"token")
        monitor.close()
        assert not client.exists(b"/p/q")


def test_transactions_of_pyxs_conflict(served):
    path = os.fspath(served.path)
    with pyxs.Client(unix_socket_path=path) as one, pyxs.Client(unix_socket_path=path) as two:
        one.write(b"/n", b"0")
        one.transaction()
        two.transaction()
        for client in (one, two):
            client.write(b"/n", client.read(b"/n") + b"+")
        assert one.commit()
        assert not two.commit()
        assert one.read(b"/n") == b"0+"
        one.transaction()
        one.write(b"/n", b"never")
        one.rollback()
        assert two.read(b"/n") == b"0+"
