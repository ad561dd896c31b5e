import pytest

from conf.secrets import has_credentials, holds_secret, is_secret_name, without_credentials


@pytest.mark.parametrize(
    "name",
    ["AZURE_STORAGE_KEY", "SLURM_JWT", "PGPASS", "DB_PASS", "db_password", "A_CONNECTION_STRING"],
)
def test_a_secret_is_known_by_its_name(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "PWD", "PASSES", "NCCL_DEBUG", "PATH"])
def test_other_names_are_no_secrets(name: str) -> None:
    assert not is_secret_name(name)


@pytest.mark.parametrize(
    "value",
    [
        "http://me:canary@proxy:3128",
        "socks5://proxy,http://me:canary@proxy",
        "https://host/x?sig=canary",
        "host=h user=me password=canary",
        "AccountName=me;AccountKey=canary",
        "--export=ALL,WANDB_API_KEY=canary",
        "Bearer canary-of-a-token",
        "hf_" + 34 * "a",
    ],
)
def test_a_secret_is_known_by_its_value(value: str) -> None:
    assert holds_secret(value)


@pytest.mark.parametrize(
    "value", ["INFO", "^lo,docker0", "http://proxy:3128", "s3://b/key=5/x", "expandable=True", ""]
)
def test_other_values_are_no_secrets(value: str) -> None:
    assert not has_credentials(value)
    assert value == without_credentials(value)


@pytest.mark.parametrize("value", ["INFO", "^lo,docker0", "http://proxy:3128", "a:b=True", "/a/b"])
def test_other_variables_are_no_secrets(value: str) -> None:
    assert not holds_secret(value)


def test_what_is_secret_in_a_url_is_masked() -> None:
    text = "at https://me:canary@h/x?a=1&sig=canary&b=2, postgresql:///d?password=canary"
    shown = "at https://***@h/x?a=1&sig=***&b=2, postgresql:///d?password=***"
    assert without_credentials(text) == shown
