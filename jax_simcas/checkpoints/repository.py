"""Models on the Hugging Face hub: which files they consist of, fetching them, and uploading them in one commit.

Everything goes through huggingface_hub's client, which takes the token of HF_TOKEN or of `hf auth login`, the address
of HF_ENDPOINT and the cache of HF_HOME.
"""

from __future__ import annotations

import errno
import glob
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

from jax_simcas.common import files
from jax_simcas.common.errors import NoSuchModel, UserError, first_line

SAFETENSORS, MSGPACK = "model.safetensors", "flax_model.msgpack"
HUB_BIN, RELEASED_BIN = "pytorch_model.bin", "model_generation.bin"
# The lists of sharded files.
INDEXES = SAFETENSORS_INDEX, BIN_INDEX = f"{SAFETENSORS}.index.json", f"{HUB_BIN}.index.json"
# In the order in which they are looked for.
WEIGHTS = (SAFETENSORS, SAFETENSORS_INDEX, MSGPACK, HUB_BIN, BIN_INDEX, RELEASED_BIN)
ADAPTER = "adapter_config.json"  # of peft
PASSENGERS = "passengers.safetensors"  # weights that nothing here reads, where the file of weights cannot hold them
CONFIG, EXTRA, GENERATION, CARD = "config.json", "jax_simcas.json", "generation_config.json", "README.md"
# Of every tokenizer that transformers has: what it says of itself, vocabularies, merges, sentencepiece models.
TOKENIZERS = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "*vocab*.json",
    "*vocab*.txt",
    "dict*.txt",
    "merges.txt",
    "*.bpe",
    "bpe.codes",
    "*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
)
HUB_SECONDS = 20.0  # after which the hub counts as unreachable
DEFAULT_BRANCH = "main"
LOG_IN = "log in (hf auth login, or the variable HF_TOKEN)"
NAME = r"[\w.-]{1,96}"
ID = re.compile(rf"(?P<name>{NAME}(?:/{NAME})?)(?:@(?P<revision>[\w.+-][\w./+-]*))?", re.ASCII)


class HubId(NamedTuple):
    """A repository, `owner/name`, and a branch, tag or commit of it; None: its main branch."""

    name: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str) -> HubId | None:
        """`owner/name` or `owner/name@revision`; None for a text that is neither."""
        found = ID.fullmatch(text)
        parts = found["name"].split("/") if found else []
        if not found or any(part[0] in ".-" or part[-1] in ".-" for part in parts):
            return None
        if any(wrong in found["name"] for wrong in ("--", "..")) or found["name"].endswith(".git"):
            return None
        return cls(found["name"], found["revision"])

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"

    @property
    def pinned(self) -> dict[str, Any]:
        """The revision as the client's functions take it."""
        return {} if self.revision is None else {"revision": self.revision}


def is_tokenizer_file(name: str) -> bool:
    """Whether a file of that name belongs to a tokenizer."""
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZERS)


def wanted_files(names: Iterable[str]) -> list[str]:
    """Of the files of a repository those that a model needs here: one file of weights, or the list of their parts."""
    top = [name for name in names if "/" not in name]
    weights = next((name for name in WEIGHTS if name in top), None)
    ours = (CONFIG, GENERATION, EXTRA, PASSENGERS, weights)
    return [name for name in top if name in ours or is_tokenizer_file(name)]


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of a folder of weights.

    Raises:
      UserError: there is none.
    """
    value = files.read_json(path, "not found; expected a folder with config.json and weights")
    if not isinstance(value, dict):
        raise UserError(f"{path}: a JSON {type(value).__name__}, expected an object")
    return value


def parts_of(index: Path) -> list[str]:
    """The files that a list of sharded weights names.

    Raises:
      UserError: not such a list, or a file outside its folder.
    """
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(name, str) for name in parts.values()):
        raise UserError(f"{index}: no weight_map in it, from parameters to files")
    names = sorted(set(parts.values()))
    for name in names:
        if name in ("", "..") or Path(name).name != name:
            raise UserError(f"{index}: names a file outside its folder: {name!r}")
        if not name.isprintable():
            raise UserError(f"{index}: names a file that cannot be: {name!r}")
    return names


# Fetching


def find_folder(source: str) -> tuple[Path, tuple[str, ...]]:
    """The local folder `source`, or a snapshot of the hub id `source` with one weights file in it; notes for the user.

    Without the hub, what an earlier call has fetched.

    Raises:
      NoSuchModel: there is no such folder, and no such hub id that can be had.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder, _notes_on_adapter([path.name for path in folder.iterdir()], source)
    if folder.exists():
        raise NoSuchModel(f"{source}: a file; expected a folder with config.json and weights")
    hub_id = HubId.of(source)
    if hub_id is None:
        raise NoSuchModel(f"{source}: no such folder")
    # The hub's client lets any error of its network library through.
    try:
        return _download(hub_id)
    except UserError:
        raise
    except Exception as error:
        reason, remedy = meaning(error, hub_id)
    cached = _cached(hub_id)
    if cached is None:
        raise NoSuchModel(
            f"{source}: no such folder, and not to be had from the hub ({reason}); {remedy}, or give a local folder"
        )
    return cached, (f"{source}: the hub could not be asked ({reason}); the copy in {cached} is used",)


def _notes_on_adapter(names: Collection[str], where: str) -> tuple[str, ...]:
    """A note on what peft adds to a model, beside the model; transformers applies it where peft is installed.

    Raises:
      NoSuchModel: the model lies elsewhere.
    """
    if ADAPTER not in names:
        return ()
    merged = "merge it into its base model (merge_and_unload in peft), save that, and give its folder"
    if CONFIG not in names:
        raise NoSuchModel(f"{where}: an adapter of peft, not a model: {merged}")
    return (f"warning: {where}: the adapter of peft beside the model is not applied; to apply it, {merged}",)


def _download(hub_id: HubId) -> tuple[Path, tuple[str, ...]]:
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    info = HfApi().model_info(hub_id.name, timeout=HUB_SECONDS, **hub_id.pinned)
    names = [file.rfilename for file in info.siblings or ()]
    wanted = wanted_files(names)
    notes = _notes_on_adapter(names, str(hub_id))
    if CONFIG not in wanted or not set(WEIGHTS) & set(wanted):
        there = ", ".join(sorted(names)[:10]) or "nothing"
        raise NoSuchModel(
            f"{hub_id}: this repository on the hub holds no model that can be read; expected {CONFIG} and one of "
            f"{', '.join(WEIGHTS)}, there is {there}"
        )
    for index in (name for name in wanted if name in INDEXES):
        wanted = [*wanted, *parts_of(Path(hf_hub_download(hub_id.name, index, **hub_id.pinned)))]
    if MSGPACK in wanted and (others := {HUB_BIN, BIN_INDEX} & set(names)):
        other = f"transformers reads {min(others)}, which may hold another model"
        notes += (f"warning: {hub_id}: {MSGPACK} is read; {other}",)
    patterns = [glob.escape(name) for name in wanted]
    return Path(snapshot_download(hub_id.name, allow_patterns=patterns, **hub_id.pinned)), notes


def _cached(hub_id: HubId) -> Path | None:
    """The snapshot that an earlier call has fetched, if its weights are complete."""
    from huggingface_hub import snapshot_download

    # With no or all patterns, the client counts the files that were not asked for as missing.
    try:
        folder = Path(snapshot_download(hub_id.name, local_files_only=True, allow_patterns=[CONFIG], **hub_id.pinned))
        wanted = wanted_files(path.name for path in folder.iterdir())
        parts = [part for index in INDEXES if index in wanted for part in parts_of(folder / index)]
    except Exception:
        return None
    complete = CONFIG in wanted and set(WEIGHTS) & set(wanted) and all((folder / part).is_file() for part in parts)
    return folder if complete else None


# Uploading


class Repository(NamedTuple):
    """A repository before an upload.

    commit: the last one of the branch; None where the branch, or with `exists` False the repository, is to be made.
    card: its README.md.
    """

    hub_id: HubId
    exists: bool
    commit: str | None = None
    files: tuple[str, ...] = ()
    card: str | None = None


class Uploaded(NamedTuple):
    """address: of the repository, for a browser. changed: whether there was anything new. notes: the hub's warnings."""

    address: str
    changed: bool
    notes: tuple[str, ...]


def look(hub_id: HubId, weights: str, private: bool = False) -> Repository:
    """What an upload of `weights` meets; changes nothing.

    Raises:
      UserError: no token, no permission, no network; a public repository that was to be private; weights in another
        layout, which would be read in place of these or beside them.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RevisionNotFoundError

    with _explained(hub_id):
        if not get_token():
            raise UserError(f"{hub_id}: no token for the hub: {LOG_IN} with one that may write")
        try:
            info = HfApi().model_info(hub_id.name, timeout=HUB_SECONDS)
        except Exception as error:
            if not _is_missing(error):
                raise
            return Repository(hub_id, exists=False)
        if private and info.private is False:
            raise UserError(
                f"{hub_id}: is public, and --private makes only a new repository private: change it in its settings on "
                "the hub, or choose another name"
            )
        if hub_id.revision is not None:
            try:
                info = HfApi().model_info(hub_id.name, timeout=HUB_SECONDS, **hub_id.pinned)
            except RevisionNotFoundError:
                return Repository(hub_id, exists=True)
        names = tuple(file.rfilename for file in info.siblings or ())
        if others := [name for name in WEIGHTS if name != weights and name in names]:
            raise UserError(
                f"{hub_id}: holds {others[0]} already, beside which {weights} would be another model: choose another "
                "repository or branch (OWNER/NAME@BRANCH), or delete that file on the hub"
            )
        return Repository(hub_id, True, info.sha, names, _card(hub_id) if CARD in names else None)


def _is_missing(error: Exception) -> bool:
    """Whether the hub knows no repository of that name, as far as this token may know."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return False
    return isinstance(error, RepositoryNotFoundError) or _status(error) == 404


def _card(hub_id: HubId) -> str:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(hub_id.name, CARD, **hub_id.pinned)).read_text(encoding="utf-8", errors="replace")


def upload(repository: Repository, folder: Path, names: Sequence[str], message: str, private: bool = False) -> Uploaded:
    """Uploads files of `folder` in one commit: all of them or none. Makes the repository and the branch if need be.

    What an upload that was interrupted has sent is not sent again.

    Raises:
      UserError: not permitted, no network, or refused by the hub.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    hub_id, api = repository.hub_id, HfApi()
    with _explained(hub_id), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if not repository.exists:
            api.create_repo(hub_id.name, private=private or None, exist_ok=True)
        if hub_id.revision not in (None, DEFAULT_BRANCH) and repository.commit is None:
            api.create_branch(hub_id.name, branch=str(hub_id.revision), exist_ok=True)
        operations = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in names]
        commit = api.create_commit(hub_id.name, operations, commit_message=message, **hub_id.pinned)
    lines = [" ".join(str(warning.message).split()) for warning in caught if warning.category is UserWarning]
    notes = dict.fromkeys(f"warning: {hub_id}: {line}" for line in lines)
    branch = "" if hub_id.revision is None else f"/tree/{hub_id.revision}"
    return Uploaded(f"{api.endpoint}/{hub_id.name}{branch}", commit.oid != repository.commit, tuple(notes))


# What the client's errors mean


@contextmanager
def _explained(hub_id: HubId) -> Iterator[None]:
    """Any error of the client as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason, remedy = meaning(error, hub_id)
        raise UserError(f"{hub_id}: nothing was uploaded ({reason}); {remedy}") from None


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def meaning(error: BaseException, hub_id: HubId) -> tuple[str, str]:
    """What an error of the hub's client says in one line, without any token, and the remedy."""
    reason, remedy = _meaning(_innermost(error), hub_id)
    return _without_secrets(reason), remedy


def _innermost(error: BaseException) -> BaseException:
    """The error that the client wrapped into one that says less."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, (RuntimeError, LocalEntryNotFoundError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def _meaning(error: BaseException, hub_id: HubId) -> tuple[str, str]:
    from huggingface_hub import errors, get_token

    status = _status(error)
    message = " ".join((getattr(error, "server_message", None) or first_line(error)).split())
    if isinstance(error, errors.GatedRepoError):
        return "gated", f"accept its conditions on its page on the hub and {LOG_IN}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"it has no {hub_id.revision or DEFAULT_BRANCH!r}", "give a branch, tag or commit that it has"
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404 or (status == 401 and not get_token()):
        return "no such repository there, or a private one", f"check the name and {LOG_IN}"
    if status == 401:
        return f"your token is not accepted: {message}", "log in anew (hf auth login), or correct HF_TOKEN"
    if status == 403:
        return f"not permitted: {message}", f"{LOG_IN} with a token that may do this"
    if status is not None:
        return f"{status}: {message}", "try again later"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "offline mode", "unset HF_HUB_OFFLINE"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS):
        return message, "set HF_HOME to a folder on a disk with space that you may write to"
    if isinstance(error, ValueError):
        return " ".join(str(error).split()), "correct it"
    return message, "check the network and HF_ENDPOINT"


def _without_secrets(text: str) -> str:
    """The text without the token, which a malformed header may show, and without a password in an address."""
    from huggingface_hub import get_token

    text = re.sub(r"//[^/@\s]+@", "//", re.sub(r"Bearer [^'\"]*", "Bearer …", text))
    token = get_token()
    return text.replace(token, "…") if token else text
