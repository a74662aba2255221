"""What can be in the way between a person and the cluster. The text of each says what to do."""

from __future__ import annotations

from rowmill.errors import RowmillError


class ClusterError(RowmillError):
    """The cluster, or kubectl, does not do what was asked."""


class Missing(ClusterError):
    """There is no object of that name."""


class Unreachable(ClusterError):
    """The API server does not answer. It may in a moment."""


class Denied(ClusterError):
    """The user lacks a right; `verb`, `resource` and `namespace` ("" for the whole cluster) name it."""

    def __init__(self, message: str, *, verb: str, resource: str, namespace: str) -> None:
        super().__init__(message)
        self.verb, self.resource, self.namespace = verb, resource, namespace


class Rejected(ClusterError):
    """The API server answered, and refuses a change."""


class NotNow(ClusterError):
    """A request that makes no sense in the job's state."""
