import pytest
from flwr.app import RecordDict

from client.store import ContextStore, MemoryStore


@pytest.fixture(params=["memory", "context"])
def store(request):
    return MemoryStore() if request.param == "memory" else ContextStore(RecordDict())


def test_contract(store):
    assert store.get("a") is None
    store.put("a", b"1")
    store.put("b", b"")
    store.put("a", b"2")
    assert store.get("a") == b"2"
    assert store.get("b") == b""
    store.delete("a")
    store.delete("never")
    assert store.get("a") is None
    assert store.get("b") == b""


def test_context_store_lives_in_the_state():
    state = RecordDict()
    ContextStore(state).put("a", b"1")
    assert ContextStore(state).get("a") == b"1"
