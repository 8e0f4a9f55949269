"""Whose code the settings of a model may name: this package's, and that of modules which the user allows."""

from __future__ import annotations

import operator
import os

from jax_simcas.common.errors import UserError
from jax_simcas.run.config import Settings

ALLOWED = "JAX_SIMCAS_IMPORTS"  # the environment variable: modules, separated by commas
# The settings that may be `package.module:name`.
NAMED = (
    "backbone",
    *(f"simcas.{name}" for name in ("align", "policy", "reward", "credit", "attention")),
    *(f"optimizer.{name}" for name in ("schedule", "algorithm")),
)


def check_names(settings: Settings, where: str) -> Settings:
    """The settings of an exported or fetched model, if all code that they name may be imported.

    Such settings come with the weights, from anyone; those of a config file or a flag come from the user.

    Raises:
      UserError: one names a module that the user has not allowed.
    """
    allowed = [name.strip() for name in os.environ.get(ALLOWED, "").split(",")]
    for field in NAMED:
        name = operator.attrgetter(field)(settings)
        module, colon, _ = name.partition(":")
        if colon and module not in allowed:
            raise UserError(
                f"{where}: {field}={name!r} names code, which settings that come with a model may not import; if you "
                f"trust it, set the environment variable {ALLOWED}={module}"
            )
    return settings
