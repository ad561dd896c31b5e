"""What an image or a caption gets depends on itself alone, bit for bit."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from conf.compose import compose_config
from conf.encoders import KLAutoencoderConfig
from conf.encoding import EncodingConfig
from conf.enums import EncodingPrecision, LatentDtype, LatentStore
from conf.errors import UserError
from training.autoencode import build_autoencoder, to_images
from training.encode import CAPTIONS_AT_ONCE, Encoder
from training.encoders import Autoencoder
from training.models.text import load_text_encoder
from training.models.tiny import TinyAutoencoder, TinySizes
from training.numbers import as_array, as_tensor

TEXT_ENCODER = compose_config("cache", ["data.url=x", "out=x", "autoencoder.url=x"]).text_encoder
CAPTIONS = [
    "a red apple",
    "",
    "two cats on a mat under the table",
    "flag",
    "an old man with a hat and a long grey beard sits on a bench in the park",
    "red",
]


def autoencoder() -> Autoencoder:
    torch.manual_seed(0)
    sizes = KLAutoencoderConfig(channels=32, channel_mult=[1, 2], res_blocks=1, norm_groups=8)
    model = build_autoencoder(sizes).eval().requires_grad_(False)
    return Autoencoder(model.to(memory_format=torch.channels_last), "fingerprint")


def build(micro_batch_size: int | None = 4, **settings: object) -> Encoder:
    config = EncodingConfig(**settings)
    return Encoder(autoencoder(), load_text_encoder(TEXT_ENCODER), config, micro_batch_size)


def images(count: int, size: tuple[int, int] = (16, 24)) -> list[NDArray[np.uint8]]:
    chance = np.random.default_rng(0)
    return [chance.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("threads", [1, 2])
def test_an_image_gets_the_same_alone_and_beside_any_others(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        encoder, pictures = build(dtype=LatentDtype.float32), images(11)
        together = encoder.latents(pictures).result().values
        for number, picture in enumerate(pictures):
            alone = encoder.latents([picture]).result().values
            np.testing.assert_array_equal(alone[0], together[number])
        order = np.random.default_rng(1).permutation(11)
        mixed = encoder.latents([pictures[i] for i in order]).result().values
        np.testing.assert_array_equal(mixed, together[order])
    finally:
        torch.set_num_threads(before)


def test_a_caption_gets_the_same_alone_and_beside_any_others() -> None:
    encoder = build(dtype=LatentDtype.float32)
    captions = [f"{caption} {i}".strip() for i in range(9) for caption in CAPTIONS]
    assert len(captions) > CAPTIONS_AT_ONCE
    together = encoder.captions(captions)
    order = np.random.default_rng(1).permutation(len(captions)).tolist()
    mixed = encoder.captions([captions[i] for i in order])
    for place, number in enumerate(order):
        alone = encoder.captions([captions[number]])[0]
        np.testing.assert_array_equal(alone.tokens, together[number].tokens)
        np.testing.assert_array_equal(mixed[place].tokens, together[number].tokens)


@pytest.mark.parametrize("dtype", LatentDtype)
@pytest.mark.parametrize("store", LatentStore)
def test_what_is_stored_is_the_autoencoders_output_and_the_error_is_measured(
    dtype: LatentDtype, store: LatentStore
) -> None:
    encoder, pictures = build(dtype=dtype, store=store), images(4)
    stored = encoder.latents(pictures).result()
    with torch.inference_mode():
        exact = encoder.autoencoder.encode(to_images(np.stack(pictures), torch.device("cpu")))
    channels = 8 if store is LatentStore.moments else 4
    values = as_tensor(stored.values).double()
    assert values.shape == (4, channels, 8, 12)
    assert stored.finite.all() and stored.computed.all()
    change = (values - exact[:, :channels].double())[:, :4].flatten(1)
    if dtype is LatentDtype.float32:
        assert float(change.abs().max()) < 1e-5  # of another shape of batch
        return
    np.testing.assert_allclose(stored.squared_error, change.square().sum(1), rtol=1e-3)
    np.testing.assert_allclose(stored.max_error, change.abs().amax(1), rtol=1e-2)
    limit = {LatentDtype.float16: 2.0**-11, LatentDtype.bfloat16: 2.0**-8}[dtype]
    assert float(change.abs().max()) <= limit * float(exact.abs().max())


def test_bfloat16_keeps_its_bits_as_an_array() -> None:
    values = torch.randn(3, 4).bfloat16()
    array = as_array(values)
    assert array.dtype == np.uint16
    assert torch.equal(as_tensor(array), values)


def test_bf16_computes_in_bf16() -> None:
    coarse = build(precision=EncodingPrecision.bf16, dtype=LatentDtype.float32)
    exact = build(dtype=LatentDtype.float32)
    one, two = (each.latents(images(4)).result().values for each in (coarse, exact))
    difference = np.abs(one - two).max() / np.abs(two).max()
    assert 1e-4 < difference < 0.05
    text_one, text_two = (each.captions(CAPTIONS)[2].tokens for each in (coarse, exact))
    assert 1e-4 < np.abs(text_one - text_two).max() / np.abs(text_two).max() < 0.1


def test_how_many_images_are_encoded_at_once() -> None:
    encoder = build(micro_batch_size=None)
    assert encoder.images_at_once(64, 64) == 64
    assert encoder.images_at_once(256, 256) == 32
    assert encoder.images_at_once(512, 512) == 8
    assert encoder.images_at_once(4096, 4096) == 1
    assert build(micro_batch_size=3).images_at_once(64, 64) == 3


def test_lengths_of_captions_are_rounded_up_within_the_longest() -> None:
    encoder = build()
    assert TEXT_ENCODER.max_length == 32
    assert [encoder.padded_length(length) for length in (1, 8, 9, 25, 32)] == [8, 8, 16, 32, 32]
    encoder.text_encoder.max_length = 20
    assert encoder.padded_length(17) == 20


def test_an_autoencoder_without_log_variance_stores_means_alone() -> None:
    tiny = TinyAutoencoder(TinySizes()).eval()
    text = load_text_encoder(TEXT_ENCODER)
    with pytest.raises(UserError, match=r"choose encoding\.store=mean"):
        Encoder(Autoencoder(tiny, "f"), text, EncodingConfig())
    encoder = Encoder(Autoencoder(tiny, "f"), text, EncodingConfig(store=LatentStore.mean), 2)
    assert encoder.latents(images(3, (16, 16))).result().values.shape == (3, 4, 2, 2)
