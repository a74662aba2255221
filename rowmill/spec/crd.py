"""The CustomResourceDefinition of `BatchJob`, written from the models: one source for what the API server, the operator
and `rowmill run` take.

`python -m rowmill.spec.crd crds/batchjobs.rowmill.dev.yaml` writes it anew; the same models give the same bytes.
`--without-rules` leaves the CEL rules out: Kubernetes before 1.23, and clients that check against it, refuse the field.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from rowmill.spec.job import API_VERSION, KIND, BatchJob, Spec
from rowmill.spec.job_status import JobStatus
from rowmill.spec.rules import rules_of
from rowmill.spec.structural import structural_schema

GROUP, VERSION = API_VERSION.split("/")
PLURAL: Final = "batchjobs"
NAME: Final = f"{PLURAL}.{GROUP}"

_HEADER: Final = "# Written from rowmill/spec by `make crds`; do not edit by hand.\n"


def crd(*, rules: bool = True) -> dict[str, Any]:
    """The CustomResourceDefinition. Without `rules` Kubernetes before 1.23 knows every field of it."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": NAME},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": "batchjob",
                "shortNames": ["bj"],
                "categories": ["all", "rowmill"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": resource_schema(rules=rules)},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.workers.replicas",
                            "statusReplicasPath": ".status.workers.ready",
                            "labelSelectorPath": ".status.workers.selector",
                        },
                    },
                    "additionalPrinterColumns": list(_COLUMNS),
                }
            ],
        },
    }


def resource_schema(*, rules: bool = True) -> dict[str, Any]:
    """The structural schema of a whole BatchJob, its status included."""
    schema: dict[str, Any] = {
        "description": " ".join((BatchJob.__doc__ or "").split()),
        "type": "object",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"Always {API_VERSION}.", "type": "string", "maxLength": 253},
            "kind": {"description": f"Always {KIND}.", "type": "string", "maxLength": 63},
            "metadata": {"type": "object"},
            "spec": structural_schema(Spec, rules=rules),
            "status": structural_schema(JobStatus, rules=rules),
        },
    }
    if rules:
        schema["x-kubernetes-validations"] = [{"rule": r.rule, "message": r.message} for r in rules_of(BatchJob)]
    return schema


def crd_yaml(*, rules: bool = True) -> str:
    """The CustomResourceDefinition as YAML, the same for the same models."""
    return _HEADER + yaml.dump(crd(rules=rules), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes everything out where it stands, with no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _column(name: str, kind: str, path: str, description: str, *, wide: bool = False) -> dict[str, Any]:
    column: dict[str, Any] = {"name": name, "type": kind, "jsonPath": path, "description": description}
    return {**column, "priority": 1} if wide else column


_READY: Final = '.status.conditions[?(@.type=="Ready")]'

_COLUMNS: Final = (
    _column("Phase", "string", ".status.phase", "What the job is about."),
    _column("Done", "string", ".status.done", "Rows with an outcome, and of how many."),
    _column("Percent", "string", ".status.progress", "Share of the rows that have an outcome."),
    _column("Failed", "integer", ".status.rows.failed", "Rows that ended with an error."),
    _column("Workers", "integer", ".status.workers.ready", "Workers that are ready."),
    _column("Rate", "integer", ".status.rowsPerMinute", "Rows a minute."),
    _column("Age", "date", ".metadata.creationTimestamp", "Since when the resource is there."),
    _column("Retried", "integer", ".status.rows.retried", "Attempts beyond the first.", wide=True),
    # A date would be shown as an age, and the future has none.
    _column("ETA", "string", ".status.estimatedCompletionTime", "When it would end at the rate of now.", wide=True),
    _column("Reason", "string", f"{_READY}.reason", "Why it is ready or not, in a word.", wide=True),
    _column("Message", "string", f"{_READY}.message", "Why it is ready or not, and what to do.", wide=True),
)


def main(arguments: list[str]) -> int:
    """Write the CustomResourceDefinition to a file, or to standard output."""
    parser = argparse.ArgumentParser(
        prog="python -m rowmill.spec.crd", description="Write the CustomResourceDefinition of BatchJob."
    )
    parser.add_argument("file", nargs="?", type=Path, help="where to; standard output when absent")
    parser.add_argument("--without-rules", action="store_true", help="leave the CEL rules out (Kubernetes before 1.23)")
    options = parser.parse_args(arguments)
    text = crd_yaml(rules=not options.without_rules)
    if options.file is None:
        sys.stdout.write(text)
        return 0
    try:
        options.file.parent.mkdir(parents=True, exist_ok=True)
        options.file.write_text(text, encoding="utf-8")
    except OSError as exc:
        parser.exit(1, f"{options.file} cannot be written: {exc.strerror}; check the path\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
