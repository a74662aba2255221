"""Who may share dedupe keys over namespaces: what the platform team permits, and what is refused. Pure.

A job with `dedupe.scope: Installation` reads the results of other namespaces and leaves its own to them. So it is not
for whoever may apply a job to say, but for whoever runs the installation: group by group, for the namespaces of their
list. What is not permitted is refused before anything of it runs; a permission is never more than this gate, and no
part of a key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import msgspec

from rowmill.errors import InvalidInput
from rowmill.spec import BatchJob
from rowmill.spec.base import DNS_LABEL, IDENTIFIER
from rowmill_operator.kube.conditions import Reason
from rowmill_operator.kube.troubles import JobTrouble

VALUE: Final = "dedupe.shared"
"""The chart's value that permits."""

EVERY: Final = "*"
"""Stands for all namespaces."""

NAME_CHARS: Final = 63


class Share(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Jobs of these namespaces may share the keys of this group; `*` among them: of all namespaces."""

    group: str
    namespaces: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SharedKeys:
    """All that is permitted; by default nothing."""

    shares: tuple[Share, ...] = ()

    @classmethod
    def parse(cls, text: str, *, where: str) -> SharedKeys:
        """Read a JSON list of `{"group": …, "namespaces": […]}`. Raises InvalidInput, at `where`."""
        try:
            shares = msgspec.json.decode(text or "[]", type=tuple[Share, ...])
        except msgspec.DecodeError as error:
            raise InvalidInput.one(
                where, "", f'is no list such as [{{"group": "orders", "namespaces": ["shop"]}}]: {error}'
            ) from None
        for n, share in enumerate(shares):
            if not _is_name(share.group, IDENTIFIER):
                raise InvalidInput.one(where, "", f"[{n}].group is {share.group!r}, which no job can name; correct it")
            if not share.namespaces:
                raise InvalidInput.one(
                    where, "", f"[{n}].namespaces is empty; name the namespaces of the group {share.group}"
                )
            for name in share.namespaces:
                if name != EVERY and not _is_name(name, DNS_LABEL):
                    raise InvalidInput.one(
                        where, "", f"[{n}].namespaces has {name!r}, which is no namespace's name, nor {EVERY}"
                    )
        return cls(shares)

    def permits(self, *, group: str, namespace: str) -> bool:
        """Whether jobs of this namespace may share the keys of this group with other namespaces."""
        return any(
            share.group == group and (namespace in share.namespaces or EVERY in share.namespaces)
            for share in self.shares
        )

    def refusal(self, job: BatchJob) -> JobTrouble | None:
        """Why the job may not run, or None. A simulated one is refused alike: it shows what a real one would meet."""
        dedupe = job.spec.dedupe
        if dedupe is None or dedupe.scope != "Installation":
            return None
        namespace = job.metadata.namespace
        if self.permits(group=dedupe.group, namespace=namespace):
            return None
        return JobTrouble(
            Reason.DEDUPE_NOT_PERMITTED,
            f"spec.dedupe.scope: the namespace {namespace} may not share the keys of the group {dedupe.group} with "
            f"other namespaces. Have the platform team permit it ({VALUE} of the chart: {{group: {dedupe.group}, "
            f"namespaces: [{namespace}]}}), or set scope to Namespace (once rows were fed, with another spec.runId)",
            edit=True,
        )


def _is_name(text: str, pattern: str) -> bool:
    return len(text) <= NAME_CHARS and re.fullmatch(pattern, text, re.ASCII) is not None
