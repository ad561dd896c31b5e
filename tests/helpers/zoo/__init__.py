"""The zoo: inputs of people who mean harm, each with how a command has to end that meets it."""

from tests.helpers.zoo.animal import Animal
from tests.helpers.zoo.datasets import datasets
from tests.helpers.zoo.sources import folders, tables
from tests.helpers.zoo.tars import tars

__all__ = ["ANIMALS", "Animal"]

ANIMALS: dict[str, list[Animal]] = {
    "folder": list(folders()),
    "table": list(tables()),
    "tar": list(tars()),
    "dataset": list(datasets()),
}
