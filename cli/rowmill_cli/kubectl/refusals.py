"""What kubectl says when it fails, as a sentence that says what to do. Pure."""

from __future__ import annotations

import re
from typing import Final

from rowmill_cli.kubectl.errors import ClusterError, Denied, Missing, Rejected, Unreachable

RIGHTS: Final = "the Role under “Rights” in docs/kubectl.md holds all that this plugin needs"
MAX_TEXT: Final = 600
"""Characters of kubectl's own words that are passed on."""

_DENIED: Final = re.compile(
    r'User "(?P<user>[^"]*)" cannot (?P<verb>[a-z]+) resource "(?P<resource>[^"]+)" in API group "(?P<group>[^"]*)"'
    r'(?: in the namespace "(?P<namespace>[^"]+)"| at the cluster scope)?'
)
_NO_KIND: Final = re.compile(
    r"the server doesn't have a resource type|no matches for kind|could not find the requested resource"
)
_LOGIN: Final = re.compile(
    r"\(Unauthorized\)|must be logged in to the server|asked for the client to provide credentials|"
    r"getting credentials: exec",
    re.IGNORECASE,
)
_AWAY: Final = re.compile(
    r"Unable to connect to the server|The connection to the server .* was refused|connection refused|no such host|"
    r"no route to host|i/o timeout|TLS handshake timeout|context deadline exceeded|connection reset by peer|"
    r"\((?:ServiceUnavailable|Timeout|ServerTimeout|TooManyRequests|InternalError)\)|unexpected EOF",
    re.IGNORECASE,
)
_CONFIG: Final = re.compile(
    r"context .* does not exist|context was not found|no configuration has been provided|error loading config file|"
    r"cluster .* does not exist|auth info .* does not exist|stat .*: no such file or directory|"
    r"current-context is not set",
    re.IGNORECASE,
)
_REJECTED: Final = re.compile(
    r"\((?:Invalid|Conflict|BadRequest|AlreadyExists|Forbidden)\)|The request is invalid|is forbidden|"
    "denied the request"
)
_NOT_OURS: Final = re.compile(r"^(?:[EWI]\d{4} \d\d:\d\d|Warning:|command terminated with exit code)", re.IGNORECASE)


def refusal(said: str, *, doing: str) -> ClusterError:
    """The error that kubectl's standard error `said` while it was `doing` (`get the BatchJob support/triage`)."""
    text = spoken(said)
    if found := _DENIED.search(said):
        return _denied(found)
    if _LOGIN.search(said):
        return ClusterError(
            f"could not {doing}: the cluster does not know you ({text}). Log in as you do for kubectl, and see that "
            "`kubectl auth whoami` answers"
        )
    if _NO_KIND.search(said):
        return ClusterError(
            f"could not {doing}: this cluster has no BatchJobs (batchjobs.rowmill.dev). Either Rowmill is not "
            "installed on it, or this is not the cluster that you mean: see `kubectl config current-context`"
        )
    if "(NotFound)" in said:
        return Missing(f"could not {doing}: {text}")
    if _CONFIG.search(said):
        return ClusterError(
            f"could not {doing}: kubectl is not set up for that ({text}). See `kubectl config get-contexts`, "
            "--context and --kubeconfig"
        )
    if _AWAY.search(said):
        return Unreachable(
            f"could not {doing}: the API server does not answer ({text}). Is this the right cluster (`kubectl config "
            "current-context`), and does it need a VPN?"
        )
    if _REJECTED.search(said):
        return Rejected(f"could not {doing}: the cluster refuses it: {text}")
    return ClusterError(f"could not {doing}: kubectl says: {text or 'nothing'}")


def spoken(said: str) -> str:
    """kubectl's own words in one line: without its log, bounded, and with nothing that moves a terminal's cursor."""
    lines = [line.strip() for line in said.splitlines()]
    kept = [line for line in lines if line and not _NOT_OURS.match(line)] or [line for line in lines if line]
    text = printable(" ".join(dict.fromkeys(kept))).removeprefix("error: ")
    text = re.sub(r"^Error from server \((\w+)\): ", r"\1: ", text)
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]} …"


def printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)


def _denied(found: re.Match[str]) -> Denied:
    verb, resource, group = found["verb"], found["resource"], found["group"]
    namespace = found["namespace"] or ""
    where = f"in the namespace {namespace}" if namespace else "in all namespaces"
    what = resource if not group else f"{resource}.{group}"
    return Denied(
        f"you ({printable(found['user'])}) may not {verb} {what} {where}. Ask whoever gives out rights there for the "
        f"verb “{verb}” on “{resource}” (API group “{group}”); {RIGHTS}",
        verb=verb,
        resource=resource,
        namespace=namespace,
    )
