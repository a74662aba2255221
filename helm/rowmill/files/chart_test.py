"""What `helm test` runs, in the operator's image: the operator is ready, and the API server knows BatchJobs."""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
SECONDS = 90.0
"""How long all of it may take to become well."""

STEADY_SECONDS = 10.0
"""How long it must then stay so: an operator that ends and is started again is ready for a moment, too."""


def operator_is_ready() -> str | None:
    """None, or why not."""
    host = os.environ.get(os.environ["OPERATOR_HOST_VARIABLE"]) or os.environ["OPERATOR"]
    url = f"http://{host}:{os.environ['OPERATOR_PORT']}/readyz"
    try:
        with urllib.request.urlopen(url, timeout=5):
            return None
    except urllib.error.HTTPError as error:
        return f"{url} answered {error.code}: {error.read(300).decode('utf-8', 'replace')}"
    except OSError as error:
        return f"{url}: {error}: see the operator's pods and their log"


def batchjobs_are_known() -> str | None:
    """None, or why not."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    url = f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/rowmill.dev/v1alpha1"
    token = (ACCOUNT / "token").read_text("utf-8").strip()
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    try:
        trusted = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
        with urllib.request.urlopen(request, timeout=5, context=trusted) as answer:
            names = {resource["name"] for resource in json.load(answer)["resources"]}
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return "the API server knows no BatchJob: install the chart with crds.enabled=true, once in a cluster"
        return f"{url} answered {error.code}"
    except OSError as error:
        return f"{url}: {error}"
    missing = {"batchjobs", "batchjobs/status", "batchjobs/scale"} - names
    return f"{url} lacks {sorted(missing)}: an old definition? Upgrade with crds.enabled=true" if missing else None


def why_not_well(check: Callable[[], str | None], *, steady: float) -> str | None:
    """None once the check has found nothing wrong for so many seconds on end; else what it found last."""
    deadline = time.monotonic() + SECONDS
    well_since: float | None = None
    while True:
        why, now = check(), time.monotonic()
        if why is None:
            well_since = now if well_since is None else well_since
            if now - well_since >= steady:
                return None
        else:
            if now >= deadline:
                return why
            well_since = None
        time.sleep(min(1.0, max(steady, deadline - now, 0.0)))


def main() -> int:
    failed = False
    for what, check, steady in (
        ("BatchJob", batchjobs_are_known, 0.0),
        ("operator", operator_is_ready, STEADY_SECONDS),
    ):
        why = why_not_well(check, steady=steady)
        print(f"{what}: {why or 'ok'}", flush=True)
        failed = failed or why is not None
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
