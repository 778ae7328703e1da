"""Load clients: what they say of calls that fail, that they connect anew, and that they send when it is time."""

import signal
import time

import numpy as np
import pytest

from atelier.wire import classifier_pb2 as pb
from loadtest.load.load_clients import IS_NATIVE_HERE, Answers, LoadClient, joined, open_client
from loadtest.load.open_inference import OpenInference
from loadtest.load.protocols import Classify, ServerProtocol
from loadtest.server_process import server_process
from tests.loadtest.null_server import NUM_IMAGES, reference

NULL = "tests.loadtest.null_server"


def classify_at(target: str) -> Classify:
    return Classify(target=target, reference=reference())


def connected(client: str, server: ServerProtocol, num_connections: int = 2) -> LoadClient:
    return open_client(client, server.target, server.method, num_connections)


def taken(client: LoadClient, num_answers: int) -> Answers:
    """All of them, in the order of their numbers."""
    parts: list[Answers] = []
    while sum(len(part.numbers) for part in parts) < num_answers:
        parts.append(client.take(0.1))
    answers = joined(parts)
    order = np.argsort(answers.numbers)
    replies = [answers.reply(position) for position in order.tolist()]
    ends = np.cumsum([len(reply) for reply in replies])
    numbers, sent_ns, done_ns = (column[order] for column in answers[:3])
    return Answers(numbers, sent_ns, done_ns, answers.codes[order], b"".join(replies), ends)


def asked(client: LoadClient, server: ServerProtocol, *, num_calls: int = 10, timeout_s: float = 10.0) -> Answers:
    client.submit(np.arange(num_calls), [server.request((index,)) for index in range(num_calls)], timeout_s)
    return taken(client, num_calls)


def test_each_reply_comes_with_its_number_and_its_times(client: str) -> None:
    with server_process(NULL, "--latency-ms", "20") as process:
        server = classify_at(process.target)
        load_client = connected(client, server)
        began_ns = time.monotonic_ns()
        answers = asked(load_client, server)
        load_client.close()
    assert answers.codes.tolist() == [0] * 10
    assert [server.check(answers.reply(index), (index,)).fault for index in range(10)] == [""] * 10
    assert (answers.sent_ns >= began_ns).all()
    assert (answers.done_ns - answers.sent_ns >= 19_000_000).all()
    assert (answers.done_ns <= time.monotonic_ns()).all()


@pytest.mark.timing
def test_calls_are_made_when_they_are_due_and_not_before(client: str) -> None:
    with server_process(NULL) as process:
        server = classify_at(process.target)
        load_client = connected(client, server)
        asked(load_client, server, num_calls=2)
        due_ns = time.monotonic_ns() + np.arange(50) * 4_000_000 + 10_000_000
        load_client.submit(np.arange(50), [server.request((0,))] * 50, 10.0, due_ns)
        assert time.monotonic_ns() >= due_ns[-1]
        answers = taken(load_client, 50)
        load_client.close()
    late_ns = answers.sent_ns - due_ns
    assert (late_ns >= 0).all()
    assert np.median(late_ns) < 3_000_000  # what is handed over together is not sent together


def test_deadline_counts_from_when_a_call_was_due_and_what_is_too_late_is_not_sent(client: str) -> None:
    with server_process(NULL, "--latency-ms", "300", "--tell-at", "4") as process:
        server = classify_at(process.target)
        load_client = connected(client, server)
        asked(load_client, server, num_calls=2)
        message, now_ns = server.request((0,)), time.monotonic_ns()
        load_client.submit(np.arange(1), [message], 0.1)
        load_client.submit(np.arange(1, 2), [message], 0.2, np.array([now_ns - 10**9]))
        load_client.submit(np.arange(2, 3), [message], 9.0, np.array([now_ns - 10**9]), 0.5)
        answers = taken(load_client, 3)
        load_client.close()
        assert "request 4 came" not in process.output
    assert answers.failure(0).startswith("DEADLINE_EXCEEDED")
    # Earlier by what a busy machine takes to note the time of sending.
    assert 0.05e9 <= answers.done_ns[0] - answers.sent_ns[0] < 0.29e9
    assert [answers.failure(position) for position in (1, 2)] == ["DEADLINE_EXCEEDED: too late to be sent"] * 2


def test_refusal_has_its_status_and_its_words(client: str) -> None:
    with server_process(NULL, "--fault", "refuse", "--fault-at", "1") as process:
        server = classify_at(process.target)
        load_client = connected(client, server)
        answers = asked(load_client, server, num_calls=1)
        load_client.close()
    assert answers.failure(0) == "RESOURCE_EXHAUSTED: QUEUE_FULL: on demand"


def test_method_that_is_unknown_is_unimplemented(client: str) -> None:
    with server_process(NULL) as process:
        load_client = open_client(client, process.target, "/no.Such/Method", 1)
        answers = asked(load_client, classify_at(process.target), num_calls=1)
        load_client.close()
    assert answers.failure(0).startswith("UNIMPLEMENTED: ")


@pytest.mark.slow
def test_calls_of_a_server_that_dies_are_lost_and_the_next_server_is_found(client: str) -> None:
    with server_process(NULL, "--latency-ms", "2000") as process:
        server, port = classify_at(process.target), process.port
        load_client = connected(client, server)
        load_client.submit(np.arange(4), [server.request((0,))] * 4, 10.0)
        time.sleep(1.0)
        process.stop(signal.SIGKILL)
        lost = taken(load_client, 4)
        refused = asked(load_client, server, num_calls=2, timeout_s=1.0)
    assert {lost.failure(position).partition(":")[0] for position in range(4)} == {"UNAVAILABLE"}
    assert {refused.failure(position).partition(":")[0] for position in range(2)} <= {
        "UNAVAILABLE",
        "DEADLINE_EXCEEDED",
    }
    with server_process(NULL, "--port", str(port)):
        deadline_s = time.monotonic() + 30  # grpcio waits before it connects again
        while asked(load_client, server, num_calls=4, timeout_s=2.0).codes.any():
            assert time.monotonic() < deadline_s
            time.sleep(0.2)
    load_client.close()


@pytest.mark.parametrize("protocol", ["atelier", "oip"])
def test_what_is_found_right_in_bulk_is_right_looked_at_by_itself(protocol: str) -> None:
    """Replies of a server, each with one byte changed, cut off or added: none is taken for right that is not."""
    if not IS_NATIVE_HERE:
        pytest.skip("replies are read in bulk by the native package")
    with server_process(NULL) as process:
        server: ServerProtocol = classify_at(process.target)
        if protocol == "oip":
            server = OpenInference(target=process.target, reference=reference())
        load_client = connected("native", server)
        answers = asked(load_client, server, num_calls=NUM_IMAGES)
        load_client.close()
    sound = [answers.reply(index) for index in range(NUM_IMAGES)]
    random = np.random.default_rng(0)
    replies, images = [*sound], [*range(NUM_IMAGES)]
    for number in range(20_000):
        index = number % NUM_IMAGES
        reply, at, byte = sound[index], int(random.integers(len(sound[index]))), bytes([random.integers(256)])
        kind = number // NUM_IMAGES % 4
        changed = (reply[:at] + byte + reply[at + 1 :], reply[:at], reply[:at] + byte + reply[at:], sound[index - 1])
        replies.append(changed[kind])
        images.append(index)
    ends = np.cumsum([len(reply) for reply in replies])
    found = server.found_right(b"".join(replies), ends, np.array(images)[:, np.newaxis])
    checked = [server.check(reply, (index,)) for reply, index in zip(replies, images, strict=True)]
    assert found.is_right[:NUM_IMAGES].all()
    wrong = [each.fault != "" for each in checked]
    assert 10_000 < sum(wrong) < 20_000
    assert not (found.is_right & wrong).any()
    right = np.flatnonzero(found.is_right)
    assert found.times[right].tolist() == [list(checked[position][1:]) for position in right]


def test_probability_that_is_no_number_is_wrong() -> None:
    server = classify_at("")
    response = pb.ClassifyResponse()
    response.classifications.add().predictions.add(label=int(reference().labels[0]), probability=float("nan"))
    reply = response.SerializeToString()
    assert "image 0: label" in server.check(reply, (0,)).fault
    if IS_NATIVE_HERE:
        assert not server.found_right(reply, np.array([len(reply)]), np.array([[0]])).is_right[0]
