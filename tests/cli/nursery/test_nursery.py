"""Daemons that are forked: processes like any other, of which nothing is left when those who started them are gone."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distqat.cli.daemons import Daemon, address_of, start_daemon
from distqat.cli.nursery import nursery as rooms
from distqat.cli.nursery.nursery import Nursery, open_nursery
from distqat.cli.nursery.order import Born, Ready, receive_order, send_answer
from distqat.cli.nursery.process import Adopted, Executing

PATIENCE = 60.0


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with open_nursery() as starter:
        assert isinstance(starter, Nursery)
        starter.wait_ready()
        yield starter


@contextmanager
def running(nursery: Nursery, folder: Path, *arguments: str) -> Iterator[Daemon]:
    """A forked daemon that listens."""
    daemon = start_daemon("alice", folder, arguments, starter=nursery)
    try:
        wait_until(lambda: address_of(daemon) is not None or daemon.process.poll() is not None)
        assert daemon.process.poll() is None, daemon.output.read_text()
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        signal.sigtimedwait([], 0.01)


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def test_what_is_forked_is_a_child_in_a_session_of_its_own(nursery: Nursery, tmp_path: Path) -> None:
    with running(nursery, tmp_path, "--role", "monitor") as daemon:
        pid = daemon.process.pid
        assert isinstance(daemon.process, Adopted)
        assert stat(pid)[1:4] == [str(os.getpid()), str(pid), str(pid)]
        assert os.readlink(f"/proc/{pid}/cwd") == os.getcwd()
        files = {os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)}
        assert files == {os.devnull, str(daemon.output)}
        # The nursery's own: neither its socket nor that of a sibling's birth is open here.
        control = os.readlink(f"/proc/{nursery.mother.pid}/fd/{control_of(nursery)}")
        assert control not in {os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}


def control_of(nursery: Nursery) -> str:
    command = Path(f"/proc/{nursery.mother.pid}/cmdline").read_text().split("\0")
    return command[command.index("distqat.cli.nursery.mother") + 1]


def test_it_takes_real_signals_and_its_exit_code_comes_back(nursery: Nursery, tmp_path: Path) -> None:
    with running(nursery, tmp_path / "killed", "--role", "monitor") as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        wait_until(lambda: stat(daemon.process.pid)[0] == "T")
        with pytest.raises(subprocess.TimeoutExpired):
            daemon.process.wait(0.05)
        daemon.process.kill()
        assert daemon.process.wait(PATIENCE) == daemon.process.poll() == -signal.SIGKILL
        # Its number may be another's by now.
        daemon.process.send_signal(signal.SIGKILL)
        assert not Path(f"/proc/{daemon.process.pid}").exists(), "it was reaped"
    with running(nursery, tmp_path / "asked", "--role", "monitor") as daemon:
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.process.wait(PATIENCE) == 0, daemon.output.read_text()
        taken = f"127.0.0.1:{nowhere()}"
        with socket.create_server(("127.0.0.1", int(taken.rpartition(":")[2]))):
            second = start_daemon("bob", tmp_path, ["--role", "monitor", "--listen", taken], starter=nursery)
            assert second.process.wait(PATIENCE) == 65, second.output.read_text()


def nowhere() -> int:
    """A port that is free."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_it_has_the_arguments_and_the_environment_of_whoever_starts_it(
    nursery: Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = start_daemon("alice", tmp_path, ["--role", "nobody"], starter=nursery)
    assert wrong.process.wait(PATIENCE) == 64
    assert "distqatd: there is no role 'nobody'" in wrong.output.read_text()
    monkeypatch.setenv("DISTQAT_SYNC__INNER_STEPS", "many")
    again = start_daemon("alice", tmp_path, ["--role", "monitor"], is_again=True, starter=nursery)
    assert again.process.wait(PATIENCE) == 64
    said = again.output.read_text()
    assert "nobody" in said, "what it printed before stays"
    assert "inner_steps" in said


def test_a_forked_expert_holds_its_role_before_another_has_read_torch(nursery: Nursery, tmp_path: Path) -> None:
    with running(nursery, tmp_path, "--role", "expert") as daemon:
        wait_until(lambda: "took the role expert" in daemon.output.read_text())
        user, system = stat(daemon.process.pid)[11:13]
        seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
        # Processor time, since the wall clock is everybody's: it takes 0.1 s, and 4 s if all is read anew.
        assert seconds < 1.0


def test_the_nursery_has_one_thread_before_and_after(nursery: Nursery, tmp_path: Path) -> None:
    def threads(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/task").iterdir()))

    assert threads(nursery.mother.pid) == 1
    with running(nursery, tmp_path, "--role", "expert") as daemon:
        assert threads(daemon.process.pid) > 1
        assert threads(nursery.mother.pid) == 1


def test_death_of_the_nursery_takes_nobody_along_and_the_command_is_run_instead(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with open_nursery() as starter:
        assert isinstance(starter, Nursery)
        with running(starter, tmp_path, "--role", "monitor") as daemon:
            starter.mother.kill()
            starter.mother.wait()
            with caplog.at_level(logging.WARNING):
                later = start_daemon("bob", tmp_path, ["--role", "nobody"], starter=starter)
            assert "daemons are not forked" in caplog.text
            assert isinstance(later.process, subprocess.Popen)
            assert later.process.wait(PATIENCE) == 64
            assert daemon.process.poll() is None
            daemon.process.send_signal(signal.SIGTERM)
            assert daemon.process.wait(PATIENCE) == 0


def test_death_of_the_command_leaves_nobody_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.cli.nursery.orphans", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pids = json.loads(process.stdout.readline())
        watched = [os.pidfd_open(pid) for pid in pids]
        # Not even one that cannot move.
        os.kill(pids[1], signal.SIGSTOP)
        process.kill()
    for descriptor in watched:
        look = select.poll()
        look.register(descriptor, select.POLLIN)
        try:
            assert look.poll(PATIENCE * 1000), pids
        finally:
            if not look.poll(0):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            os.close(descriptor)


@contextmanager
def made_up() -> Iterator[tuple[Nursery, socket.socket]]:
    """A nursery whose mother says only what the test says at the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as mother:
        try:
            yield Nursery(mother, ours), theirs
        finally:
            mother.kill()


def test_where_something_has_started_threads_nothing_is_forked(tmp_path: Path) -> None:
    with made_up() as (nursery, mother):
        send_answer(mother, Ready(3))
        nursery.wait_ready()
        nursery.wait_ready()
        assert nursery.mother.wait(PATIENCE) == -signal.SIGKILL
        executed = start_daemon("alice", tmp_path, ["--role", "nobody"], starter=nursery)
        assert executed.process.wait(PATIENCE) == 64


@pytest.mark.parametrize("answer", [None, Born(0, "a process could not be forked"), Born(1)])
def test_a_birth_that_is_late_or_fails_is_not_waited_for(
    answer: Born | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "ANSWER_SECONDS", 0.1)
    with made_up() as (nursery, mother):
        send_answer(mother, Ready(1))
        if answer is not None:
            send_answer(mother, answer)
        executed = start_daemon("alice", tmp_path, ["--role", "nobody"], starter=nursery)
        assert isinstance(executed.process, subprocess.Popen)
        assert executed.process.wait(PATIENCE) == 64
        assert nursery.mother.wait(PATIENCE) == -signal.SIGKILL
        received = receive_order(mother)
        assert received is not None
        order, files = received
        for file in files:
            os.close(file)
        assert order.arguments[-2:] == ["--set", "daemon.threads=1"]


def test_a_system_without_such_calls_runs_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with open_nursery() as starter:
        assert isinstance(starter, Executing)
