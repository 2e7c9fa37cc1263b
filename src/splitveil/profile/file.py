"""A profile's file, read as strictly as it was measured."""

import json
from pathlib import Path

from pydantic import ValidationError

from splitveil.errors import ProfileError
from splitveil.files import write_json
from splitveil.profile.schema import SCHEMA_VERSION, Profile


def read_profile(path: str | Path) -> Profile:
    """The profile in a file that `splitveil profile` has written.

    Raises:
        ProfileError: it is missing, damaged, of another version, or its numbers contradict each other.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text)
    except FileNotFoundError as error:
        raise ProfileError(f"{path} does not exist; make one with 'splitveil profile RUN'") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ProfileError(
            f"{path} cannot be read as JSON ({error}); make it again with 'splitveil profile'"
        ) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != SCHEMA_VERSION:
        raise ProfileError(f"{path} is a profile of version {version}, but version {SCHEMA_VERSION} is read here; "
                           "make it again, or update splitveil")  # fmt: skip
    try:
        return Profile.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "as a whole"
        raise ProfileError(
            f"{path} is not a valid profile ({place}: {first['msg']}); make it again with 'splitveil profile'"
        ) from error


def write_profile(path: str | Path, profile: Profile) -> None:
    """Write a profile as JSON, whole or not at all; raises `RunError` where the folder cannot be written."""
    write_json(Path(path), profile.model_dump(mode="json"))
