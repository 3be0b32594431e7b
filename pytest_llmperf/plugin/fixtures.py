"""What the fixtures give to a test: models, and the session's handle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from pytest_llmperf.core.misspelt import suggesting
from pytest_llmperf.plugin.declarations import Declarations, strategy_text
from pytest_llmperf.session.declare import Declaration
from pytest_llmperf.session.handle import Handle
from pytest_llmperf.session.model import Model
from pytest_llmperf.session.session import LlmperfSession


class Fixtures:
    """Makes the models that tests ask for."""

    def __init__(self, core: LlmperfSession, declarations: Declarations) -> None:
        self._core = core
        self._declarations = declarations

    def llm(self, item: pytest.Item, param: object, *, engine: str | None = None) -> Model:
        """Return the model of a test, loaded."""
        model = self._model(self._declaration(item), param, engine=engine)
        model.load()
        return model

    def baseline(self, item: pytest.Item) -> Model:
        """Return the reference model of a test, which is loaded when first used."""
        return Model(self._core, self._core.reference_plan(self._declaration(item)))

    def factory(self, item: pytest.Item) -> Callable[..., Model]:
        """Return what `llm_factory` gives."""

        def make(
            strategy: str | None = None, *, engine: str | None = None, model: str | None = None
        ) -> Model:
            declared = self._declaration(item)
            if model is not None:
                declared = replace(declared, model=model)
            return self._model(declared, strategy, engine=engine)

        return suggesting(make, "llm_factory")

    def handle(self, item: pytest.Item) -> Handle:
        """Return what `llmperf` gives."""
        return Handle(self._core, self._declaration(item))

    def _model(self, declared: Declaration, param: object, *, engine: str | None) -> Model:
        plan = self._core.plan(declared, strategy_text(param), engine=engine)
        return Model(self._core, plan)

    def _declaration(self, item: pytest.Item) -> Declaration:
        return self._declarations.of(item).declaration
