"""Raw features of a data set, computed once for all that is measured at a cut."""

from torch import Tensor

from splitveil.data import Dataset
from splitveil.split import SplitModel
from splitveil.train import predict


class RawFeatures:
    """What the client's half makes of each part of a data set, computed when it is first asked for.

    Those of the last model are kept, since what is measured of one model comes together.
    """

    def __init__(self, data: Dataset) -> None:
        self._data = data
        self._split: SplitModel | None = None
        self._known: dict[str, Tensor] = {}

    def of(self, split: SplitModel, part: str) -> Tensor:
        """Features of a part's images, (N, *feature)."""
        if split is not self._split:
            self._split, self._known = split, {}
        if part not in self._known:
            self._known[part] = predict(split.client, self._data.parts[part])
        return self._known[part]
