"""The exported folder brought to the Hugging Face hub, by its own client."""

import re
from pathlib import Path
from typing import Any

from mltune_cli import __version__
from mltune_cli.errors import MltuneError, NoVerdictError, UsageError

_TOO_MANY_REQUESTS = 429
_REQUEST_TIMEOUT = 408
_SERVER_ERRORS = 500
_REASONS = {
    401: "the hub does not take the token; make a new one, and set HF_TOKEN or run hf auth login",
    403: "the token may not write there; use one with the right to write",
    404: "there is no such place on the hub, or the token may not see it",
}


class HubUpload:
    """An upload that can start: the name is one, and there is a token.

    Args:
        repo_id: `name` or `owner/name` of a model on the hub.
        is_public: a new repository is public, and a public one may be written to.

    Raises:
        UsageError: the name cannot be one, there is no token, or the hub is switched off.
    """

    def __init__(self, repo_id: str, *, is_public: bool) -> None:
        from huggingface_hub import constants, get_token
        from huggingface_hub.errors import HFValidationError

        self._repo_id, self._is_public = repo_id, is_public
        try:
            _hub_utils().validate_repo_id(repo_id)
        except HFValidationError:
            raise UsageError(
                f"--push {repo_id}: is no name of a model on the hub; write it as owner/name"
            ) from None
        if constants.HF_HUB_OFFLINE:
            raise UsageError("--push: HF_HUB_OFFLINE is set in the environment; unset it to upload")
        self._token = ""
        try:
            self._token = get_token() or ""
        except Exception as error:  # noqa: BLE001 - asking may itself be a request that fails
            raise self._explained(error, "nothing was written") from None
        if not self._token:
            raise UsageError(
                "--push: there is no token for the hub; set HF_TOKEN or run hf auth login"
            )
        if not re.fullmatch(r"[!-~]+", self._token):
            # Sent as it is, it would be quoted in the error of whoever stumbles at it.
            raise UsageError(
                "--push: the token for the hub holds spaces or other characters that no token has; "
                "set HF_TOKEN anew or run hf auth login"
            )

    def send(self, folder: Path) -> str:
        """Make the repository where it is missing, and upload a folder.

        Args:
            folder: all of whose files are uploaded.

        Returns:
            The repository's full name, and whether it is public.

        Raises:
            UsageError: the hub refuses name or token, or the repository is public unasked.
            NoVerdictError: the hub cannot be reached, or fails.
        """
        from huggingface_hub import HfApi

        _hub_utils().disable_progress_bars()
        api = HfApi(token=self._token, library_name="mltune", library_version=__version__)
        try:
            made = api.create_repo(self._repo_id, private=not self._is_public, exist_ok=True)
            repo_id: str = made.repo_id
            # Whether a repository is private is decided when it is made: ours may be an old one.
            is_private = bool(api.repo_info(repo_id).private)
            is_exposed = not self._is_public and not is_private
            if not is_exposed:
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message="Upload by mltune export"
                )
        except Exception as error:  # noqa: BLE001 - its transport's errors share no base with it
            raise self._explained(error, f"{folder} stays as written") from None
        if is_exposed:
            raise UsageError(
                f"--push {repo_id}: is public already; pass --public to upload there, or choose "
                f"another name; {folder} stays as written"
            )
        return f"{repo_id} ({'private' if is_private else 'public'})"

    def _explained(self, error: Exception, rest: str) -> MltuneError:
        response: Any = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        is_refusal = (
            isinstance(status, int)
            and status < _SERVER_ERRORS
            and status not in (_REQUEST_TIMEOUT, _TOO_MANY_REQUESTS)
        )
        if is_refusal and status in _REASONS:
            reason = f"{_REASONS[status]} (status {status})"
        elif isinstance(status, int):
            said = getattr(error, "server_message", None) or "no explanation"
            reason = f"the hub answered with status {status}: {self._safe(str(said), error)}"
        else:
            reason = f"no upload to the hub: {self._safe(str(error), error)}"
        kind = UsageError if is_refusal else NoVerdictError
        return kind(f"--push {self._repo_id}: {reason}; {rest}")

    def _safe(self, text: str, error: Exception) -> str:
        """Return one short line without the token: clients may quote a header they stumble at."""
        lines = text.strip().splitlines() or [""]
        line = "".join(character for character in lines[0] if character.isprintable())[:200]
        has_secret = "bearer" in text.lower() or (self._token and self._token in text)
        return type(error).__name__ if has_secret or not line else line


def _hub_utils() -> Any:
    """Return the module whose names are public by its documentation, but not by its type hints."""
    import huggingface_hub.utils

    return huggingface_hub.utils
