"""What the denoiser would be fed with: as a dataset's manifest says, or as settings assume."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from conf.errors import UserError
from conf.groups import DataConfig
from conf.plan import PlanTrainConfig
from data.manifest import Manifest, load_manifest
from data.storage import open_prefix
from training.models.classes import WIDTH as DIGITS

BYTES_OF_HALF = 2
# A member of a tar has a header of one block and fills its last one; an array has its own header.
BLOCK, ARRAY_HEADER = 512, 128


@dataclass(frozen=True, slots=True)
class Fed:
    """Sizes of what is fed.

    Args:
        buckets: Share of the samples by height and width in pixels; the shares add up to 1.
        downsampling: Pixels to a side of one place of a latent.
        channels: Of a latent.
        text_width: Channels of a text embedding.
        tokens: Of the longest caption.
        pooled_width: Channels of a whole caption's vector; 0 is none.
        classes: In the place of captions; 0 is none.
        samples: Of all datasets; None is not known.
        bytes: Of a sample in the store, in the mean.
        remarks: What is assumed, in words.
    """

    buckets: dict[tuple[int, int], float]
    downsampling: int
    channels: int
    text_width: int
    tokens: int
    pooled_width: int
    classes: int
    samples: int | None
    bytes: float
    remarks: tuple[str, ...]

    @property
    def largest(self) -> tuple[int, int]:
        """The bucket whose latents have the most places."""
        return max(self.buckets, key=lambda sides: sides[0] * sides[1])


def fed_by(data: DataConfig, plan: PlanTrainConfig) -> Fed:
    """What a training reads.

    Raises:
        UserError: One of `data.also` cannot be read, though `data.url` can.
    """
    manifests, why = read_manifests(data.url, data.also)
    if not manifests:
        return _assumed(plan, why)
    counts: Counter[tuple[int, int]] = Counter()
    for one in manifests:
        for shard in one.shards:
            counts.update(dict(zip(one.buckets, shard.buckets, strict=True)))
    samples = sum(counts.values())
    buckets = {sides: count / samples for sides, count in counts.items() if count}
    size = sum(shard.bytes for one in manifests for shard in one.shards) / samples
    latents, text = manifests[0].latents, manifests[0].text
    if latents is None or text is None:
        remark = "data.url holds images: encoding them on the way is in no figure, and latents and "
        remarks = (remark + "captions are as plan.* says",)
        return Fed(buckets, *_settings(plan), samples, size, remarks)
    return Fed(
        buckets,
        latents.downsampling,
        latents.channels,
        text.width,
        text.max_length,
        text.pooled_width,
        text.classes,
        samples,
        size,
        (),
    )


def read_manifests(url: str, also: Sequence[str] = ()) -> tuple[list[Manifest], str]:
    """The manifests of datasets, or none and why the first cannot be read."""
    if not url:
        return [], "no data.url is given"
    try:
        first = load_manifest(open_prefix(url, "data.url"), "any")
    except UserError as error:
        return [], f"data.url={url} {error.wrong}"
    if not first.samples:
        return [], f"data.url={url} has no samples"
    others = [load_manifest(open_prefix(one, "data.also"), "any") for one in also]
    return [first, *others], ""


def _assumed(plan: PlanTrainConfig, why: str) -> Fed:
    side = plan.image_size
    places = (side // plan.downsampling) ** 2
    _, _, width, tokens, _, _ = _settings(plan)
    numbers = (2 * plan.latent_channels * places, tokens * width)
    remark = (
        f"{why}: latents are {plan.latent_channels} x {side // plan.downsampling} x "
        f"{side // plan.downsampling}, captions {tokens} x {width}, as plan.* "
        "says"
    )
    size = stored_bytes(BYTES_OF_HALF * count for count in numbers)
    return Fed({(side, side): 1.0}, *_settings(plan), plan.samples, size, (remark,))


def stored_bytes(arrays: Iterable[int]) -> int:
    """Bytes in a tar of a sample with arrays of so many bytes, and a json of one block."""
    blocks = (-(-(ARRAY_HEADER + size) // BLOCK) for size in arrays)
    return BLOCK * (sum(1 + count for count in blocks) + 2)


def _settings(plan: PlanTrainConfig) -> tuple[int, int, int, int, int, int]:
    """The sizes from `downsampling` to `classes`."""
    text = (DIGITS, 1) if plan.classes else (plan.text_width, plan.text_tokens)
    return plan.downsampling, plan.latent_channels, *text, 0, plan.classes
