"""Whatever comes from the network ends in a value or in one sentence: no other exception, and no more bytes kept than
were declared."""

import json

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coordinator.release import release_pb2 as pb
from coordinator.release.incoming import MAX_CHUNK_BYTES, Incoming
from coordinator.release.manifest import (
    HEAD_PURPOSE,
    MAX_MANIFEST_BYTES,
    PURPOSE,
    Head,
    ReleasedFile,
    parse_manifest,
    read_head,
    read_manifest,
)
from coordinator.release.registry import Registry
from coordinator.release.rules import check_content, check_file_name
from coordinator.release.server import Servicer
from tests.release_manifest import MANIFEST
from umbel.errors import DeployError
from umbel.signed import canonical, sign

KEY = Ed25519PrivateKey.generate()
SIGNERS = {KEY.public_key().public_bytes_raw()}
MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def paths(value, at=()):
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths(inner, (*at, key))


def replaced(value, at, new):
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = replaced(copy[at[0]], at[1:], new)
    return copy


def sentence(error):
    text = str(error)
    assert text
    assert "\n" not in text
    assert "Traceback" not in text


@MANY
@given(st.binary(max_size=300))
def test_any_bytes_as_a_manifest_or_head(data):
    for read in (
        parse_manifest,
        lambda d: read_manifest(d, d, SIGNERS),
        lambda d: read_head(d, d, SIGNERS),
        lambda d: read_head(d, sign(d, KEY, HEAD_PURPOSE, 1), SIGNERS),
        lambda d: read_manifest(d, sign(d, KEY, PURPOSE, 1), SIGNERS),
    ):
        with pytest.raises(DeployError) as caught:
            read(data)
        sentence(caught.value)


@MANY
@given(st.sampled_from(sorted(paths(MANIFEST), key=str)), values)
def test_a_signed_manifest_with_any_wrong_part(at, new):
    """Even a signer's manifest is read with care; one that is accepted comes back as the same bytes."""
    try:
        data = canonical(replaced(MANIFEST, at, new))
    except DeployError:
        return
    try:
        manifest = read_manifest(data, sign(data, KEY, PURPOSE, 1), SIGNERS)
    except DeployError as error:
        sentence(error)
    else:
        assert manifest.to_bytes() == data
        assert all(check_file_name(file.name) for file in manifest.files)


def test_the_sound_one_is_accepted_and_a_large_or_deep_one_refused():
    assert parse_manifest(canonical(MANIFEST)).name == "easy"
    with pytest.raises(DeployError, match="larger than"):
        parse_manifest(b" " * (MAX_MANIFEST_BYTES + 1))
    with pytest.raises(DeployError, match="cannot be read"):
        parse_manifest(b"[" * 100_000)
    with pytest.raises(DeployError, match="a file stands twice"):
        parse_manifest(
            canonical(
                {**MANIFEST, "files": [*MANIFEST["files"], {**MANIFEST["files"][0], "name": "ADAPTER_config.json"}]}
            )
        )


@MANY
@given(
    st.text(max_size=40)
    | st.sampled_from(["../a.json", "a/b.json", "..", "a\0.json", "a.json\n", "C:\\a.json", "~.md"])
)
def test_file_names(name):
    try:
        check_file_name(name)
    except DeployError as error:
        sentence(error)
    else:
        assert not {"/", "\\", "\0", "\n"} & set(name)
        assert not name.startswith(".")
        assert ".." not in name
        assert name.endswith((".safetensors", ".json", ".md", ".toml"))


@MANY
@given(st.binary(max_size=120), st.sampled_from([".safetensors", ".json", ".toml", ".md"]))
def test_contents(tmp_path, data, suffix):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    try:
        check_content(path)
    except DeployError as error:
        sentence(error)


def test_a_safetensors_header_that_promises_gigabytes(tmp_path):
    path = tmp_path / "x.safetensors"
    for header in (2**63, 2**40, 100_000_000):
        path.write_bytes(header.to_bytes(8, "little") + b"{}")
        with pytest.raises(DeployError, match=r"x\.safetensors is not what its name says"):
            check_content(path)


@MANY
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 40), st.binary(max_size=40)), max_size=12),
    st.integers(0, 40),
)
def test_any_chunks(tmp_path, chunks, size):
    path = tmp_path / "x"
    path.unlink(missing_ok=True)
    with Incoming(path, ReleasedFile(name="x.md", size=size, sha256="0" * 64), "x") as incoming:
        for offset, data in chunks:
            try:
                incoming.add(offset, data)
            except DeployError as error:
                sentence(error)
        with pytest.raises(DeployError):
            incoming.finish()
    assert not path.exists() or path.stat().st_size <= size


def test_a_chunk_larger_than_declared_is_refused(tmp_path):
    with Incoming(tmp_path / "x", ReleasedFile(name="x.md", size=2**33, sha256="0" * 64), "x") as incoming:
        with pytest.raises(DeployError, match="bytes at 0 of x, and at most 1048576 at 0 were expected"):
            incoming.add(0, bytes(MAX_CHUNK_BYTES + 1))
        with pytest.raises(DeployError, match="broke off after 0 of"):
            incoming.finish()
    assert (tmp_path / "x").stat().st_size == 0


class Refusal(Exception):
    pass


class Context:
    def abort(self, code, details):
        assert isinstance(code, grpc.StatusCode)
        sentence(details)
        raise Refusal


@pytest.fixture(scope="module")
def servicer(tmp_path_factory):
    from tests.coordinator.release.conftest import World

    world = World(tmp_path_factory.mktemp("fuzz"))
    return Servicer(Registry(f"sqlite:///{world.store / 'registry.sqlite'}"), world.blobs), world.manifest


@MANY
@given(
    st.text(max_size=20) | st.sampled_from(["easy", "../easy", "easy'; drop table umbel_releases; --"]),
    st.integers(0, 2**64 - 1) | st.just(1),
    st.text(max_size=20) | st.sampled_from(["README.md", "../registry.sqlite"]),
    st.integers(0, 2**64 - 1) | st.integers(0, 5000),
)
def test_any_request_to_the_server(servicer, name, version, file, offset):
    service, manifest = servicer
    try:
        service.List(pb.ListRequest(name=name), Context())
    except Refusal:
        assert name
    try:
        answer = service.Describe(pb.DescribeRequest(name=name, version=version), Context())
        assert (name, version in (0, 1)) == ("easy", True)
        assert parse_manifest(answer.manifest) == manifest
    except Refusal:
        assert (name, version in (0, 1)) != ("easy", True)
    try:
        request = pb.FetchRequest(name=name, version=version, file=file, offset=offset)
        sent = sum(len(chunk.data) for chunk in service.Fetch(request, Context()))
        assert sent == manifest.file(file).size - offset
    except Refusal:
        pass


@MANY
@given(st.binary(max_size=200))
def test_any_bytes_as_a_message(data):
    for kind in (pb.ListRequest, pb.ListReply, pb.DescribeRequest, pb.Description, pb.FetchRequest, pb.Chunk):
        try:
            kind.FromString(data)
        except DecodeError:
            continue


@MANY
@given(
    st.fixed_dictionaries(
        {}, optional={"format": values, "name": values, "version": values, "sequence": values, "time": values}
    )
)
def test_any_signed_head(body):
    try:
        data = canonical(body)
    except DeployError:
        return
    try:
        head = read_head(data, sign(data, KEY, HEAD_PURPOSE, 1), SIGNERS)
    except DeployError as error:
        sentence(error)
    else:
        assert json.loads(data) == head.model_dump()


def test_a_head_is_bound_to_the_sequence_that_was_signed():
    data = Head(name="easy", version=3, sequence=7, time=1).to_bytes()
    assert read_head(data, sign(data, KEY, HEAD_PURPOSE, 7), SIGNERS).version == 3
    with pytest.raises(DeployError, match="contradicts its signature"):
        read_head(data, sign(data, KEY, HEAD_PURPOSE, 8), SIGNERS)
    with pytest.raises(DeployError, match="version 7 and version 9 was seen before"):
        read_head(data, sign(data, KEY, HEAD_PURPOSE, 7), SIGNERS, minimum=9)
