"""`ldm verify audit=N`: this rank's part of the samples, and the account of it."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from conf.schema import VerifyCommand
from data.image import encode_png
from data.progress import progress
from data.ranks import Ranks, this_rank
from data.say import one_line, say
from data.spec import LatentSpec
from data.storage import open_prefix
from data.verify.sample import drawn_samples
from training.audit.again import Audited, Auditor, Pair
from training.audit.material import Material, changed, open_material, same_encoders
from training.audit.statistics import manifest_faults, shard_faults
from training.trained import grid

COLUMNS = 8
SHOWN = 4 * COLUMNS
SUMMED = 4  # shards of a rank whose statistics are computed again


@dataclass(slots=True)
class Pictures:
    """Images beside what is decoded of them: as many as are shown, not those of all samples."""

    pairs: list[Pair] = field(default_factory=list)

    def add(self, pair: Pair) -> None:
        """Keep a pair if there is room for it and it has the size of the first."""
        same = not self.pairs or self.pairs[0][0].shape == pair[0].shape
        if same and len(self.pairs) < SHOWN:
            self.pairs.append(pair)

    def png(self) -> bytes:
        """Rows of images, each above what is decoded."""
        rows = []
        for first in range(0, len(self.pairs), COLUMNS):
            part = self.pairs[first : first + COLUMNS]
            part = [*part, *[part[-1]] * (min(COLUMNS, len(self.pairs)) - len(part))]
            rows += [np.stack([pair[side] for pair in part]) for side in (0, 1)]
        return encode_png(grid(np.concatenate(rows), columns=len(rows[0])))


def audit(config: VerifyCommand, material: Material | None = None) -> int:
    """Encode some samples of a dataset of latents again, and say how they compare.

    Args:
        config: The settings.
        material: What `open_material` has found; None looks now.

    Returns:
        0 if all of them are what is stored, else 1.

    Raises:
        UserError: It is no dataset of latents, or what it was made from is not there.
    """
    material = material or open_material(config)
    ranks = this_rank()
    counts = [shard.samples for shard in material.latents.manifest.shards]
    drawn = drawn_samples(counts, config.audit, config.seed)
    wrong = list(changed(material))
    if ranks.rank == 0:
        wrong += manifest_faults(material)
    for shard in ranks.own(list(drawn))[:SUMMED]:
        wrong += shard_faults(material.latents, shard)
    found: list[Audited] = []
    pictures = Pictures()
    if same_encoders(material):
        samples = ranks.own(
            [(shard, row) for shard, rows in drawn.items() for row in rows.tolist()]
        )
        wrong += _encode_again(Auditor(material), ranks, samples, found, pictures)
    for line in wrong:
        say(one_line(f"broken: {line}"))
    _say(found, material.latent_spec)
    _write(config, ranks, found, wrong, pictures)
    return 1 if wrong else 0


def _encode_again(
    auditor: Auditor,
    ranks: Ranks,
    samples: Sequence[tuple[int, int]],
    found: list[Audited],
    pictures: Pictures,
) -> list[str]:
    """Adds samples to `found`, and pictures of them; gives what is wrong."""
    empty = None if ranks.rank else auditor.empty_fault()
    wrong = [] if empty is None else [empty]
    with progress("audit", len(samples), unit="samples") as meter:
        for shard, row in samples:
            one = auditor.sample(shard, row)
            if isinstance(one, str):
                wrong.append(one)
            else:
                found.append(one[0])
                pictures.add(one[1])
                wrong += _faults(one[0])
            meter.advance(1)
    return wrong


def _faults(one: Audited) -> Iterator[str]:
    # Not `> 1`, which a number that is none would pass.
    if not one.latents <= 1:
        yield f"{one.key}: its latents differ {one.latents:,.1f} times more than rounding explains"
    if not one.text <= 1:
        yield f"{one.key}: its text differs {one.text:,.1f} times more than rounding explains"


def _say(found: list[Audited], spec: LatentSpec) -> None:
    if not found:
        return
    psnr = np.array([one.psnr for one in found])
    worst = found[int(psnr.argmin())]
    say(
        f"audit: {len(found):,} samples encoded again; decoded they have a PSNR of "
        f"{psnr.mean():.2f} dB, the least {worst.psnr:.2f} dB ({worst.key}); {spec.dtype} changes "
        f"latents by {spec.rms_error:.1e} of their spread, at most {spec.max_error:.1e}"
    )


def _write(
    config: VerifyCommand,
    ranks: Ranks,
    found: list[Audited],
    wrong: list[str],
    pictures: Pictures,
) -> None:
    """Files of this rank's own, so that none overwrites another's."""
    if config.out is None:
        return
    out = open_prefix(config.out, "out")
    of_rank = "" if ranks.world_size == 1 else f"-{ranks.rank}-of-{ranks.world_size}"
    samples = [
        {
            "key": one.key,
            "latents": _number(one.latents),
            "text": _number(one.text),
            "psnr": _number(one.psnr),
        }
        for one in found
    ]
    account = json.dumps({"samples": samples, "broken": wrong}, indent=1)
    out.write(f"audit{of_rank}.json", account.encode() + b"\n")
    if pictures.pairs:
        name = f"audit{of_rank}.png"
        out.write(name, pictures.png())
        say(f"audit: wrote {config.out}/{name}: rows of images, each above what is decoded")


def _number(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
