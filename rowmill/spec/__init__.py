"""The `BatchJob` manifest: its models, how it is read and checked, and what follows from it alone."""

from rowmill.spec.available import Place, check_available, not_available
from rowmill.spec.concurrency import default_in_flight, effective_concurrency, gathers_rows, slot_bounds
from rowmill.spec.frozen import executor_digest, frozen_changes, frozen_part
from rowmill.spec.job import API_VERSION, KIND, BatchJob, Spec, json_schema
from rowmill.spec.keys import BadKey, canonical_key, key_value
from rowmill.spec.load import load_manifest, load_manifest_file, parse_job
from rowmill.spec.naming import identity_of
from rowmill.spec.templates import columns_used, missing_columns

__all__ = [
    "API_VERSION",
    "KIND",
    "BadKey",
    "BatchJob",
    "Place",
    "Spec",
    "canonical_key",
    "check_available",
    "columns_used",
    "default_in_flight",
    "effective_concurrency",
    "executor_digest",
    "frozen_changes",
    "frozen_part",
    "gathers_rows",
    "identity_of",
    "json_schema",
    "key_value",
    "load_manifest",
    "load_manifest_file",
    "missing_columns",
    "not_available",
    "parse_job",
    "slot_bounds",
]
