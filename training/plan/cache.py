"""What `ldm cache` would take: FLOPs of the encoder, the bytes that it writes, hours and cost."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from conf.encoders import (
    CLASSES,
    AutoencoderConfig,
    KLAutoencoderConfig,
    PretrainedAutoencoderConfig,
    TrainedAutoencoderConfig,
)
from conf.enums import LatentDtype, LatentStore, Precision, TextStore
from conf.errors import UserError
from conf.plan import PlanConfig
from conf.schema import PlanCacheCommand
from data.manifest import load_manifest, square_side
from data.storage import open_prefix
from data.views import view_names
from training.models.autoencoder import IMAGE_CHANNELS, KLAutoencoder
from training.models.classes import WIDTH as DIGITS
from training.models.pretrained_source import find_source
from training.models.tiny import TinyAutoencoder, TinySizes
from training.perf import META
from training.plan.fed import read_manifests, stored_bytes
from training.plan.machine import Machine, machine_of
from training.run import read_run

Buckets = dict[tuple[int, int], float]
AnyAutoencoder = KLAutoencoder | TinyAutoencoder
BYTES_OF_ID = 4
HUB = "hf://"


@dataclass(frozen=True, slots=True)
class CachePlan:
    """What a cache would take.

    Args:
        images: To encode; None is not known.
        flops: Of all that is encoded of one image, in the mean over image sizes.
        sample_bytes: Of one sample over all datasets that are written.
        bytes: Of all samples; None is not known.
        machine: What each rank computes on.
        ranks: How many.
        images_per_second: Over all ranks.
        hours: For all images; None is not known.
        dollars: Of all ranks' hours; None without a price.
        remarks: What is assumed, in words.
    """

    images: int | None
    flops: float
    sample_bytes: float
    bytes: float | None
    machine: Machine
    ranks: int
    images_per_second: float
    hours: float | None
    dollars: float | None
    remarks: tuple[str, ...]


def plan_cache(config: PlanCacheCommand) -> CachePlan:
    """Plan a cache; nothing is read but manifests, and nothing is computed but shapes.

    Raises:
        UserError: The autoencoder is not there or cannot divide the sizes, or there are no images.
    """
    plan, manifests = config.plan, read_manifests(config.data.url)
    remarks = ["the text encoder's work is in no figure"]
    images, buckets = plan.samples, {(plan.image_size, plan.image_size): 1.0}
    if manifests[0]:
        manifest = load_manifest(open_prefix(config.data.url, "data.url"), "images")
        images = manifest.samples
        counts = [sum(column) for column in zip(*(s.buckets for s in manifest.shards), strict=True)]
        pairs = zip(manifest.buckets, counts, strict=True)
        buckets = {sides: count / images for sides, count in pairs if count}
    else:
        remarks.append(f"{manifests[1]}: images are {plan.image_size} pixels, as plan.* says")
    model, said = _autoencoder(config.autoencoder, plan)
    views = len(view_names(config.encoding))
    sizes = [_scaled(buckets, size) for size in config.sizes] or [buckets]
    encoded = [(sides, share) for one in sizes for sides, share in one.items()]
    flops = sum(views * share * encoder_flops(model, sides) for sides, share in encoded)
    stored = sum(share * _sample_bytes(config, model, sides) for sides, share in encoded)
    ranks = config.world_size or plan.nodes * (plan.gpus or config.cluster.processes)
    local_ranks = plan.gpus or config.cluster.processes
    machine = machine_of(plan, local_ranks, Precision(config.encoding.precision.value))
    rate = machine.mfu * machine.peak.flops * ranks / flops
    hours = None if images is None else images / rate / 3600
    price = plan.dollars_per_gpu_hour
    return CachePlan(
        images=images,
        flops=flops,
        sample_bytes=stored,
        bytes=None if images is None else images * stored,
        machine=machine,
        ranks=ranks,
        images_per_second=rate,
        hours=hours,
        dollars=None if price is None or hours is None else hours * ranks * price,
        remarks=(*remarks, *said, f"captions are {_tokens(config)} x {_width(config)}"),
    )


def _autoencoder(config: AutoencoderConfig, plan: PlanConfig) -> tuple[AnyAutoencoder, list[str]]:
    """The autoencoder's shapes, and what is assumed of them; nothing is fetched.

    Raises:
        UserError: It is not where the settings say.
    """
    said: list[str] = []
    if isinstance(config, TrainedAutoencoderConfig):
        run = read_run(open_prefix(config.url, "autoencoder.url"), "autoencoder")
        sizes = KLAutoencoderConfig(**run["autoencoder"])
    elif isinstance(config, PretrainedAutoencoderConfig) and not config.path.startswith(HUB):
        sizes = find_source(config, f"autoencoder.path={config.path}").sizes
    else:
        sizes = KLAutoencoderConfig(latent_channels=plan.latent_channels)
        said.append("the autoencoder is not looked at: its sizes are Stable Diffusion's")
    with torch.device(META):
        if isinstance(sizes, TinySizes):
            return TinyAutoencoder(sizes), said
        return KLAutoencoder(sizes), said


@torch.no_grad()
def encoder_flops(model: AnyAutoencoder, sides: tuple[int, int]) -> int:
    """FLOPs of encoding one image.

    Args:
        model: On the meta device.
        sides: Height and width in pixels.

    Raises:
        UserError: The autoencoder cannot divide them.
    """
    with FlopCounterMode(display=False) as counter:
        try:
            model.encode(torch.empty(1, IMAGE_CHANNELS, *sides, device=META))
        except ValueError as error:
            raise UserError("sizes", str(error), "choose sizes that it divides") from None
    return int(counter.get_total_flops())


def _scaled(buckets: Buckets, size: int) -> Buckets:
    """The same shapes for squares of another side."""
    side = square_side(buckets)
    return {(h * size // side, w * size // side): share for (h, w), share in buckets.items()}


def _sample_bytes(config: PlanCacheCommand, model: AnyAutoencoder, sides: tuple[int, int]) -> int:
    """Bytes of a sample with one caption."""
    encoding, text = config.encoding, config.text_encoder
    number = 4 if encoding.dtype is LatentDtype.float32 else 2
    places = sides[0] * sides[1] // model.downsampling**2
    kinds = 2 if encoding.store is LatentStore.moments else 1
    latents = number * kinds * model.latent_channels * places
    tokens = _tokens(config)
    caption = tokens * _width(config) * number
    if encoding.text is TextStore.ids:
        caption = BYTES_OF_ID * tokens * (1 + len(text.joined))
    return stored_bytes([latents] * len(view_names(encoding)) + [caption])


def _width(config: PlanCacheCommand) -> int:
    """Numbers of a stored token."""
    classes = config.text_encoder.path.startswith(CLASSES)
    return DIGITS if classes else config.plan.text_width


def _tokens(config: PlanCacheCommand) -> int:
    """Tokens of a stored caption."""
    longest = config.text_encoder.max_length
    return longest if config.text_encoder.padding else min(config.plan.text_tokens, longest)
