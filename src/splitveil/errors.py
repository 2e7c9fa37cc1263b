"""Every error that a caller can cause; one sentence each that says what to do."""


class SplitveilError(Exception):
    """Base of all errors that splitveil raises for a user's mistake (exit code 2 on the command line)."""


class MissingExtraError(SplitveilError, ImportError):
    """A feature needs an optional part of the installation."""


class DataError(SplitveilError, ValueError):
    """A data set is missing, malformed or does not fit the request."""


class ModelError(SplitveilError, ValueError):
    """A model cannot be built, loaded or traced as asked."""


class SplitError(SplitveilError, ValueError):
    """A model cannot be cut at the place asked for."""


class NoLinearLayerError(SplitError):
    """What the server does first with the feature is not a linear map, so there is no null space."""


class OperatorError(SplitveilError, ValueError):
    """A layer has no such operator, or the operator cannot do what was asked."""


class RankError(SplitveilError, ValueError):
    """The number of components asked for does not exist."""


class ShapeError(SplitveilError, ValueError):
    """A tensor's shape does not fit."""


class DistortionError(SplitveilError, ValueError):
    """A distortion bound is impossible or cannot be met with the factors at hand."""


class WireError(SplitveilError, ValueError):
    """Bytes from the other side are not a valid frame, or a message does not fit into one."""


class CertificateError(SplitveilError, ValueError):
    """There is no such certificate, or its bound is asked of numbers that are no chances or counts."""


class BudgetError(SplitveilError, RuntimeError):
    """A budget's file cannot be used, or not as asked."""


class BudgetSpentError(BudgetError):
    """A query would tell more of a subject than the budget allows; nothing was debited."""


class BundleError(SplitveilError, ValueError):
    """A bundle is missing, damaged, of another version or model, or not signed as required."""


class GraphError(BundleError):
    """A graph is not one that a bundle may hold.

    Attributes:
        place: in the file, such as "model.graph.node[3]".
        reason: what is wrong there.
    """

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(
            f"a graph cannot be loaded: it is not one that 'splitveil export' writes ({place}: {reason}); export again"
        )
        self.place, self.reason = place, reason


class ExportError(SplitveilError, ValueError):
    """A run cannot be exported as asked."""


class ServeError(SplitveilError, ValueError):
    """A server cannot be started or set up as asked."""


class RemoteError(SplitveilError, RuntimeError):
    """A server cannot be asked as wished, did not answer, or refused the request."""


class RecipeError(SplitveilError, ValueError):
    """A training recipe has an unknown or impossible setting."""


class TrainingError(SplitveilError, RuntimeError):
    """Training cannot go on; the last good checkpoint is kept."""


class RunError(SplitveilError, ValueError):
    """A run's folder is missing, damaged, or belongs to something else."""


class AttackError(SplitveilError, ValueError):
    """An attack cannot be mounted on what it was given."""


class BaselineError(SplitveilError, ValueError):
    """A baseline cannot be fitted as asked."""


class ProfileError(SplitveilError, ValueError):
    """A profile is missing, damaged, of another model, or cannot be measured as asked."""


class NoChoiceError(ProfileError):
    """No row of a profile meets the wishes.

    Attributes:
        nearest: the row that comes nearest, in plain values for JSON.
    """

    def __init__(self, sentence: str, nearest: dict[str, object]) -> None:
        super().__init__(sentence)
        self.nearest = nearest


class ExperimentError(SplitveilError, ValueError):
    """An experiment cannot be run as asked, or the file of one of its rows is damaged."""


class TelemetryWarning(UserWarning):
    """A library that reports to its maker may have done so before splitveil could switch it off."""
