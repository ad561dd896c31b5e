"""What a run came from: its code, its datasets, and what those were made from."""

import json
import os
from typing import Any

from data.corpus import Corpus
from data.storage import Prefix
from training.tracking.code import IMAGE, CodeState

LINEAGE, DIFF = "lineage.json", "code.diff"


def lineage_of(data: Corpus, code: CodeState) -> dict[str, Any]:
    """What one start of a run goes by, JSON-ready.

    Args:
        data: What is read.
        code: The state of the code.
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
    state = {"revision": code.revision, "dirty": code.dirty, "files": code.files}
    return {"code": state, "image": os.environ.get(IMAGE), "data": datasets}


def keep_lineage(out: Prefix, lineage: dict[str, Any], code: CodeState, samples_seen: int) -> None:
    """Add a start to the run's lineage.json; the diff of the last start is its code.diff."""
    try:
        starts = json.loads(out.read(LINEAGE))
    except FileNotFoundError:
        starts = []
    starts.append({"samples_seen": samples_seen, **lineage})
    out.write(LINEAGE, json.dumps(starts, indent=1).encode() + b"\n")
    if code.dirty:
        out.write(DIFF, code.diff.encode())
    else:
        out.remove(DIFF)
