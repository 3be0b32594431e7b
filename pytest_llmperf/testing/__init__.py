"""For those who write engines, and tests of this plugin: a scripted engine, a virtual clock, and conformance checks."""

from pytest_llmperf.engines.scripted import ScriptedEngine
from pytest_llmperf.engines.virtual_clock import VirtualClock
from pytest_llmperf.testing.conformance import CHECKS, Check, NonConforming, check_engine, scripted_plan

__all__ = ["CHECKS", "Check", "NonConforming", "ScriptedEngine", "VirtualClock", "check_engine", "scripted_plan"]
