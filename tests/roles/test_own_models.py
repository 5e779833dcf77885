"""A run that is learned from the swarm has nothing imported that nobody here has allowed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from distqat import config
from distqat.config import RunConfig
from distqat.errors import ModelError
from distqat.roles.context import RoleOptions, RunHolder
from distqat.roles.expert import Expert
from distqat.roles.holding import check_model
from distqat.roles.mirror import Mirror
from distqat.rpc.local import Network
from tests.support import run_virtual

FOREIGN = "lib2to3.__main__:X"
"""To import it ends the process."""


def a_context(*overrides: str, model: str = FOREIGN) -> Any:
    """A daemon with these settings, which was told of a run with that model."""
    run = RunHolder()
    run.set(RunConfig.model_validate({"model": {"name": model, "stages": 1}}))
    settings = config.load(overrides=overrides)
    return SimpleNamespace(run=run, settings=settings, transport=Network().transport("host"))


@pytest.mark.parametrize("role", [lambda context: Expert(context, RoleOptions()), Mirror], ids=["expert", "mirror"])
def test_who_computes_refuses_what_is_not_allowed_and_names_the_setting(role: Any) -> None:
    async def scenario() -> None:
        with pytest.raises(ModelError, match=r"let daemon\.own_models hold 'lib2to3\.__main__:X', or a glob"):
            await role(a_context()).work()

    run_virtual(scenario())


@pytest.mark.parametrize("override", ["daemon.own_models=['lib2to3.*:*']", f"model.name='{FOREIGN}'"])
def test_what_the_daemons_own_settings_say_is_allowed(override: str) -> None:
    context = a_context(override)
    check_model(context, context.run.config)


def test_another_own_model_allows_nothing() -> None:
    context = a_context("model.name='mylab.models:Mine'", "daemon.own_models=['mylab.models:*']")
    with pytest.raises(ModelError, match="is code"):
        check_model(context, context.run.config)


def test_models_of_the_zoo_need_no_leave() -> None:
    context = a_context(model="gpt")
    check_model(context, context.run.config)
