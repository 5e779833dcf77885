"""What people and strangers get wrong: each has a clear error, and harms nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distqat.errors import DistqatError, ProtocolError, WrongRunError
from distqat.ids import Endpoint, RunId, StageIndex
from distqat.roles import messages
from distqat.roles.orders import messages as orders
from distqat.roles.orders.order import Order
from distqat.roles.remote import Remote
from distqat.rpc import headers
from distqat.rpc.grpc import open_transport
from distqat.rpc.transport import Deadline, Lane, Method
from tests.e2e.swarm import ctl, daemon_command, open_swarm, pipelines, steps, wait_for
from tests.support import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "model.stagez=3"], "unknown key 'model.stagez'"),
        (["--set", "model.stages=many"], "model.stages: "),
        (["--set", "data.batch=2", "--set", "data.microbatches=4"], "must not exceed batch"),
        (["--config", "no/such/file.yaml"], "cannot read no/such/file.yaml"),
        (["--role", "boss"], "there is no role 'boss'"),
        (["--role", "expert", "--join", "nowhere"], "'nowhere' is not an address"),
        # An IPv6 address is an address, so what is wrong here is only the role.
        (["--role", "boss", "--listen", "[::1]:0"], "there is no role 'boss'"),
        (["--role", "monitor", "--stage", "1"], "--stage is for experts"),
        (["--role", "expert", "--local"], "--local goes with --role trainer"),
        (["--role", "trainer", "--local", "--set", "model.name=alexnet"], "alexnet"),
        (["--role", "trainer", "--local", "--set", "data.source=imagenet"], "imagenet"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = daemon_command(*arguments, "--set", f"daemon.state_dir={tmp_path}", "--set", f"daemon.log_dir={tmp_path}")
    assert done.returncode == 64
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = daemon_command(
            *("--listen", address, "--set", f"daemon.state_dir={tmp_path}", "--set", f"daemon.log_dir={tmp_path}"),
            executes=True,
        )
    assert done.returncode == 65
    assert address in done.stderr


def test_a_copied_key_is_named_and_no_waiting_cures_it(tmp_path: Path) -> None:
    with open_swarm(tmp_path) as swarm:
        _, address = swarm.head("head", "monitor")
        key = tmp_path / "states" / "head" / "peer-0" / "key"
        copied = tmp_path / "copied" / "peer-0" / "key"
        copied.parent.mkdir(parents=True)
        copied.write_bytes(key.read_bytes())
        done = daemon_command(
            *("--role", "monitor", "--join", address, "--listen", "127.0.0.1:0"),
            *("--set", f"daemon.state_dir={tmp_path / 'copied'}", "--set", f"daemon.log_dir={tmp_path}"),
            executes=True,
        )
    assert done.returncode == 66
    assert f"the daemon at {address} has the same key" in done.stderr


def test_asking_where_nobody_answers(tmp_path: Path) -> None:
    done = ctl("status", "--state-dir", str(tmp_path))
    assert done.returncode == 2
    assert "no daemon runs on this machine" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"127.0.0.1:{closed.getsockname()[1]}"
    done = ctl("status", "--peer", address)
    assert done.returncode == 2
    assert address in done.stderr


def test_a_joiner_says_what_is_wrong_with_its_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        refusing = f"127.0.0.1:{closed.getsockname()[1]}"
    with open_swarm(tmp_path) as swarm, _mail_server() as stranger:
        joiner = swarm.start("joiner", "--join", refusing, "--join", stranger)
        address = swarm.address(joiner)

        def reason() -> str:
            (peer,) = swarm.status(address)["peers"]
            text = str(peer["reason"])
            return text if f"{refusing}: " in text and f"{stranger}: " in text and "trying" not in text else ""

        text = wait_for(reason, "both addresses to be judged")
        assert "nobody answers" in text
        assert f"{stranger} answers, but it is not distqat" in text


def test_a_swarm_shrugs_off_strangers_and_garbage(tmp_path: Path) -> None:
    with open_swarm(tmp_path, **{"model.stages": "1"}) as swarm:
        _, head = swarm.head("head", "monitor", "client")
        expert = swarm.expert("expert", head)
        swarm.wait_status(head, lambda s: pipelines(s) and steps(s) > 5, "training")
        run(_offend(Endpoint.parse(head), Endpoint.parse(swarm.address(expert))), timeout=60)
        with socket.create_connection(("127.0.0.1", Endpoint.parse(head).port)) as noise:
            noise.sendall(b"\x16\x03\x01" + bytes(range(256)) * 64)
        before = steps(swarm.status(head))
        swarm.wait_status(head, lambda s: s["healthy"] and steps(s) > before + 10, "training to go on")

        # A stage that the run does not have, and a daemon of another run.
        done = ctl("role", "add", "expert", "--stage", "7", "--peer", head)
        lost = swarm.wait_status(head, lambda s: "out of range" in str(s["peers"]), "the stage to be refused")
        assert done.returncode == 0
        assert "stage 7 is out of range" in str(lost["peers"])


async def _offend(head: Endpoint, expert: Endpoint) -> None:
    """Calls that a well-behaved peer would not make; each is refused by name."""
    async with open_transport() as transport:
        for method in (orders.ASSIGN, orders.DRIVE, messages.CONFIG, Method("distqat.v1.Discovery", "Store")):
            with pytest.raises(DistqatError):
                await transport.call(expert, method, b"\xff\xff\xff garbage", Deadline.after(5))
        with pytest.raises(DistqatError, match="at most"):
            await transport.call(expert, messages.STATUS, bytes(64 << 20), Deadline.after(5))
        with pytest.raises(WrongRunError, match="works for"):
            await Remote(transport, expert).assign(RunId("other", "0" * 32), Order(StageIndex(0)))
        async with transport.stream(expert, Method("distqat.v1.Pipeline", "Hop", Lane.HOP)) as stream:
            await stream.send(b"no frame at all")
            answer = await stream.receive()
            assert answer is not None
            assert b"MessageError" in answer
        (await Remote(transport, head).status()).role("client")


def test_a_peer_of_another_version_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_swarm(tmp_path) as swarm:
        _, head = swarm.head("head", "monitor")
        monkeypatch.setattr(headers, "PROTOCOL_VERSION", 99)

        async def ask() -> None:
            async with open_transport() as transport:
                await Remote(transport, Endpoint.parse(head)).hello()

        with pytest.raises(ProtocolError, match="99"):
            run(ask())


@contextmanager
def _mail_server() -> Iterator[str]:
    """Something that answers, but is not distqat."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=greet)
        thread.start()
        try:
            yield f"127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
