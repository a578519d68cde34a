"""The roll call, and the end of one process that is the end of all."""

import contextlib
import json
import socket
import threading
import time

import pytest

from ctssl_jax.errors import ConfigError, DeviceError
from ctssl_jax.hosts import roll_call as lifelines
from ctssl_jax.hosts.cluster import Cluster
from ctssl_jax.hosts.roll_call import Lifeline, Relay
from launch.local import free_port


class Party:
    """Some of the processes of a cluster, as threads of this one; JAX takes no part."""

    def __init__(self, processes, present, timeout=20.0, claims=None):
        self.address = f"127.0.0.1:{free_port()}"
        self.outcomes, self.lost = {}, {}
        if 0 in present:
            Relay(Cluster(self.address, processes, 0), timeout).start()
        threads = []
        for i in present:
            cluster = Cluster(self.address, (claims or {}).get(i, processes), i)
            threads.append(threading.Thread(target=self._join, args=(cluster, timeout)))
            threads[-1].start()
        for thread in threads:
            thread.join(30)

    def _join(self, cluster, timeout):
        try:
            lifeline = Lifeline(cluster, timeout)
        except (ConfigError, DeviceError) as error:
            self.outcomes[cluster.process] = error
            return
        self.outcomes[cluster.process] = lifeline
        lifeline.guard(lambda code: self.lost.update({cluster.process: code}))

    def wait_for_lost(self, *processes):
        end = time.monotonic() + 10
        while not set(processes) <= self.lost.keys() and time.monotonic() < end:
            time.sleep(0.01)
        return self.lost

    def end(self):
        """As at the end of a run."""
        lifelines = [found for found in self.outcomes.values() if isinstance(found, Lifeline)]
        for lifeline in lifelines:
            lifeline.leave()
        for process, found in self.outcomes.items():
            if isinstance(found, Lifeline):
                self.hang_up(process)
        for thread in threading.enumerate():
            if thread.name in ("roll call", "lifeline"):
                thread.join(10)

    def hang_up(self, process):
        """What the kernel does for a process that is killed."""
        with contextlib.suppress(OSError):  # when it is closed already
            self.outcomes[process]._connection.shutdown(socket.SHUT_RDWR)


def test_missing_processes_are_named_to_all_that_came():
    party = Party(5, [0, 2], timeout=0.5)
    for outcome in (party.outcomes[0], party.outcomes[2]):
        assert isinstance(outcome, DeviceError)
        assert str(outcome).startswith("process 1, 3, 4 of 5 (from 0) did not start within 0.5 s")


def test_missing_coordinator_is_named():
    outcome = Party(2, [1], timeout=0.5).outcomes[1]
    assert isinstance(outcome, DeviceError)
    assert "process 0 did not answer at 127.0.0.1:" in str(outcome)


def test_processes_that_disagree_about_their_number_are_refused():
    party = Party(2, [0, 1], timeout=2.0, claims={1: 3})
    assert isinstance(party.outcomes[1], ConfigError)
    assert "--processes=3 here but 2 at process 0" in str(party.outcomes[1])
    assert "process 1 of 2" in str(party.outcomes[0])


def test_a_number_given_twice_is_refused():
    party = Party(3, [0, 1, 1], timeout=1.0)
    assert "process 2 of 3" in str(party.outcomes[0])
    found = str(party.outcomes[1])
    assert "--process=1 is there twice" in found or "process 2 of 3" in found


def test_strangers_at_the_port_do_no_harm():
    address = f"127.0.0.1:{free_port()}"
    relay = Relay(Cluster(address, 2, 0), 20.0)
    relay.start()
    cluster = Cluster(address, 2, 0)
    strangers = [socket.create_connection((cluster.host, cluster.port + 1)) for _ in range(4)]
    strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")
    strangers[1].sendall(b"x" * 100_000)
    strangers[2].sendall(
        b'{"process": "zero"}\n[1]\n{"process": 7, "processes": 2}\n{"processes": 2}\n'
    )
    strangers[3].close()
    found = []
    other = threading.Thread(
        target=lambda: found.append(Lifeline(Cluster(address, 2, 1), 10.0)), daemon=True
    )
    other.start()
    found.append(Lifeline(cluster, 10.0))
    other.join(10)
    assert len(found) == 2
    for lifeline in found:
        lifeline.leave()
        lifeline._close()
    for connection in strangers[:3]:
        connection.close()
    relay.join(10)


def test_a_process_that_falls_silent_ends_the_others_as_lost():
    party = Party(3, [0, 1, 2])
    party.hang_up(1)
    lost = party.wait_for_lost(0, 2)
    assert (lost[0], lost[2]) == (6, 6)
    party.end()


def test_a_process_that_fails_ends_the_others_with_its_code(capsys):
    party = Party(3, [0, 1, 2])
    party.outcomes[2].fail(3)
    assert party.wait_for_lost(0, 1) == {0: 3, 1: 3}
    assert "process 2 ended with exit code 3: this one ends too" in capsys.readouterr().err
    party.end()


def test_those_that_leave_together_alarm_nobody():
    party = Party(3, [0, 1, 2])
    party.end()
    assert party.lost == {}


def test_messages_are_lines_of_json():
    assert lifelines._parse(b'{"ended": 3}\n') == {"ended": 3}
    assert lifelines._parse(b"3\n") == lifelines._parse(b"\xff") == {}
    assert json.loads(json.dumps({"ended": None})) == {"ended": None}


BRACKETS = b"[" * 4000 + b"\n"


def test_nobody_is_waited_for_and_nothing_read_ends_the_roll_call(monkeypatch, capsys):
    """Silent peers, lines of no use and hellos of other types, in the start and in the run."""
    monkeypatch.setattr(lifelines, "HELLO_S", 0.5)
    address = f"127.0.0.1:{free_port()}"
    cluster = Cluster(address, 2, 0)
    relay = Relay(cluster, 20.0)
    relay.start()

    def strangers():
        found = [socket.create_connection((cluster.host, cluster.port + 1)) for _ in range(3)]
        found[1].sendall(BRACKETS)
        for number in ([], {}, None, True, -1, 2, 0.0, "0"):
            found[2].sendall(json.dumps({"process": number, "processes": 2}).encode() + b"\n")
        return found

    before = strangers()
    both = []
    other = threading.Thread(target=lambda: both.append(Lifeline(Cluster(address, 2, 1), 10.0)))
    other.start()
    both.append(Lifeline(cluster, 10.0))
    other.join(10)
    assert len(both) == 2
    amid = strangers()
    both[0]._connection.sendall(BRACKETS + b'{"ended": [3]}\n')  # of one who is known, too
    for connection in (*before, *amid):
        connection.settimeout(10)
        while connection.recv(4096):  # until it is hung up on
            pass
        connection.close()
    assert relay.is_alive()
    for lifeline in both:
        lifeline.leave()
        lifeline._close()
    relay.join(10)
    assert not relay.is_alive()


def test_who_has_another_token_is_not_of_the_run(monkeypatch):
    monkeypatch.setattr(lifelines, "ANSWER_S", 0.5)
    address = f"127.0.0.1:{free_port()}"
    Relay(Cluster(address, 2, 0, "ours"), 2.0).start()
    began, found = time.monotonic(), []
    for process, token in ((1, "theirs"), (0, "ours")):
        try:
            Lifeline(Cluster(address, 2, process, token), 0.2 if token == "theirs" else 3.0)
        except DeviceError as error:
            found.append(str(error))
    assert len(found) == 2
    assert "process 1 of 2" in found[1]
    assert time.monotonic() - began < 15


@pytest.mark.parametrize("said", [b"", BRACKETS, b'{"all_here": true}\n', b"x" * 5000])
def test_a_stranger_in_place_of_process_0_is_not_waited_for(monkeypatch, said):
    monkeypatch.setattr(lifelines, "ANSWER_S", 0.2)
    address = f"127.0.0.1:{free_port()}"
    cluster = Cluster(address, 2, 1, "ours")
    with socket.create_server((cluster.host, cluster.port + 1)) as server:
        connections = []

        def serve():
            connections.append(server.accept()[0])
            connections[0].sendall(said)

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        with pytest.raises(DeviceError):
            Lifeline(cluster, 0.5)
        assert time.monotonic() - began < 5
        thread.join(5)
        connections[0].close()


def test_it_listens_at_the_coordinators_address_alone():
    relay = Relay(Cluster(f"127.0.0.1:{free_port()}", 2, 0), 1.0)
    assert relay.address == "127.0.0.1"
    relay._listener.close()
    named = socket.gethostbyname("localhost")
    relay = Relay(Cluster(f"localhost:{free_port()}", 2, 0), 1.0)
    assert relay.address in (named, "::1")
    relay._listener.close()
    elsewhere = Relay(Cluster(f"192.0.2.1:{free_port()}", 2, 0), 1.0)  # of no machine
    assert elsewhere.address is None
    elsewhere._listener.close()
