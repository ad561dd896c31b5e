import copy
import re
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.compose import compose_config
from conf.encoders import (
    KLAutoencoderConfig,
    TextEncoderConfig,
    TextModelConfig,
    TrainedAutoencoderConfig,
)
from conf.enums import Crop, EngineKind, ImageFormat, Pooled, Prediction, ScheduleKind
from conf.errors import UserError
from conf.groups import TableSource, WebDatasetSource
from conf.rules import check, field_bound
from conf.training_rules import micro_batch
from tests.conf.minimum import minimum

COUNTS = [
    ("shard", "size"),
    ("shard", "shard_samples"),
    ("cache", "micro_batch_size"),
    ("sample", "images_per_prompt"),
    ("sample", "sampler.steps"),
    ("evaluate", "draws"),
    *(
        (command, name)
        for command in ("autoencoder", "train")
        for name in (
            "batch_size",
            "micro_batch_size",
            "train.samples",
            "cluster.processes",
            "checkpoint.every_samples",
            "checkpoint.keep_last",
            "tracking.log_every_samples",
            "data.block_shards",
        )
    ),
]
SHARES = [
    ("shard", "source.held_out_share"),
    ("shard", "max_bad_share"),
    ("train", "diffusion.caption_dropout"),
    ("sample", "sampler.eta"),
]


@cache
def _composed(command):
    return compose_config(command, minimum(command))


def _with(command, **values):
    """The smallest configuration of a command, changed in places (`data__threads` for dots)."""
    config = copy.deepcopy(_composed(command))
    for name, value in values.items():
        *groups, last = name.split("__")
        owner = config
        for group in groups:
            owner = getattr(owner, group)
        setattr(owner, last, value)
    return config


def _refused(config):
    with pytest.raises(UserError) as caught:
        check(config)
    return caught.value


@pytest.mark.parametrize(("command", "name"), COUNTS)
@pytest.mark.parametrize("value", [0, -1])
def test_a_count_is_at_least_one(command, name, value):
    error = _refused(_with(command, **{name.replace(".", "__"): value}))
    assert str(error) == f"{name}={value}: is too small; give 1 or more"


@pytest.mark.parametrize(("command", "name"), COUNTS)
def test_one_is_enough(command, name):
    assert check(_with(command, **{name.replace(".", "__"): 1})) is None


@pytest.mark.parametrize(("command", "name"), SHARES)
def test_a_share_lies_between_none_and_all(command, name):
    field = name.replace(".", "__")
    for value in (0.0, 0.5, 1.0):
        check(_with(command, **{field: value}))
    for value in (-0.01, 1.01, float("nan"), float("inf")):
        assert _refused(_with(command, **{field: value})).setting == f"{name}={value}"


@pytest.mark.parametrize("command", ["autoencoder", "train"])
def test_one_rank_engine_takes_one_process(command):
    more = {"cluster__processes": 2, "batch_size": 8}
    error = _refused(_with(command, **more))
    assert error.setting == "engine=single"
    assert "cluster.processes=2" in error.wrong
    assert "engine=ddp" in error.remedy
    check(_with(command, **more, engine__kind=EngineKind.ddp))


@pytest.mark.parametrize("command", ["autoencoder", "train"])
def test_a_hang_lasts_long_enough_to_be_told_from_work(command):
    error = _refused(_with(command, guards__hang_seconds=1.5))
    assert error.setting == "guards.hang_seconds=1.5" and "2 or more" in error.remedy
    for seconds in (0.0, 2.0, 1200.0):
        check(_with(command, guards__hang_seconds=seconds))


@pytest.mark.parametrize("command", ["autoencoder", "train"])
def test_an_unknown_cluster_is_refused(command):
    assert _refused(_with(command, cluster__kind="moon")).setting == "cluster=moon"


@pytest.mark.parametrize("command", ["autoencoder", "train"])
def test_ranks_that_do_not_divide_the_batch_are_refused(command):
    ranks = {"engine__kind": EngineKind.ddp, "cluster__processes": 3}
    assert "the nearest is 9" in str(_refused(_with(command, **ranks, batch_size=8)))
    check(_with(command, **ranks, batch_size=9))


def test_only_an_untrained_autoencoder_can_be_trained():
    trained = TrainedAutoencoderConfig(url="run")
    error = _refused(_with("autoencoder", autoencoder=trained))
    assert error.setting == "autoencoder=trained"


def test_only_a_trained_autoencoder_makes_a_cache():
    error = _refused(_with("cache", autoencoder=KLAutoencoderConfig()))
    assert error.setting == "autoencoder=kl"
    assert "autoencoder.url=" in error.remedy


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "verify"])
def test_an_autoencoder_that_others_are_to_train_is_no_autoencoder_to_use(command):
    more = {"audit": 1} if command == "verify" else {}
    error = _refused(_with(command, autoencoder=KLAutoencoderConfig(), **more))
    assert (error.setting, error.wrong) == ("autoencoder=kl", "has no weights")


def test_what_cannot_be_cached_is_refused():
    assert _refused(_with("cache", sizes=[256, 256])).setting == "sizes=[256, 256]"
    ranks = {"rank": 1, "world_size": 8, "cluster__processes": 4}
    assert _refused(_with("cache", **ranks)).setting == "cluster.processes=4"
    assert _refused(_with("cache", encoding__captions=["a", "a"])).wrong == "names a field twice"
    assert _refused(_with("cache", rank=1)).setting == "rank"
    check(_with("cache", sizes=[256, 512]))


@pytest.mark.parametrize("prompts", ["prompts.txt", ["a cat"], ["a cat", "a dog"], [207, 88]])
def test_prompts_are_texts_or_a_url(prompts):
    assert check(_with("sample", prompts=prompts)) is None


@pytest.mark.parametrize(
    "prompts", [None, 3, [], "", [3.5], [True], {"_target_": "os.system"}, [["a"]]]
)
def test_anything_else_is_no_prompt(prompts):
    error = _refused(_with("sample", prompts=prompts))
    assert error.setting == f"prompts={prompts}"
    assert "['red apple','a cat']" in error.remedy


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"path": "classes://"}, "text_encoder.path=classes://"),
        ({"path": "classes://0"}, "text_encoder.path=classes://0"),
        ({"path": "classes://65536"}, "text_encoder.path=classes://65536"),
        ({"max_length": 77}, "text_encoder.max_length"),
        ({"padding": True}, "text_encoder.padding"),
        ({"layer": -2}, "text_encoder.layer"),
        ({"pooled": Pooled.pooled}, "text_encoder.pooled"),
        ({"subfolder": "text_encoder"}, "text_encoder.subfolder"),
        ({"joined": [TextModelConfig(path="clip")]}, "text_encoder.joined"),
        (
            {"path": "clip", "joined": [TextModelConfig(path="classes://5")]},
            "text_encoder.joined",
        ),
    ],
    ids=str,
)
def test_classes_are_no_text_model(values, setting):
    classes = {"path": "classes://1000", "max_length": 1}
    check(_with("cache", text_encoder=TextEncoderConfig(**classes)))
    check(_with("cache", text_encoder=TextEncoderConfig(**classes | {"path": "classes://a.txt"})))
    refused = _with("cache", text_encoder=TextEncoderConfig(**classes | values))
    assert _refused(refused).setting == setting


# --- batch arithmetic

SIZES = st.integers(1, 2000)
FEW = st.integers(1, 32)


@given(micro=FEW, ranks=FEW, steps=FEW)
def test_a_batch_is_micro_batches_times_ranks_times_steps(micro, ranks, steps):
    assert micro_batch(micro * ranks * steps, micro, ranks) == micro


@given(micro=SIZES, ranks=FEW)
def test_without_a_micro_batch_a_rank_takes_its_share_at_once(micro, ranks):
    assert micro_batch(micro * ranks, None, ranks) == micro


@given(batch=SIZES, micro=st.none() | FEW, ranks=FEW)
def test_the_arithmetic_holds_or_names_the_nearest_batch_that_works(batch, micro, ranks):
    def works(size):
        return size > 0 and size % (ranks * (micro or 1)) == 0

    if works(batch):
        assert batch % (micro_batch(batch, micro, ranks) * ranks) == 0
        return
    with pytest.raises(UserError) as caught:
        micro_batch(batch, micro, ranks)
    assert caught.value.setting == f"batch_size={batch}"
    nearest = int(re.search(r"the nearest is (\d+)$", str(caught.value))[1])
    assert works(nearest)
    distance = abs(nearest - batch)
    assert not any(works(size) for size in range(batch - distance + 1, batch + distance))


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("aesthetic>=5", ("aesthetic", ">=", 5.0)),
        (" a b <= -1.5e2 ", ("a b", "<=", -150.0)),
        ("a.b>=0", ("a.b", ">=", 0.0)),
    ],
)
def test_a_bound_is_a_name_a_sign_and_a_number(text, bound):
    assert field_bound(text) == bound


@pytest.mark.parametrize(
    "text", ["", "a", "a=5", "a>5", "a>=", ">=5", "a>=b", "a>=nan", "a<=inf", "1<=a<=5", "a>==5"]
)
def test_what_is_no_bound_is_refused(text):
    error = _refused(_with("shard", filter__fields=["a>=1", text]))
    assert error.setting == f"filter.fields={text}" and "NAME>=NUMBER" in error.remedy


def test_an_aspect_below_one_is_refused():
    assert _refused(_with("shard", filter__max_aspect=0.9)).setting == "filter.max_aspect=0.9"


@pytest.mark.parametrize(
    ("columns", "weights", "setting"),
    [
        ([], None, "caption_columns"),
        (["a", "a"], None, "caption_columns"),
        (["a", "b"], [1.0], "caption_weights"),
        (["a", "b"], [0.0, 0.0], "caption_weights"),
        (["a", "b"], [1.0, -1.0], "caption_weights"),
        (["a", "b"], [1.0, float("nan")], "caption_weights"),
    ],
)
def test_caption_columns_and_weights_that_do_not_fit_are_refused(columns, weights, setting):
    source = TableSource(path="t.csv", caption_columns=columns, caption_weights=weights)
    assert _refused(_with("shard", source=source)).setting.startswith(f"source.{setting}=")


def test_caption_columns_and_weights_that_fit_are_taken():
    for weights in (None, [1.0, 0.0]):
        source = TableSource(path="t.csv", caption_columns=["a", "b"], caption_weights=weights)
        check(_with("shard", source=source))


@pytest.mark.parametrize("command", ["autoencoder", "train"])
@pytest.mark.parametrize(
    ("also", "weights", "setting"),
    [
        (["a", "a"], None, "data.also"),
        (["1"], None, "data.also"),  # that of data.url
        (["a"], [1.0], "data.weights"),
        ([], [1.0, 1.0], "data.weights"),
        (["a"], [1.0, 0.0], "data.weights"),
        (["a"], [1.0, -1.0], "data.weights"),
        (["a"], [1.0, float("nan")], "data.weights"),
    ],
)
def test_datasets_and_weights_that_do_not_fit_are_refused(command, also, weights, setting):
    error = _refused(_with(command, data__also=also, data__weights=weights))
    assert error.setting.startswith(f"{setting}=")


def test_datasets_and_weights_that_fit_are_taken():
    for also, weights in (([], None), (["a"], None), (["a"], [3.0, 0.5]), ([], [2.0])):
        check(_with("train", data__also=also, data__weights=weights))


def test_the_step_of_buckets_divides_the_size():
    check(_with("shard", size=100))
    with pytest.raises(UserError, match=r"buckets.step=64: does not divide size=100; .* is 128"):
        check(_with("shard", size=100, buckets__max_aspect=2))
    check(_with("shard", size=128, buckets__max_aspect=2))


def test_a_quality_is_refused_where_it_does_nothing():
    check(_with("shard", quality=90, format=ImageFormat.webp))
    with pytest.raises(UserError, match=r"^quality=90: does nothing for format=png"):
        check(_with("shard", quality=90))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rank": 0}, "rank: is given without world_size"),
        ({"world_size": 2}, "world_size: is given without rank"),
        ({"rank": 2, "world_size": 2}, "rank=2: is not below world_size=2"),
    ],
)
def test_rank_and_world_size_belong_together(settings, words):
    check(_with("shard", rank=1, world_size=2))
    with pytest.raises(UserError, match=words):
        check(_with("shard", **settings))


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"crop": Crop.random}, "crop"),
        ({"format": ImageFormat.jpeg}, "format"),
        ({"format": ImageFormat.jpeg, "quality": 90}, "format"),
    ],
)
def test_what_would_change_images_is_refused_for_tars_left_in_place(settings, name):
    source = WebDatasetSource(path="a", in_place=True)
    check(_with("shard", source=source, size=128, buckets__max_aspect=2))
    with pytest.raises(UserError, match=rf"^{name}: does nothing with source.in_place=true"):
        check(_with("shard", source=source, **settings))


def test_a_check_is_refused_where_images_are_decoded_anyway():
    with pytest.raises(UserError, match=r"^source.check=true: does nothing"):
        check(_with("shard", source=WebDatasetSource(path="a", check=True)))


@pytest.mark.parametrize(
    ("values", "setting"),
    [
        ({"schedule": ScheduleKind.flow}, "diffusion.prediction=epsilon"),
        ({"zero_terminal_snr": True}, "diffusion.prediction=epsilon"),
        (
            {"zero_terminal_snr": True, "continuous": True, "prediction": Prediction.velocity},
            "diffusion.zero_terminal_snr=true",
        ),
        (
            {"zero_terminal_snr": True, "schedule": ScheduleKind.ve, "prediction": Prediction.x0},
            "diffusion.zero_terminal_snr=true",
        ),
        (
            {"schedule": ScheduleKind.ve, "sigma_min": 2.0, "sigma_max": 2.0},
            "diffusion.sigma_min=2.0",
        ),
        *(
            ({"learned_variance": True, **more}, "diffusion.learned_variance=true")
            for more in (
                {"schedule": ScheduleKind.flow, "prediction": Prediction.flow},
                {"schedule": ScheduleKind.ve},
                {"continuous": True},
                {"num_timesteps": 1},
                {"offset_noise": 0.1},
            )
        ),
    ],
    ids=str,
)
def test_objectives_that_cannot_work_are_refused(values, setting):
    changes = {f"diffusion__{name}": value for name, value in values.items()}
    assert _refused(_with("train", **changes)).setting == setting


def test_variances_are_learned_with_discrete_schedules_those_without_last_signal_too():
    change = {"diffusion__learned_variance": True, "diffusion__prediction": Prediction.velocity}
    check(_with("train", **change))
    check(_with("train", **change, diffusion__zero_terminal_snr=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation__url": "1"}, r"validation\.url=1: is trained on"),
        ({"validation__prompts": ["a", " "]}, r"validation\.prompts=.*has an empty one"),
        (
            {"validation__prompts": ["a"], "validation__sampler__steps": 1001},
            r"validation\.sampler\.steps=1001: .* on 1000 timesteps",
        ),
        ({"validation__bins": 0}, r"validation\.bins=0: is too small"),
    ],
)
def test_validation_that_cannot_be_measured_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(_with("train", **changes))


@pytest.mark.parametrize("command", ["train", "autoencoder"])
def test_no_checkpoint_is_the_best_of_a_run_without_validation(command):
    with pytest.raises(UserError, match=r"checkpoint\.keep_best=2: goes by the validation loss"):
        check(_with(command, checkpoint__keep_best=2))
    if command == "train":
        check(_with("train", checkpoint__keep_best=2, validation__url="held_out"))


def test_validation_of_another_dataset_is_allowed():
    check(_with("train", validation__url="held_out", validation__prompts=["a red apple"]))


@pytest.mark.parametrize(
    ("command", "lengths", "wrong"),
    [("train", [0.05, 0.05], "twice"), ("autoencoder", [0.05, 0.1], "denoiser only")],
)
def test_lengths_of_averages_that_are_of_no_use(command, lengths, wrong):
    check(_with("train", train__ema_lengths=[0.05, 0.1]))
    error = _refused(_with(command, train__ema_lengths=lengths))
    assert error.setting == f"train.ema_lengths={lengths}"
    assert wrong in error.wrong


def test_a_time_limit_is_for_training():
    check(_with("train", cluster__minutes=60.0))
    assert _refused(_with("cache", cluster__minutes=60.0)).setting == "cluster.minutes=60.0"


@pytest.mark.parametrize("command", ["autoencoder", "train"])
@pytest.mark.parametrize(
    ("setting", "taken"),
    [
        ("offload_optimizer", ("zero1", "zero2", "zero3")),
        ("offload_parameters", ("zero3",)),
        ("compile", ("single", "ddp", "zero1", "zero2")),
    ],
)
def test_settings_of_an_engine_are_refused_with_others(command, setting, taken):
    for kind in EngineKind:
        config = _with(command, **{"engine__kind": kind, f"engine__{setting}": True})
        if kind.value in taken:
            check(config)
        else:
            error = _refused(config)
            assert error.setting == f"engine.{setting}=true"
            assert "engine=zero" in error.remedy


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:canary@bucket/run",
        "https://me:canary@host/x",
        "s3://b/x?X-Amz-Signature=canary",
        "https://host/x?X-Goog-Signature=canary",
        "https://host/x?sv=2024&sig=canary",
        "postgresql:///db?host=h&user=me&password=canary",
        "simplecache::https://me:canary@host/x",
    ],
)
def test_a_url_with_credentials_is_refused_and_not_repeated(url):
    for values in ({"out": url}, {"data__url": url}, {"data__also": ["s3://bucket/x", url]}):
        error = _refused(_with("train", **values))
        assert "holds credentials" in str(error)
        assert "canary" not in str(error)


def test_no_error_repeats_the_password_of_a_url():
    with pytest.raises(UserError) as caught:
        compose_config("train", ["dta.url=https://me:canary@host/x"])
    assert "canary" not in str(caught.value)
