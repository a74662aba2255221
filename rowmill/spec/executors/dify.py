"""A Dify workflow or app."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from rowmill.spec.base import ID_OF_WORKFLOW, Bool, Finding, JsonObject, Listed, Part
from rowmill.spec.executors.base import Executor, QueryText, Template, Url, ValueFrom


class DifyFile(Part):
    """A file that Dify fetches by its URL."""

    type: Literal["document", "image", "audio", "video", "custom"] = Field(
        default="image", description="What kind of file it is to the app."
    )
    url: Template = Field(description="Where Dify finds it; a template.", examples=["{{ row.photo_url }}"])


class DifyExecutor(Executor):
    """A run of a Dify workflow, or a message to a Dify app."""

    templated: ClassVar[tuple[str, ...]] = ("inputs", "query", "files", "user")
    queries: ClassVar[tuple[str, ...]] = ("result",)

    base_url: Url = Field(description="The server, up to and with /v1.", examples=["http://dify.ai.svc/v1"])
    api_key: ValueFrom = Field(description="Where the app's key is found.")
    app: Literal["Workflow", "Chat", "Completion"] = Field(
        default="Workflow", description="What kind of app the key is of; chatflows and agents are Chat."
    )
    workflow_id: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=ID_OF_WORKFLOW)] | None = Field(
        default=None, description="A published version of the workflow; the newest when absent."
    )
    inputs: JsonObject = Field(
        default_factory=dict,
        description="The app's inputs, name to value; templates. A file is an object with type, "
        "transfer_method: remote_url, and url.",
        examples=[{"subject": "{{ row.subject }}"}],
    )
    query: Template | None = Field(default=None, description="What a Chat app is asked; a template.")
    files: Annotated[tuple[DifyFile, ...], Field(max_length=32), Listed] = Field(
        default=(), description="Files of a message to a Chat or Completion app."
    )
    user: Template = Field(
        default="{{ job.namespace }}/{{ job.name }}", description="The user that Dify counts the run to; a template."
    )
    response_mode: Literal["Streaming", "Blocking"] = Field(
        default="Streaming",
        description="Streaming survives proxies that cut quiet connections, and stops a run whose row ran out of time; "
        "agents know nothing else.",
    )
    accept_partial: Bool = Field(
        default=True,
        description="Whether a workflow that ended partial-succeeded (a node failed, and its error was handled) is a "
        "result.",
    )
    result: QueryText | None = Field(
        default=None,
        description="JMESPath into the answer, @ being all of it. When absent, data.outputs of a workflow, and answer "
        "of the others.",
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        app = given.get("app", "Workflow")
        findings: list[Finding] = []
        if app == "Chat" and given.get("query") is None:
            findings.append((("query",), "is missing, and a Chat app needs it; say what the app is asked"))
        if app == "Workflow" and given.get("query") is not None:
            findings.append((("query",), "goes with app Chat or Completion only; put it into inputs"))
        if app == "Workflow" and given.get("files"):
            findings.append((("files",), "goes with app Chat or Completion only; put the file into inputs"))
        if app == "Completion" and given.get("workflowId") is not None:
            findings.append((("workflowId",), "goes with app Workflow or Chat only; leave it out"))
        return findings
