from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Run(_message.Message):
    __slots__ = ("id", "options", "bundle")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    id: str
    options: str
    bundle: Bundle
    def __init__(self, id: _Optional[str] = ..., options: _Optional[str] = ..., bundle: _Optional[_Union[Bundle, _Mapping]] = ...) -> None: ...

class Bundle(_message.Message):
    __slots__ = ("hash", "code")
    HASH_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    hash: str
    code: bool
    def __init__(self, hash: _Optional[str] = ..., code: _Optional[bool] = ...) -> None: ...

class Description(_message.Message):
    __slots__ = ("site", "spec_hash", "base_hash", "rank", "version")
    SITE_FIELD_NUMBER: _ClassVar[int]
    SPEC_HASH_FIELD_NUMBER: _ClassVar[int]
    BASE_HASH_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    site: str
    spec_hash: str
    base_hash: str
    rank: int
    version: str
    def __init__(self, site: _Optional[str] = ..., spec_hash: _Optional[str] = ..., base_hash: _Optional[str] = ..., rank: _Optional[int] = ..., version: _Optional[str] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("head", "chunk")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    head: Head
    chunk: bytes
    def __init__(self, head: _Optional[_Union[Head, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Head(_message.Message):
    __slots__ = ("run", "arrays", "train_order", "train_reply", "evaluate_order", "metrics", "secagg")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ARRAYS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ORDER_FIELD_NUMBER: _ClassVar[int]
    TRAIN_REPLY_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_ORDER_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    SECAGG_FIELD_NUMBER: _ClassVar[int]
    run: Run
    arrays: _containers.RepeatedCompositeFieldContainer[ArrayHead]
    train_order: TrainOrder
    train_reply: TrainReply
    evaluate_order: EvaluateOrder
    metrics: Metrics
    secagg: SecAggStep
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ..., arrays: _Optional[_Iterable[_Union[ArrayHead, _Mapping]]] = ..., train_order: _Optional[_Union[TrainOrder, _Mapping]] = ..., train_reply: _Optional[_Union[TrainReply, _Mapping]] = ..., evaluate_order: _Optional[_Union[EvaluateOrder, _Mapping]] = ..., metrics: _Optional[_Union[Metrics, _Mapping]] = ..., secagg: _Optional[_Union[SecAggStep, _Mapping]] = ...) -> None: ...

class ArrayHead(_message.Message):
    __slots__ = ("name", "dtype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class TrainOrder(_message.Message):
    __slots__ = ("round", "spec_hash", "secagg", "pooled", "amount", "pass_number")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SPEC_HASH_FIELD_NUMBER: _ClassVar[int]
    SECAGG_FIELD_NUMBER: _ClassVar[int]
    POOLED_FIELD_NUMBER: _ClassVar[int]
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    PASS_NUMBER_FIELD_NUMBER: _ClassVar[int]
    round: int
    spec_hash: str
    secagg: bytes
    pooled: bool
    amount: int
    pass_number: int
    def __init__(self, round: _Optional[int] = ..., spec_hash: _Optional[str] = ..., secagg: _Optional[bytes] = ..., pooled: _Optional[bool] = ..., amount: _Optional[int] = ..., pass_number: _Optional[int] = ...) -> None: ...

class TrainReply(_message.Message):
    __slots__ = ("spec_hash", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    SPEC_HASH_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    spec_hash: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, spec_hash: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class EvaluateOrder(_message.Message):
    __slots__ = ("round", "spec_hash")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SPEC_HASH_FIELD_NUMBER: _ClassVar[int]
    round: int
    spec_hash: str
    def __init__(self, round: _Optional[int] = ..., spec_hash: _Optional[str] = ...) -> None: ...

class Metrics(_message.Message):
    __slots__ = ("values",)
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    VALUES_FIELD_NUMBER: _ClassVar[int]
    values: _containers.ScalarMap[str, float]
    def __init__(self, values: _Optional[_Mapping[str, float]] = ...) -> None: ...

class SecAggStep(_message.Message):
    __slots__ = ("round", "stage")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    round: int
    stage: str
    def __init__(self, round: _Optional[int] = ..., stage: _Optional[str] = ...) -> None: ...

class LedgerSummary(_message.Message):
    __slots__ = ("epsilon", "delta", "events")
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    epsilon: float
    delta: float
    events: int
    def __init__(self, epsilon: _Optional[float] = ..., delta: _Optional[float] = ..., events: _Optional[int] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("allowed", "reasons")
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, allowed: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class StatusQuestion(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusAnswer(_message.Message):
    __slots__ = ("site", "version", "seconds", "working", "base", "asked", "refused", "left_bytes", "log_lines", "log_head", "listening")
    SITE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    WORKING_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ASKED_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LEFT_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOG_LINES_FIELD_NUMBER: _ClassVar[int]
    LOG_HEAD_FIELD_NUMBER: _ClassVar[int]
    LISTENING_FIELD_NUMBER: _ClassVar[int]
    site: str
    version: str
    seconds: float
    working: str
    base: str
    asked: int
    refused: int
    left_bytes: int
    log_lines: int
    log_head: str
    listening: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, site: _Optional[str] = ..., version: _Optional[str] = ..., seconds: _Optional[float] = ..., working: _Optional[str] = ..., base: _Optional[str] = ..., asked: _Optional[int] = ..., refused: _Optional[int] = ..., left_bytes: _Optional[int] = ..., log_lines: _Optional[int] = ..., log_head: _Optional[str] = ..., listening: _Optional[_Iterable[str]] = ...) -> None: ...
