"""Errors that the user can fix. A message is one paragraph: key or file, value, what was expected, fix."""


class SolarError(ValueError):
    """Invalid user input: a key, an option, a file or a model. The message is written for the user."""


class ArgsError(SolarError):
    """A recipe key or a command-line option is unknown or has an invalid value."""


class PlanError(SolarError):
    """The arguments of a strategy do not give a valid layer plan for this base. Starts with the argument's name."""


class CheckpointError(SolarError):
    """A base model, or the output location of the upscaled model, cannot be used."""


class DataError(SolarError):
    """A dataset or its tokenizer cannot be used as the recipe requires."""


class EvaluationError(SolarError):
    """Evaluation results cannot be used for the requested table."""


class HubError(SolarError):
    """A repository on the Hub cannot be found, read or written, or its answer cannot be used."""


class EndpointError(SolarError):
    """A served model cannot be used: wrong address, key or model name, or no answer for too long."""


class PluginError(SolarError):
    """A plugin is missing or broken, or registers a name that is already taken."""


class LaunchError(SolarError):
    """The ranks of a run cannot connect to each other, or one rank failed and all ranks exit."""
