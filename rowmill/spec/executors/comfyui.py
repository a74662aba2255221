"""A ComfyUI workflow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final

from pydantic import AfterValidator, Field, StringConstraints

from rowmill.spec.base import DnsSubdomain, Finding, Int, JsonObject, Listed, NoTraps, Part, unique
from rowmill.spec.executors.base import MARKUP, Executor, Header, QueryText, Url, repeated_headers
from rowmill.spec.source import Uri, secret_without_store

_NODES_TOLD: Final = 10


class ComfyUIStore(Part):
    """Where the files go that a workflow makes."""

    uri: Uri = Field(
        description="A folder, in an object store (s3://, gs://, az://) or, without a cluster, by path (a relative one "
        "counts from the folder of the manifest). Files lie below it as JOB/RUN/SEQ-….",
        examples=["s3://bucket/images/"],
    )
    secret_name: DnsSubdomain | None = Field(
        default=None,
        description="Secret in the job's namespace with the credentials of the object store. Without it the worker's "
        "own identity and environment count.",
    )
    max_file_bytes: Annotated[Int, Field(ge=1, le=5_368_709_120)] = Field(
        default=104_857_600, description="A larger file fails its row."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        return secret_without_store(given)


class ComfyUIExecutor(Executor):
    """A prompt of a ComfyUI server."""

    templated: ClassVar[tuple[str, ...]] = ("workflow",)
    queries: ClassVar[tuple[str, ...]] = ("result",)

    url: Url = Field(
        description="The server. The same for every row: no template.", examples=["http://comfyui.images.svc:8188"]
    )
    headers: Annotated[tuple[Header, ...], Field(max_length=64), Listed] = Field(
        default=(),
        description="Headers of every request, for a proxy before the server. The same for every row: no templates.",
    )
    workflow: JsonObject = Field(
        description="The workflow in API format, node id to class_type and inputs; templates may stand in its inputs.",
        examples=[{"6": {"class_type": "CLIPTextEncode", "inputs": {"text": "{{ row.prompt }}", "clip": ["4", 1]}}}],
    )
    output_nodes: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=64), NoTraps], ...],
        Field(max_length=64),
        AfterValidator(unique),
        Listed,
    ] = Field(default=(), description="Nodes whose outputs are the result; all when empty.")
    store: ComfyUIStore | None = Field(
        default=None,
        description="Where files are put. When absent they stay at the server, and the result has its links to them.",
    )
    result: QueryText | None = Field(
        default=None,
        description="JMESPath into {promptId, files: [{node, name, uri, bytes, type}], values}; all of it when absent.",
        examples=["files[0].uri"],
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        findings = repeated_headers(given.get("headers"))
        if isinstance(url := given.get("url"), str) and MARKUP.search(url):
            findings.append((("url",), "holds a template, and the server is the same for every row; write it out"))
        headers = given.get("headers")
        for i, header in enumerate(headers if isinstance(headers, list | tuple) else ()):
            value = header.get("value") if isinstance(header, dict) else getattr(header, "value", None)
            if isinstance(value, str) and MARKUP.search(value):
                findings.append(
                    (("headers", i, "value"), "holds a template, and headers are the same for every row; write it out")
                )
        workflow = given.get("workflow")
        if isinstance(workflow, dict):
            found = list(_workflow(workflow))
            findings += found
            findings += [] if found else _output_nodes(given.get("outputNodes"), workflow)
        return findings


def _workflow(workflow: Mapping[Any, Any]) -> Iterator[Finding]:
    if not workflow:
        yield ("workflow",), "has no nodes; paste the workflow, exported in API format"
        return
    if isinstance(workflow.get("nodes"), list):
        yield (
            ("workflow",),
            "is a workflow as the editor saves it, not in API format; export it by Save (API Format), which newer "
            "editors call Export (API)",
        )
        return
    inner = workflow.get("prompt")
    if isinstance(inner, dict) and "class_type" not in inner:
        yield ("workflow",), "is a request to the server, not a workflow; take what stands under its prompt"
        return
    told = 0
    for node, content in workflow.items():
        if not isinstance(content, dict) or not isinstance(content.get("class_type"), str):
            yield ("workflow", str(node)), "is no node in API format: it needs class_type and inputs"
        elif not isinstance(content.get("inputs", {}), dict):
            yield ("workflow", str(node), "inputs"), "must be an object, name to value"
        elif not 0 < len(str(node)) <= 64:
            yield ("workflow", str(node)[:64]), "has a node id of more than 64 characters, or none"
        else:
            continue
        told += 1
        if told == _NODES_TOLD:
            return


def _output_nodes(wanted: Any, workflow: Mapping[Any, Any]) -> list[Finding]:
    nodes = ", ".join(list(map(str, workflow))[:20])
    return [
        (("outputNodes", i), f"names a node that the workflow does not have; it has {nodes}")
        for i, node in enumerate(wanted if isinstance(wanted, list | tuple) else ())
        if isinstance(node, str) and node not in workflow
    ]
