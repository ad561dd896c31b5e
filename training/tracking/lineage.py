"""What a run came from: its code, its datasets, and what those were made from."""

import json
from typing import Any

from data.corpus import Corpus
from data.storage import Prefix
from training.tracking.code import CodeState

LINEAGE, DIFF = "lineage.json", "code.diff"


def lineage_of(data: Corpus, code: CodeState | None) -> dict[str, Any]:
    """What one start of a run goes by, JSON-ready.

    Args:
        data: What is read.
        code: The state of the code, if it is known.
    """
    datasets = []
    for dataset in data.datasets:
        manifest = dataset.manifest
        told: dict[str, Any] = {
            "kind": manifest.kind,
            "url": dataset.prefix.absolute,
            "samples": manifest.samples,
            "fingerprint": manifest.fingerprint,
            "parent": manifest.parent,
        }
        if manifest.latents and manifest.text:
            told["autoencoder"] = manifest.latents.autoencoder
            told["text_encoder"] = manifest.text.encoder
        datasets.append(told)
    state = {"revision": code.revision, "dirty": code.dirty} if code else None
    return {"code": state, "data": datasets}


def keep_lineage(
    out: Prefix, lineage: dict[str, Any], code: CodeState | None, samples_seen: int
) -> None:
    """Add a start to the run's lineage.json; the diff of the last start is its code.diff."""
    try:
        starts = json.loads(out.read(LINEAGE))
    except FileNotFoundError:
        starts = []
    starts.append({"samples_seen": samples_seen, **lineage})
    out.write(LINEAGE, json.dumps(starts, indent=1).encode() + b"\n")
    if code and code.dirty:
        out.write(DIFF, code.diff.encode())
    else:
        out.remove(DIFF)
