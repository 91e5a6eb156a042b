"""The errors that a user can mend: one paragraph with the key or file, what was found, what was expected, the fix."""


class SolarError(ValueError):
    """Something the user wrote or pointed at cannot be used. The text is meant to be read by that user."""


class ArgsError(SolarError):
    """A key of the ``solar:`` block or an option of a command is unknown or has an impossible value."""


class PlanError(SolarError):
    """A strategy's arguments give no valid layer plan for this base. The text starts with the argument's name."""


class CheckpointError(SolarError):
    """A base model, or the place the upscaled one should go, cannot be used."""


class DataError(SolarError):
    """A dataset, or the tokenizer that should read it, cannot be used for what the recipe asks."""


class EvaluationError(SolarError):
    """Results of an evaluation cannot be used for the table that was asked for."""


class PluginError(SolarError):
    """A registered plugin is missing, broken, or claims a name that is taken."""


class LaunchError(SolarError):
    """The ranks of a run cannot meet, or one of them failed and the others cannot go on without it."""
