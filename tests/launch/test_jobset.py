"""launch/k8s/jobset.yaml: valid against JobSet's schema, and restarts as exit codes say."""

import copy

import pytest
import yaml

from gpt_pjit.core.errors import EXIT_CONFIG, EXIT_INTEGRITY, EXIT_PREEMPTED
from tests.helpers import ROOT


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "launch" / "k8s" / "jobset.yaml").read_text())


@pytest.fixture
def job(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    return replicated["template"]["spec"]


def test_it_is_valid(jobset):
    """Kubeflow publishes the schema of JobSet, and of what is in one, as models."""
    models = pytest.importorskip("kubeflow_trainer_api.models", reason="wants kubeflow-trainer-api")
    schema = models.JobsetV1alpha2JobSet
    assert schema.from_dict(jobset).to_dict() == jobset  # a field that it does not know is dropped
    for path in (["spec"], ["spec", "replicatedJobs", 0, "template", "spec", "podFailurePolicy"]):
        wrong = copy.deepcopy(jobset)
        inner = wrong
        for name in path:
            inner = inner[name]
        inner["misspelt"] = 1
        assert schema.from_dict(wrong).to_dict() != wrong


def test_codes_that_a_retry_does_not_help_fail_the_set(jobset, job):
    first, second, third = job["podFailurePolicy"]["rules"]
    (container,) = job["template"]["spec"]["containers"]
    codes = {"containerName": container["name"], "operator": "In"}
    assert first == {
        "action": "FailJob", "onExitCodes": codes | {"values": [EXIT_INTEGRITY, EXIT_CONFIG]}
    }  # fmt: skip
    assert second == {"action": "Ignore", "onExitCodes": codes | {"values": [EXIT_PREEMPTED]}}
    assert third["action"] == "Ignore"
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what a podFailurePolicy requires
    (rule,) = jobset["spec"]["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])


def test_hosts_and_chips_are_those_of_the_topology(job):
    selector = job["template"]["spec"]["nodeSelector"]
    rows, columns = map(int, selector["cloud.google.com/gke-tpu-topology"].split("x"))
    (container,) = job["template"]["spec"]["containers"]
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == rows * columns // chips
