"""What a file itself states of its origin, by C2PA: shown beside a verdict, never part of it."""

import importlib.util
import io
from typing import Any

from llava_forgery.optional import lazy
from llava_forgery.serve.media import UNPRINTABLE, Upload

c2pa = lazy("c2pa")

# A file may name addresses of manifests and certificates; a server fetches nothing for clients.
_OFFLINE = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False},
    "core": {"allowed_network_hosts": []},
}
_LENGTH, _MOST = 120, 8


def reads_provenance() -> bool:
    """Whether c2pa-python is installed (extra ``provenance``)."""
    return importlib.util.find_spec("c2pa") is not None


def provenance(upload: Upload) -> dict[str, Any] | None:
    """What the newest manifest of a file states; needs c2pa-python.

    Nothing of it is evidence by itself: no list of trusted certificates is used, so that whoever
    made one can state anything. Nothing is fetched.

    Returns:
        None where the file states nothing. Otherwise ``state``: ``valid`` where the signature fits
        the file, ``trusted`` where its certificate is one that c2pa-python trusts as well,
        ``invalid`` where the file was changed or the signature is broken, ``unreadable``;
        ``signed_by``, ``signed_at``, ``program``: text or None; ``actions``, ``sources``,
        ``problems``: lists of C2PA's words.
    """
    context = c2pa.Context.from_dict(_OFFLINE)
    try:
        with context:
            reader = c2pa.Reader.try_create(None, io.BytesIO(upload.data), None, context)
            if reader is None:
                return None
            with reader:
                manifest = reader.get_active_manifest() or {}
                state = reader.get_validation_state()
                results = reader.get_validation_results() or {}
    except c2pa.C2paError.NotSupported:
        return None
    except c2pa.C2paError:
        return _stated("unreadable")
    signature = manifest.get("signature_info") or {}
    program = (manifest.get("claim_generator_info") or [{}])[0]
    actions = _actions(manifest)
    failures = (results.get("activeManifest") or {}).get("failure", [])
    problems = [one["code"] for one in failures if one["code"] != "signingCredential.untrusted"]
    sources = [str(action.get("digitalSourceType") or "").rpartition("/")[2] for action in actions]
    return _stated(
        (state or "unreadable").lower(),
        signed_by=_joined(signature.get("issuer"), signature.get("common_name")),
        signed_at=_joined(signature.get("time")),
        program=_joined(program.get("name"), program.get("version")),
        actions=_texts(action.get("action") for action in actions),
        sources=_texts(sources),
        problems=_texts(problems),
    )


def _stated(state: str, **stated: Any) -> dict[str, Any]:
    nothing = {"signed_by": None, "signed_at": None, "program": None}
    return {"state": state, **nothing, "actions": [], "sources": [], "problems": [], **stated}


def _actions(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What was done with the file; whoever made it chose the JSON's types."""
    found = []
    for assertion in manifest.get("assertions") or []:
        data = assertion.get("data")
        if str(assertion.get("label")).startswith("c2pa.actions") and isinstance(data, dict):
            actions = data.get("actions")
            if isinstance(actions, list):
                found += [action for action in actions if isinstance(action, dict)]
    return found


def _texts(values: Any) -> list[str]:
    """The first different texts, each as much as people read."""
    cleaned = (UNPRINTABLE.sub("", str(value))[:_LENGTH] for value in values if value)
    return list(dict.fromkeys(filter(None, cleaned)))[:_MOST]


def _joined(*values: Any) -> str | None:
    return ", ".join(_texts(values)) or None
