"""What a DICOM node is told: a TOML file, the only source of destinations. Unknown keys are refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from veilray.errors import UsageError, first_fault
from veilray.models.shipped.find import SHIPPED, meant_name

# PS3.5 6.2: at most 16 characters of the default repertoire, no backslash, no control characters; spaces at the ends
# do not count.
AETitle = Annotated[str, Field(pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$")]
Table = TypeVar("Table", bound=BaseModel)
Port = Annotated[int, Field(ge=0, le=65535)]


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerTls(_Table):
    """TLS for those who send to the node (PS3.15 B)."""

    certificate: Path
    """The node's certificate chain, PEM."""
    key: Path
    """Its private key, PEM."""
    ca: Path | None = None
    """Authorities that senders' certificates must come from; without it, senders show none."""


class ClientTls(_Table):
    """TLS towards a destination."""

    ca: Path
    """Authorities that the destination's certificate must come from, PEM."""
    certificate: Path | None = None
    """The node's own certificate chain, where the destination asks for one."""
    key: Path | None = None
    """The certificate's private key, PEM."""

    @model_validator(mode="after")
    def _both_or_none(self) -> ClientTls:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together: give both or none")
        return self


class NodeConfig(_Table):
    """The node itself."""

    ae_title: AETitle
    """Application entity title that senders must call."""
    calling: tuple[AETitle, ...] = Field(min_length=1)
    """Titles that may send."""
    state: Path
    """Folder for the queue and the images in it; the node makes it, for its user alone."""
    host: str = "127.0.0.1"
    """Address to listen on; the machine's own by default, so that nobody else reaches the node unasked."""
    port: Port = 11112
    """TCP port; 0 takes a free one and logs it."""
    tls: ServerTls | None = None
    """TLS towards senders; without it nothing is encrypted."""
    max_associations: int = Field(default=32, ge=1, le=400)
    """Associations at once; more are rejected for the time being (PS3.8 9.3.4: local limit exceeded)."""
    max_object_mib: int = Field(default=128, ge=1, le=512)
    """Largest object; the connection of a larger one is closed."""
    max_receiving_mib: int = Field(default=1024, ge=1)
    """Bytes of objects that may be on their way at once, over all associations."""
    max_queue: int = Field(default=10_000, ge=1)
    """Images that may wait; further ones are answered with A700, out of resources."""
    min_free_mib: int = Field(default=1024, ge=0)
    """Free space below which images are answered with A700."""
    timeout_seconds: float = Field(default=30.0, ge=0.1, le=600.0)
    """Longest silence of a sender, and longest time for one protocol data unit."""
    retention_days: float = Field(default=30.0, ge=0.0)
    """How long the node remembers, by keyed hash, which images it delivered, so as not to deliver them again."""


class ModelChoice(_Table):
    """What denoises."""

    path: Path | str
    """Run folder, exported model or file of weights; or the name of a network that ships, as `default`."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    mean: float | None = Field(default=0.0, ge=-1.0, le=1.0)
    """Mean of the noise in the images that come; 0 for the noise of their acquisition."""
    tolerance: float = Field(default=0.25, ge=0.0, le=10.0)
    """How far, as a share, estimated noise may leave the range the model was trained on; the estimate is no better."""
    batch: int = Field(default=8, ge=1, le=256)
    """Images of one size that are denoised at once."""
    tile: int | None = Field(default=None, ge=1)
    """Side in pixels of the tiles that larger images are cut into; by default the denoiser's own."""
    threads: int | None = Field(default=None, ge=1)
    """Processor threads of the worker; torch's own choice by default."""
    silence_seconds: float = Field(default=300.0, ge=5.0, le=86_400.0)
    """Longest time for one image. A worker that is silent for longer is ended, and has three tries with an image."""


class DicomDestination(_Table):
    """An archive that takes objects by C-STORE."""

    kind: Literal["dicom"]
    """C-STORE."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    """Short name for logs and counters."""
    host: str
    """Name or address."""
    port: Annotated[int, Field(ge=1, le=65535)]
    """TCP port."""
    ae_title: AETitle
    """Application entity title to call."""
    tls: ClientTls | None = None
    """How to reach it by TLS; without it nothing is encrypted."""


class StowDestination(_Table):
    """An archive that takes objects by STOW-RS (PS3.18 10.5)."""

    kind: Literal["stow"]
    """STOW-RS."""
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")
    """Short name for logs and counters."""
    url: str = Field(pattern=r"^https?://[^\s@]+$")
    """Root of the DICOMweb service, such as https://pacs.example/dicom-web; objects go to URL/studies."""
    tls: ClientTls | None = None
    """Authorities and certificate for https; without it those that come with httpx, whatever the environment says."""
    authorization_file: Path | None = None
    """File whose one line is the Authorization header, such as `Bearer ...`; readable by the node's user alone."""


Destination = Annotated[DicomDestination | StowDestination, Field(discriminator="kind")]


class RetryConfig(_Table):
    """How delivery is tried again."""

    first_seconds: float = Field(default=5.0, gt=0.0)
    """Wait after a first failure; each further one doubles it."""
    most_seconds: float = Field(default=900.0, gt=0.0)
    """Longest wait between two tries."""
    tries: int = Field(default=10, ge=1)
    """Refusals of one image after which it becomes a dead letter. A destination that is down counts for no image."""


class HttpConfig(_Table):
    """Health and counters."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Port = 9112
    """TCP port; 0 takes a free one."""


class LogConfig(_Table):
    """Where the node's log goes: standard error, which systemd keeps, and a file where one is named."""

    file: Path | None = None
    """File to log to as well."""
    keep_days: int = Field(default=30, ge=1)
    """Days of logs to keep; the file is rotated at midnight."""


class ServeConfig(_Table):
    """Everything a node is told."""

    schema_version: Literal[1] = 1
    """Of this file."""
    node: NodeConfig
    """The node itself."""
    model: ModelChoice
    """What denoises."""
    destinations: tuple[Destination, ...] = Field(min_length=1)
    """Where derived objects go, each to all of them."""
    retry: RetryConfig = RetryConfig()
    """How delivery is tried again."""
    http: HttpConfig = HttpConfig()
    """Health and counters."""
    log: LogConfig = LogConfig()
    """The log."""

    @model_validator(mode="after")
    def _names_differ(self) -> ServeConfig:
        names = [destination.name for destination in self.destinations]
        if len(set(names)) != len(names):
            raise ValueError("two destinations have the same name")
        return self


def load_serve_config(path: Path) -> ServeConfig:
    """Read a node's configuration; paths in it count from the file's own folder.

    Raises UsageError for a missing file, bad TOML, an unknown key or a value of the wrong kind.
    """
    try:
        values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no configuration file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from None
    try:
        config = ServeConfig.model_validate(values)
    except ValidationError as error:
        raise UsageError(f"{path}: {first_fault(error)}") from None
    folder = path.resolve().parent
    model = config.model.model_copy(update={"path": _model_source(config.model.path, folder)})
    return _from_folder(config.model_copy(update={"model": model}), folder)


def _model_source(text: Path | str, folder: Path) -> Path | str:
    """Where a model lies; `shipped:` and its name, which stays a string, where it is one that ships."""
    name = meant_name(str(text), folder=folder)
    return Path(text) if name is None else SHIPPED + name


def _from_folder(table: Table, folder: Path) -> Table:
    """The same table with its relative paths resolved."""
    changed: dict[str, Any] = {}
    for name in type(table).model_fields:
        value = getattr(table, name)
        if isinstance(value, Path):
            changed[name] = folder / value
        elif isinstance(value, BaseModel):
            changed[name] = _from_folder(value, folder)
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            changed[name] = tuple(_from_folder(item, folder) for item in value)
    return table.model_copy(update=changed)
