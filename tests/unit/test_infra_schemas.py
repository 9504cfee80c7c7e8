"""`infra/` against the published schemas: the compose specification's, and strict ones of Kubernetes.

KubeRay's own definitions are in no package; the pods that its objects are made of are checked here.
"""

from __future__ import annotations

import json
import re
from copy import deepcopy
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator, ValidationError

from tests.unit.test_infra import INFRA, KUBERNETES, documents, nodes

KUBERNETES_VERSION = "1.37"
# Prefect's worker insists on them in the pod's specification, where Kubernetes has no such fields.
OF_PREFECT = ("parallelism", "completions")


@cache
def compose_schema() -> Draft202012Validator:
    path = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    return Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def check(item: dict[str, Any]) -> None:
    kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)


def pod_of(template: dict[str, Any]) -> dict[str, Any]:
    """A pod's template as an object that has a schema of its own."""
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template}


@pytest.mark.parametrize("name", ["compose.yaml", "compose.gpu.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    compose_schema().validate(documents(INFRA / name)[0])


def test_the_specification_knows_a_mistake() -> None:
    wrong = deepcopy(documents(INFRA / "compose.yaml")[0])
    wrong["services"]["mlflow"]["healthchek"] = {}
    with pytest.raises(ValidationError, match="healthchek"):
        compose_schema().validate(wrong)


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_kubernetes_objects_and_pods_follow_their_schemas(path: Path) -> None:
    checked = 0
    for item in documents(path):
        templates = [node["template"] for node in nodes(item) if "spec" in node.get("template", {})]
        known = not item["apiVersion"].startswith("ray.io/")
        for one in [item] if known else map(pod_of, templates):
            check(one)
            checked += 1
    assert checked > 1


def test_the_schemas_know_a_mistake() -> None:
    wrong = deepcopy(documents(INFRA / "kubernetes" / "base.yaml")[0])
    wrong["metadata"]["lables"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="lables"):
        check(wrong)


def test_the_work_pools_job_follows_its_schema() -> None:
    """With the template's own defaults, as Prefect fills it."""
    template = json.loads((INFRA / "kubernetes" / "prefect-job-template.json").read_text())
    defaults = {name: p.get("default") for name, p in template["variables"]["properties"].items()}

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: new for key, v in value.items() if (new := filled(v)) is not None}
        if isinstance(value, list):
            return [filled(v) for v in value]
        if isinstance(value, str) and (whole := re.fullmatch(r"{{ (\w+) }}", value)):
            return defaults[whole[1]]
        return value

    job = filled(template["job_configuration"]["job_manifest"])
    pod = job["spec"]["template"]["spec"]
    assert [pod.pop(field) for field in OF_PREFECT] == [1, 1]
    job["metadata"].setdefault("name", "x")
    check(job)
