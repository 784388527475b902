"""Options of object stores: given under the names that delta-rs has for them, wanted under those of the fsspec clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from waxlake.stream.errors import UsageError
from waxlake.stream.settings import StorageOptions

__all__ = ["PROTOCOL_EXTRAS", "client_options", "s3fs_options"]

PROTOCOL_EXTRAS: Final[Mapping[str, str]] = {
    "abfs": "azure", "abfss": "azure", "az": "azure", "adl": "azure", "gs": "gcs", "gcs": "gcs",
}  # fmt: skip
_AZURE: Final[Mapping[str, str]] = {
    "account_name": "account_name", "account_key": "account_key", "access_key": "account_key",
    "sas_token": "sas_token", "sas_key": "sas_token", "client_id": "client_id", "client_secret": "client_secret",
    "tenant_id": "tenant_id", "authority_id": "tenant_id", "connection_string": "connection_string",
    "endpoint": "account_host", "anon": "anon", "skip_signature": "anon",
}  # fmt: skip
_GCS: Final[Mapping[str, str]] = {
    "service_account": "token", "service_account_path": "token", "service_account_key": "token",
    "application_credentials": "token", "token": "token", "project": "project", "base_url": "endpoint_url",
}  # fmt: skip


def client_options(protocol: str, options: StorageOptions) -> dict[str, Any]:
    """Return the options as the fsspec client of a protocol wants them; of one that delta-rs does not speak, as they are.

    Raises:
        UsageError: An option that neither knows. Not retryable.
    """
    if protocol == "s3":
        return s3fs_options(options)
    if protocol in ("abfs", "abfss", "az", "adl"):
        return _renamed(options, _AZURE, ("azure_storage_", "azure_"))
    if protocol in ("gs", "gcs"):
        return _renamed(options, _GCS, ("google_", ""))
    return dict(options)


def _renamed(options: Mapping[str, str], names: Mapping[str, str], prefixes: tuple[str, ...]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in options.items():
        bare = key.lower()
        bare = next((bare.removeprefix(prefix) for prefix in prefixes if prefix and bare.startswith(prefix)), bare)
        if bare not in names:
            valid = sorted((prefixes[0] + name).upper() for name in names)
            raise _unknown(key, valid)
        result[names[bare]] = str(value).lower() in ("1", "true", "yes") if names[bare] == "anon" else value
    return result


def _unknown(key: str, valid: list[str]) -> UsageError:
    return UsageError(
        f"cannot use the storage option {key!r} to read files",
        code="OPTION_INVALID",
        remedy=f"Valid: {', '.join(valid)}",
    )


def s3fs_options(options: Mapping[str, str]) -> dict[str, Any]:
    """Return what s3fs wants for options named as delta-rs names them; keys are case-insensitive, with or without ``AWS_``.

    An option that only delta-rs knows (conditional put, lock tables) is left out.

    Raises:
        UsageError: An option that neither knows. Not retryable.
    """
    direct = {
        "endpoint_url": "endpoint_url",
        "endpoint": "endpoint_url",
        "access_key_id": "key",
        "secret_access_key": "secret",
    }
    direct |= {"session_token": "token", "token": "token", "profile": "profile"}
    region = {"region", "default_region"}
    ignored = {"allow_http", "conditional_put", "copy_if_not_exists", "s3_locking_provider", "s3_allow_unsafe_rename"}
    ignored |= {"virtual_hosted_style_request", "ec2_metadata_disabled"}
    result: dict[str, Any] = {}
    for key, value in options.items():
        name = key.lower().removeprefix("aws_")
        if name in direct:
            result[direct[name]] = value
        elif name in region:
            result.setdefault("client_kwargs", {})["region_name"] = value
        elif name == "skip_signature":
            result["anon"] = str(value).lower() in ("1", "true", "yes")
        elif name not in ignored:
            raise _unknown(key, sorted("AWS_" + n.upper() for n in (*direct, *region, "skip_signature")))
    return result
