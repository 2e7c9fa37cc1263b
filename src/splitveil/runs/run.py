"""A run that is there: its model, data, cut and obfuscator."""

from pathlib import Path

from torch import nn

from splitveil.data import Dataset, Progress, Unlabelled, load_data, load_unlabelled
from splitveil.errors import RunError
from splitveil.files import is_there
from splitveil.models import TOLERANCE, answers_differ_by, check_precision, fixed_answers
from splitveil.obfuscate import Affine, Tables, read_obfuscator
from splitveil.runs.manifest import MANIFEST, OBFUSCATOR, Fitted, ImageSource, read_manifest
from splitveil.runs.sources import FunctionSource
from splitveil.runs.trust import check_made_here
from splitveil.soundness import share_of
from splitveil.split import SplitModel


class Run:
    """A trained model on disk, and possibly an obfuscator that was fitted to it.

    Args:
        folder: what `train_run` or `obfuscate_run` has written.
        trust: load a model that is code (a user's function, or a file of torch.export) though the run was made
            elsewhere; only for runs of people whose programs you would run.

    Raises:
        RunError: the folder is missing, damaged, or its training has not finished.
    """

    def __init__(self, folder: str | Path, *, trust: bool = False) -> None:
        self.folder, self.trust = Path(folder), trust
        self.manifest = read_manifest(self.folder / MANIFEST)
        if not is_there(self.folder / self.manifest.model.file):
            raise RunError(f"{folder} holds no finished training; run 'splitveil train --out {folder}' to its end")

    @property
    def fitted(self) -> Fitted | None:
        """Which obfuscator was fitted, and where; None where the run was only trained."""
        return self.manifest.obfuscator

    def model(self) -> nn.Module:
        """The trained model in evaluation mode.

        Raises:
            RunError: its file is damaged; it is code, and the run was made elsewhere; or it answers otherwise than
                when the run was made.
            ModelError: the user's own function or file gives no model any more.
        """
        source = self.manifest.model
        if source.runs_code and not self.trust:
            what = source.reference if isinstance(source, FunctionSource) else source.file
            check_made_here(self.folder, what)
        model = source.load(self.folder)
        check_precision(model)
        then = self.manifest.answers
        if then is not None and (gap := answers_differ_by(then, self._answers(model))) > TOLERANCE:
            raise RunError(
                f"the model of {self.folder} answers otherwise than when the run was made, by {share_of(gap)} of the "
                "answers' range on images that are always the same: its code has changed, or what no weights hold "
                "(plain tensors, buffers with persistent=False); restore it, or make the run again"
            )
        return model

    @property
    def is_bound(self) -> bool:
        """Whether the run holds answers by which its model is known again; those from before do not."""
        return self.manifest.answers is not None

    def _answers(self, model: nn.Module) -> tuple[float, ...] | None:
        try:
            return fixed_answers(model, self.manifest.model.input_shape)
        except Exception as error:  # whatever the user's own code raises
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"the model of {self.folder} answers no more ({reason}); restore its code") from error

    def split(self) -> SplitModel:
        """The model, cut where its obfuscator was fitted; raises `RunError` where there is none."""
        return SplitModel(self.model(), at=self._fitted().cut)

    def obfuscator(self) -> Affine | Tables:
        """The fitted obfuscator; raises `RunError` where there is none, or its file is damaged."""
        self._fitted()
        veil = read_obfuscator(self.folder / OBFUSCATOR)
        if not isinstance(veil, Affine | Tables):
            raise RunError(f"{self.folder / OBFUSCATOR} holds no obfuscator; run 'splitveil obfuscate' again")
        return veil

    def data(self, root: str | Path | None = None, progress: Progress | None = None) -> Dataset:
        """The data set that the run was trained on, or fitted to.

        Raises:
            RunError: what is found there now is not the same data, or there are only images without labels.
            DataError: it cannot be loaded.
        """
        source = self.manifest.data
        if isinstance(source, ImageSource):
            raise RunError(
                f"{self.folder} was fitted to images without labels ({source.folder}), but labels are needed here; "
                "take a run on a data set"
            )
        data = load_data(source.name, root=root, progress=progress, **source.options)
        if data.digest != source.digest:
            raise RunError(
                f"the data set {source.name!r} has changed since {self.folder} was trained; restore it or train again"
            )
        return data

    def samples(self, root: str | Path | None = None, progress: Progress | None = None) -> Dataset | Unlabelled:
        """What a profile is measured on: the data set, or images of which some were kept from the fit.

        Raises:
            RunError: what is found there now are not the same images.
            DataError: they cannot be loaded.
        """
        if isinstance(self.manifest.data, ImageSource):
            return self._images(self.manifest.data, progress)
        return self.data(root, progress)

    def classes(self, data: object) -> tuple[str, ...]:
        """Names of the answers: what the user gave, else the data set's, else numbers."""
        if self.manifest.classes is not None:
            return self.manifest.classes
        return data.classes if isinstance(data, Dataset) else tuple(map(str, range(self.manifest.model.n_classes)))

    def _fitted(self) -> Fitted:
        if self.fitted is None:
            raise RunError(f"{self.folder} was only trained; fit an obfuscator to it with 'splitveil obfuscate'")
        return self.fitted

    def _images(self, source: ImageSource, progress: Progress | None) -> Unlabelled:
        images = load_unlabelled(source.folder, self.manifest.model.input_shape, progress=progress)
        if images.digest != source.digest:
            raise RunError(
                f"the images in {source.folder} have changed since {self.folder} was made; restore them or obfuscate "
                "again"
            )
        return images
