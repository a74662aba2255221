"""What every command of `kubectl rowmill` takes, and what it is handed."""

from __future__ import annotations

import difflib
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

import click

from rowmill_cli.kubectl.client import BATCHJOBS, Access, Kubectl, find_kubectl
from rowmill_cli.kubectl.errors import ClusterError, Missing
from rowmill_cli.kubectl.view import JobView

F = TypeVar("F", bound=Callable[..., Any])


def cluster_options(command: F) -> F:
    """Adds `-n`, `--context`, `--kubeconfig` and `--as`; the command gets `kubectl: Kubectl` instead."""

    @click.option("-n", "--namespace", metavar="NAME", help="Namespace of the job; else that of your context.")
    @click.option("--context", "kube_context", metavar="NAME", help="Context of your kubeconfig, as for kubectl.")
    @click.option("--kubeconfig", metavar="FILE", help="The kubeconfig to use, as for kubectl.")
    @click.option("--as", "user", metavar="USER", help="Act as this user, as for kubectl.")
    @functools.wraps(command)
    def wrapped(
        *args: Any,
        namespace: str | None,
        kube_context: str | None,
        kubeconfig: str | None,
        user: str | None,
        **more: Any,
    ) -> Any:
        access = Access(namespace=namespace, context=kube_context, kubeconfig=kubeconfig, user=user)
        kubectl = Kubectl(binary=find_kubectl(os.environ), access=access, tell=say)
        return command(*args, kubectl=kubectl, **more)

    return wrapped  # type: ignore[return-value]


def say(message: str) -> None:
    """A line for the person; standard output is for what was asked for."""
    click.echo(message, err=True)


def find_job(kubectl: Kubectl, name: str) -> JobView:
    """One job of the namespace that was named, or of the context's. Raises ClusterError."""
    given = name.removeprefix("batchjob/").removeprefix("bj/").removeprefix(f"{BATCHJOBS}/")
    if "/" in given:
        before, _, bare = given.partition("/")
        raise ClusterError(f"{name!r} is no name of a BatchJob: write {bare} -n {before}")
    namespace = kubectl.access.namespace
    try:
        return JobView(kubectl.get(BATCHJOBS, given, namespace=kubectl.access.namespace))
    except Missing as error:
        where = f"namespace {namespace}" if namespace else "namespace of your context"
        listed = "kubectl rowmill status" + (f" -n {namespace}" if namespace else "")
        near = _near(kubectl, given)
        meant = f" Did you mean {' or '.join(near)}?" if near else ""
        raise Missing(
            f"there is no BatchJob {given} in the {where}.{meant} `{listed}` lists those that there are, "
            "`kubectl rowmill status -A` those of all namespaces"
        ) from error


def _near(kubectl: Kubectl, name: str) -> list[str]:
    try:
        names = [JobView(one).name for one in kubectl.list(BATCHJOBS, namespace=kubectl.access.namespace)]
    except ClusterError:
        return []  # who may not list them is not told of others
    return difflib.get_close_matches(name, names, n=2)
