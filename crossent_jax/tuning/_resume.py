"""Whether a study that exists may go on: it minimises one number, over the space that it was begun with."""

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from ._space import contains

SCORED = (TrialState.COMPLETE, TrialState.PRUNED)
FIXED = "fixed_params"  # Optuna's system attribute of a queued trial: the values that it shall have


def check_study(study: optuna.Study, chosen: Mapping[str, BaseDistribution]) -> None:
    """Raises ValueError unless all trials of the study are of this search. Changes nothing."""
    directions = [direction.name.lower() for direction in study.directions]
    if study.directions != [StudyDirection.MINIMIZE]:
        raise ValueError(_another(study, f"was made to {' and '.join(directions)}, and a search minimises one number"))
    for trial in study.get_trials(deepcopy=False):
        if difference := _difference(trial, chosen):
            raise ValueError(_another(study, f"holds another space: {difference} (its trial {trial.number})"))


def _another(study: optuna.Study, why: str) -> str:
    return (
        f"the study {study.study_name!r} in this storage {why}. Give another name or storage, or the space that it was "
        "begun with; nothing was changed."
    )


def _difference(trial: FrozenTrial, chosen: Mapping[str, BaseDistribution]) -> str | None:
    """The first parameter that a trial has otherwise than the space, in words."""
    for name, held in trial.distributions.items():
        if name not in chosen:
            return f"it has {name!r}, {held}, which this space lacks"
        if held != chosen[name]:
            return f"it has {name!r} as {held}, this space has {chosen[name]}"
    for name, value in _queued_values(trial).items():
        if name not in chosen:
            return f"it has {name!r} in its queue, which this space lacks"
        if not contains(chosen[name], value):
            return f"it has {name!r} = {value!r} in its queue, this space has {chosen[name]}"
    missing = [name for name in chosen if name not in trial.params] if trial.state in SCORED else []
    return f"it has no {missing[0]!r}, only {list(trial.params)}" if missing else None


def _queued_values(trial: FrozenTrial) -> Mapping[str, Any]:
    return trial.system_attrs.get(FIXED, {}) if trial.state == TrialState.WAITING else {}
