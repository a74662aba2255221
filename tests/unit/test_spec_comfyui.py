"""What a manifest may say of a ComfyUI workflow."""

from __future__ import annotations

from typing import Any

import pytest

from rowmill.errors import InvalidInput
from rowmill.spec import BatchJob, Place, not_available, parse_job

NODE = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "{{ row.order }}"}}


def job(**fields: Any) -> BatchJob:
    comfyui = {"url": "http://comfy:8188", "workflow": {"9": NODE}, **fields}
    return parse_job(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "orders"},
            "spec": {"source": {"rows": [{"order": "a"}]}, "executor": {"comfyui": comfyui}},
        },
        where="job.yaml",
    )


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"workflow": {"nodes": [], "links": []}},
            "workflow: is a workflow as the editor saves it, not in API format;",
        ),
        ({"workflow": {"prompt": {"9": NODE}}}, "workflow: is a request to the server, not a workflow;"),
        ({"workflow": {}}, "workflow: has no nodes;"),
        ({"workflow": {"9": {"inputs": {}}}}, "is no node in API format: it needs class_type and inputs"),
        ({"workflow": {"9": {"class_type": "A", "inputs": []}}}, "inputs: must be an object, name to value"),
        ({"outputNodes": ["8"]}, "outputNodes[0]: names a node that the workflow does not have; it has 9"),
        ({"url": "http://{{ row.order }}/"}, "url: holds a template, and the server is the same for every row"),
        ({"headers": [{"name": "X", "value": "{{ row.order }}"}]}, "headers[0].value: holds a template"),
        ({"headers": [{"name": "X", "value": "1"}, {"name": "x", "value": "2"}]}, "x is already set by headers[0]"),
        ({"store": {"uri": "made", "secretName": "s"}}, "store.secretName: goes with a uri in an object store"),
        ({"store": {"uri": "s3://me:pw@b/"}}, "store.uri: holds a user or password"),
        ({"store": {"uri": "s3://b/", "maxFileBytes": 0}}, "store.maxFileBytes"),
        ({"workflow": {"9": {"class_type": "A", "inputs": {"x": "{{ row.a"}}}}, "spec.executor.comfyui.workflow"),
    ],
)
def test_what_no_server_could_run_is_told_before_anything_is_sent(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        job(**fields)
    (line,) = caught.value.lines()
    assert line.startswith("job.yaml: spec.executor.comfyui")
    assert told in line


@pytest.mark.parametrize(
    ("uri", "local", "cluster"),
    [
        ("s3://bucket/images/", "", ""),
        ("made", "", "store.uri: is a path, and pods keep no files; take a folder by s3://"),
        ("file:///made", "", "store.uri: is a path, and pods keep no files"),
        (
            "https://h/made",
            "store.uri: files to https:// is not available",
            "store.uri: files to https:// is not avail",
        ),
    ],
)
def test_files_go_where_the_place_has_files(uri: str, local: str, cluster: str) -> None:
    for place, told in ((Place.LOCAL, local), (Place.CLUSTER, cluster)):
        problems = [f"{p.path}: {p.message}" for p in not_available(job(store={"uri": uri}), place)]
        assert len(problems) == bool(told)
        assert all(told in problem for problem in problems)
