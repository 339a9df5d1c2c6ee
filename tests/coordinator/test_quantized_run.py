"""Quantized uploads through the real round loop: the bytes on the wire are the quantizer's."""

import numpy as np
import pytest

from coordinator.collect import Broadcast
from coordinator.collect.uploads import read_upload
from strategies.compression.quantize import StochasticQuantizer
from tests.federated import adapter, lines, options, run_in_memory
from umbel import wire
from umbel.adapter import AdapterSpec, LoraShape
from umbel.errors import AdapterError, FederationError, WireError

SPEC = AdapterSpec.from_shapes({"m.lora_A.weight": (2, 3), "m.lora_B.weight": (4, 2)}, LoraShape(2, 4.0))


@pytest.fixture
def flat(tiny_root, tmp_path):
    def make(**changes):
        return options(tiny_root, evaluate__every=0, **changes) | {"run.directory": str(tmp_path / "runs")}

    return make


def spied(sent):
    from client.client_app import app

    def client(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "train":
            sent.append(wire.unpack_train_reply(reply.content).update.copy())
        return reply

    return client


def test_what_travels_is_the_quantizers_encoding(flat):
    sent = []
    exact = run_in_memory(flat(run__id="exact", federation__rounds=1))
    path = run_in_memory(flat(federation__rounds=1, strategy__compression="quantize"), client=spied(sent))
    assert [update.dtype for update in sent] == [np.uint8] * 4
    size = StochasticQuantizer.decode(sent[0].tobytes()).size
    assert sent[0].size == StochasticQuantizer(8).encoded_bytes(size)
    (line,), (plain,) = lines(path), lines(exact)
    assert line["bytes_up"] == sum(update.size for update in sent)
    assert plain["bytes_up"] == 4 * 4 * size
    assert line["bytes_down"] == plain["bytes_down"] == 4 * 4 * size
    gap = np.abs(adapter(path) - adapter(exact)).max()
    assert 0 < gap < 0.02 * np.abs(adapter(exact)).max()


def test_bits_set_the_bytes(flat):
    sent = []
    run_in_memory(flat(federation__rounds=1, strategy__compression="quantize", strategy__bits=3), client=spied(sent))
    size = StochasticQuantizer.decode(sent[0].tobytes()).size
    assert sent[0].size == StochasticQuantizer(3).encoded_bytes(size) < size


def test_sparsified_values_are_quantized_after(flat):
    sent, small = [], []
    both = {"strategy__compression": "sparsify-quantize", "strategy__error_feedback": True}
    path = run_in_memory(flat(federation__rounds=2, **both), client=spied(sent))
    alone = flat(run__id="s", federation__rounds=1, strategy__compression="sparsify")
    run_in_memory(alone, client=spied(small))
    assert StochasticQuantizer.decode(sent[0].tobytes()).size == small[0].size
    assert lines(path)[0]["bytes_up"] < 4 * 4 * small[0].size


@pytest.mark.parametrize("compression", ["quantize", "sparsify-quantize"])
def test_what_rounding_lost_is_in_the_next_upload(flat, monkeypatch, compression):
    """Client by client: what enters the codec is the new update plus exactly what the last round did not deliver."""
    from strategies.compression.feedback import ErrorFeedback

    raw, full = [], []
    add = ErrorFeedback.add

    def spy(self, vector):
        result = add(self, vector)
        raw.append((self, vector.copy()))
        full.append(result.copy())
        return result

    monkeypatch.setattr(ErrorFeedback, "add", spy)
    coarse = {"strategy__compression": compression, "strategy__bits": 2, "strategy__error_feedback": True}
    sent = []
    run_in_memory(flat(federation__rounds=3, **coarse), client=spied(sent))
    assert len(raw) == 3 * 4
    for index in range(4, 12):
        memory = full[index] - raw[index][1]
        lost = raw[index - 4][0].keep()["compression.error"]  # as the round before left it
        np.testing.assert_allclose(memory, lost, atol=1e-6)
        assert np.abs(memory).max() > 0
        if compression == "quantize":
            np.testing.assert_allclose(lost, full[index - 4] - StochasticQuantizer.decode(sent[index - 4].tobytes()))


def test_a_repeated_run_sends_the_same_bytes(flat):
    first, again = [], []
    run_in_memory(flat(federation__rounds=1, strategy__compression="quantize"), client=spied(first))
    run_in_memory(flat(run__id="u", federation__rounds=1, strategy__compression="quantize"), client=spied(again))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])


def broadcast():
    return Broadcast(1, SPEC, lambda rank: (SPEC, SPEC.zeros()), SPEC)


def reply(update, spec_hash=SPEC.hash, **metrics):
    return wire.pack_train_reply(wire.TrainReply(spec_hash, update, {"examples": 2.0, **metrics}))


def encoded(vector):
    return np.frombuffer(StochasticQuantizer(4).encode(vector, 1), np.uint8)


def test_read_upload_decodes_and_weighs():
    vector = np.linspace(-1, 1, SPEC.size, dtype=np.float32)
    got = read_upload(reply(encoded(vector)), 2, broadcast(), by_examples=True, quantized=True)
    assert got.weight == 2.0
    np.testing.assert_allclose(got.vector, vector, atol=1 / 7)
    assert read_upload(reply(vector), 2, broadcast()).weight == 1.0


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_rounding_to_the_nearest_is_a_contraction(bits):
    vector = np.random.default_rng(bits).normal(size=5000).astype(np.float32)
    quantizer = StochasticQuantizer(bits, nearest=True)
    lost = vector - quantizer.decode(quantizer.encode(vector, 0))
    assert (np.abs(lost) <= np.abs(vector) * (1 + 1e-5)).all()
    random = vector - StochasticQuantizer.decode(StochasticQuantizer(bits).encode(vector, 0))
    assert np.linalg.norm(lost) < np.linalg.norm(vector)
    assert bits > 2 or np.linalg.norm(random) > np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("records", "quantized", "error"),
    [
        (lambda v: reply(v), True, WireError),
        (lambda v: reply(encoded(v)), False, WireError),
        (lambda v: reply(encoded(v)[:-1]), True, WireError),
        (lambda v: reply(encoded(v[:-1])), True, WireError),
        (lambda v: reply(encoded(v), spec_hash="0" * 64), True, AdapterError),
        (lambda v: reply(encoded(v), examples=0.0), True, AdapterError),
        (lambda v: reply(encoded(v), examples=float("nan")), True, AdapterError),
        (lambda v: reply(encoded(v), examples=float("inf")), True, AdapterError),
        (lambda v: reply(np.zeros(0, np.uint8)), True, WireError),
    ],
)
def test_what_cannot_be_used_is_refused(records, quantized, error):
    records = records(np.linspace(-1, 1, SPEC.size, dtype=np.float32))
    with pytest.raises(error):
        read_upload(records, 2, broadcast(), by_examples=True, quantized=quantized)


def test_a_client_that_does_not_quantize_is_never_averaged(flat):
    from flwr.app import Message

    from client.client_app import app

    def client(message, context):
        answer = app(message, context)
        if message.metadata.message_type != "train" or context.node_config["partition-id"] == 0:
            return answer
        update = wire.unpack_train_reply(answer.content)
        vector = StochasticQuantizer.decode(update.update.tobytes())
        return Message(
            wire.pack_train_reply(wire.TrainReply(update.spec_hash, vector, update.metrics)), reply_to=message
        )

    with pytest.raises(FederationError, match="same compression"):
        run_in_memory(flat(strategy__compression="quantize"), client=client)
