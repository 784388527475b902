"""The Delta sink: the commit protocol, the data files, and the Bytewax output over both."""

from sinks.delta.files import StoredFile, stored_files
from sinks.delta.protocol import CommitReceipt, Committer
from sinks.delta.sink import DeltaSink
from sinks.delta.target import DeltaTarget, FlushPolicy, SinkControl

__all__ = [
    "CommitReceipt",
    "Committer",
    "DeltaSink",
    "DeltaTarget",
    "FlushPolicy",
    "SinkControl",
    "StoredFile",
    "stored_files",
]
