"""Which models are served, where they come from, and how a new one takes the place of an old one."""

import asyncio
import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

from splitveil.bundle import give_back_memory
from splitveil.errors import BundleError, ServeError
from splitveil.files import is_there
from splitveil.serve.changes import Change, Changes
from splitveil.serve.folders import folders_in, look, versions_in
from splitveil.serve.logs import own
from splitveil.serve.metrics import Metrics
from splitveil.serve.model import Model
from splitveil.serve.refusal import RefusedError
from splitveil.serve.settings import Settings

MANIFEST = "manifest.json"
# Names come from clients too: none may lead out of a root.
_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
By = Literal["start", "watch", "hangup", "client"]
_log = logging.getLogger("splitveil.serve")


@dataclass
class Place:
    """Where one version of one model comes from.

    Attributes:
        folder: of its server bundle.
        version: under which it is offered.
        model: what is served; None while it is unloaded.
        seen: what the folder's files looked like when they were last read.
        refused: why the last attempt to load failed; empty if it did not.
    """

    folder: Path
    version: str
    model: Model | None = None
    seen: tuple[object, ...] = ()
    refused: str = ""


@dataclass
class Models:
    """All models of a server. Make it with `open_models`.

    Attributes:
        settings: of the server.
        metrics: of the application.
        roots: folders of NAME/VERSION bundles, in which new versions may appear.
        places: by model and version.
    """

    settings: Settings
    metrics: Metrics
    roots: list[Path]
    places: dict[str, dict[str, Place]] = field(default_factory=dict)
    # One for all, as the C library keeps what was freed for the thread that it was freed in.
    _thread: ThreadPoolExecutor = field(default_factory=partial(ThreadPoolExecutor, 1, "splitveil-load"))

    def __post_init__(self) -> None:
        self._changes = Changes(self._make)

    def get(self, name: str, version: str = "") -> Model:
        """The model of that name: the highest version where none is named.

        Raises:
            RefusedError: there is none.
        """
        versions = self.places.get(name)
        if versions:
            if version:
                place = versions.get(version)
                if place and place.model:
                    return place.model
            else:
                for place in versions.values():  # sorted, the highest first
                    if place.model:
                        return place.model
        raise RefusedError(
            "missing", f"no model {name[:100]!r}{f' of version {version[:20]!r}' if version else ''} here"
        )

    @property
    def all(self) -> list[Place]:
        """Every version of every model."""
        return [place for versions in self.places.values() for place in versions.values()]

    @property
    def loaded(self) -> list[Model]:
        """All models that are served."""
        return [place.model for place in self.all if place.model]

    async def load(self, name: str) -> None:
        """Read all versions of a model again; a bad bundle leaves the one that is served in its place.

        Raises:
            RefusedError: there is no such model, a bundle was refused, or too many changes wait.
        """
        self._check_known(name)
        await self._changes.ask("load", name)

    async def unload(self, name: str) -> None:
        """Serve a model no more, until it is loaded again; raises `RefusedError` as `load` does."""
        self._check_known(name)
        await self._changes.ask("unload", name)

    def _check_known(self, name: str) -> None:
        """Raises `RefusedError` where there is no such model, nor may be one in a root."""
        if not (
            self.places.get(name) or (_NAME.fullmatch(name) and any(versions_in(root / name) for root in self.roots))
        ):
            raise RefusedError("missing", f"no model {name[:100]!r} here")

    async def _make(self, change: Change, name: str) -> RefusedError | None:
        """Make a change for a client; why it was refused, if it was."""
        if change == "load":
            self._find(name)
        places = list(self.places.get(name, {}).values())
        if not places:
            return RefusedError("missing", f"no model {name[:100]!r} here")
        for place in places:
            if change == "load":
                await self._renew(name, place, "client")
            else:
                self._forget(place)
                give_back_memory()
        if change == "load" and any(place.refused for place in places):
            return RefusedError("invalid", f"a bundle of {name!r} is refused; the server's log says why")
        return None

    async def reload(self) -> None:
        """Read all models again, for the operator."""
        async with self._changes.turn:
            for name in self._names():
                self._find(name)
                for place in self.places.get(name, {}).values():
                    await self._renew(name, place, "hangup")

    async def refresh(self, before: dict[Path, tuple[object, ...]]) -> dict[Path, tuple[object, ...]]:
        """Load what has changed on disk, once it stands still.

        Args:
            before: what the folders looked like at the last call.

        Returns:
            What they look like now.
        """
        async with self._changes.turn:
            for name in self._names():
                self._find(name)
            now = {place.folder: look(place.folder) for place in self.all}
            for name, versions in self.places.items():
                for place in versions.values():
                    seen = now[place.folder]
                    if seen != place.seen and seen == before.get(place.folder):
                        await self._renew(name, place, "watch")
        return now

    def _names(self) -> set[str]:
        """Of all models that are known, and of those that may have appeared."""
        return {*self.places, *(path.name for root in self.roots for path in folders_in(root))}

    async def _renew(self, name: str, place: Place, by: By) -> None:
        """Swap in what the folder holds now, if it is good."""
        place.seen = look(place.folder)
        try:
            model = await asyncio.get_running_loop().run_in_executor(
                self._thread, load, place, self.settings, self.metrics
            )
            if model.name != name:
                raise BundleError(f"{place.folder} holds the model {model.name!r} now, not {name!r}; serve it anew")
        except BundleError as error:
            place.refused = str(error)
            self.metrics.reloads.labels("refused").inc()
            _log.error("bundle refused", extra=_said(
                by, model=name, version=place.version, reason=str(error), still_served=place.model is not None,
            ))  # fmt: skip
        else:
            self._forget(place)
            give_back_memory()
            self._serve(place, model, by)

    def _serve(self, place: Place, model: Model, by: By) -> None:
        place.model, place.refused = model, ""
        self.metrics.reloads.labels("loaded").inc()
        self.metrics.models.labels(model.name, place.version, model.manifest.identity).set(1)
        _log.info("loaded", extra=_said(
            by, model=model.name, version=place.version, identity=model.manifest.identity, mixes=model.mixes,
        ))  # fmt: skip

    def _forget(self, place: Place) -> None:
        if place.model:
            self.metrics.models.remove(place.model.name, place.version, place.model.manifest.identity)
        place.model = None

    def _find(self, name: str) -> None:
        """Versions that have appeared or gone in the roots."""
        for root in self.roots:
            folders = {path.name: path for path in versions_in(root / name)} if _NAME.fullmatch(name) else {}
            versions = self.places.setdefault(name, {}) if folders else self.places.get(name, {})
            for version, path in folders.items():
                if version not in versions:
                    versions[version] = Place(path, version)
            for version, place in list(versions.items()):
                if place.folder.parent == root / name and version not in folders:
                    self._forget(versions.pop(version))
            if versions:
                self.places[name] = _sorted(versions)


def open_models(folders: Sequence[str | Path], settings: Settings) -> Models:
    """Load the bundles of some folders.

    Args:
        folders: each a server bundle, offered as version 1, or a folder of NAME/VERSION bundles, the versions being
            numbers. The model's name is the one that the bundle was exported under.
        settings: of the server.

    Raises:
        BundleError: a bundle is not whole, not signed as asked, or its graph does not run.
        ServeError: a folder holds no bundles, or two bundles have the same name and version.
    """
    models = Models(settings, Metrics(), [])
    for folder in map(Path, folders):
        found = _places(folder, models)
        for place in found:
            place.seen = look(place.folder)
            model = load(place, settings, models.metrics)
            named = place.folder.parent.name if place.folder != folder else model.name
            if named != model.name:
                raise ServeError(
                    f"{place.folder} holds the model {model.name!r}; name the folder above it so, or export it "
                    f"with --name {named}"
                )
            versions = models.places.setdefault(model.name, {})
            if place.version in versions:
                raise ServeError(
                    f"{place.folder} is a second model {model.name!r} of version {place.version}; export one "
                    f"under another --name, or put versions of one model into {model.name}/1 and {model.name}/2"
                )
            versions[place.version] = place
            models._serve(place, model, "start")
            models.places[model.name] = _sorted(versions)
    if not models.places:
        raise ServeError("there is no bundle to serve; name a folder 'server' that 'splitveil export' wrote")
    return models


def load(place: Place, settings: Settings, metrics: Metrics) -> Model:
    """The model of a place, checked whole and warmed; raises `BundleError`."""
    return Model(place.folder, place.version, settings, metrics)


def _said(by: By, **fields: object) -> dict[str, object]:
    """For a line about a bundle: clients cause as many as they like, all others are the operator's."""
    return {**own(by=by, **fields), "own": by != "client"}


def _places(folder: Path, models: Models) -> list[Place]:
    if is_there(folder / MANIFEST) or not folder.is_dir():
        return [Place(folder, "1")]  # reading it says what is wrong with it, if anything
    if is_there(folder / "server" / MANIFEST):
        raise ServeError(f"{folder} holds both bundles of an export; serve {folder / 'server'}")
    found = [Place(path, path.name) for name in folders_in(folder) for path in versions_in(name)]
    if not found:
        raise ServeError(
            f"{folder} holds no server bundle, nor NAME/VERSION folders of them; name what 'splitveil export' wrote"
        )
    models.roots.append(folder)
    return found


def _sorted(versions: dict[str, Place]) -> dict[str, Place]:
    return dict(sorted(versions.items(), key=lambda item: int(item[0]), reverse=True))
