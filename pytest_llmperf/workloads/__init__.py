"""What is asked of a model: workloads and the prompts they carry. Values only."""

from pytest_llmperf.core.metrics.slo import Slo
from pytest_llmperf.workloads.batch import Batch
from pytest_llmperf.workloads.conversations import Conversations, Turn
from pytest_llmperf.workloads.generate import Decode, Lockstep, Prefill, Workload, describe
from pytest_llmperf.workloads.prompts import PromptSet
from pytest_llmperf.workloads.serve import Serve, describe_serve, recorded_serve
from pytest_llmperf.workloads.serve_checks import GENERATORS
from pytest_llmperf.workloads.tasks import Task, TaskAnswer, TaskSet
from pytest_llmperf.workloads.traffic import Traffic

__all__ = [
    "GENERATORS",
    "Batch",
    "Conversations",
    "Decode",
    "Lockstep",
    "Prefill",
    "PromptSet",
    "Serve",
    "Slo",
    "Task",
    "TaskAnswer",
    "TaskSet",
    "Traffic",
    "Turn",
    "Workload",
    "describe",
    "describe_serve",
    "recorded_serve",
]
