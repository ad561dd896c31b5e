from pathlib import Path

import numpy as np
import pytest
import torch

from conf.errors import UserError
from training.generate import read_prompts
from training.trained import grid, to_pixels


def test_the_grid_lays_images_out_by_row() -> None:
    images = np.stack([np.full((4, 4, 3), 10 * i, np.uint8) for i in range(5)])
    canvas = grid(images, columns=3, border=1)
    assert canvas.shape == (2 * 5 + 1, 3 * 5 + 1, 3)
    assert (canvas[1:5, 11:15] == 20).all()
    assert (canvas[6:10, 6:10] == 40).all()
    assert (canvas[6:10, 11:15] == 255).all()
    assert (canvas[0] == 255).all()


def test_pixels_round_and_clip() -> None:
    images = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert to_pixels(images)[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_prompts_come_from_a_list_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a red apple\n\n  ein Apfel, größer \n")
    assert read_prompts(str(file)) == ["a red apple", "ein Apfel, größer"]
    assert read_prompts(["one", "two"]) == ["one", "two"]
    assert read_prompts([207, "88"]) == ["207", "88"]


@pytest.mark.parametrize("prompts", ["no/such/file.txt", [], [1.5], [True]])
def test_prompts_that_are_none_are_refused(prompts: object) -> None:
    with pytest.raises(UserError, match="prompts="):
        read_prompts(prompts)


def test_an_empty_file_has_no_prompts(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("\n\n")
    with pytest.raises(UserError, match="no prompts"):
        read_prompts(str(tmp_path / "prompts.txt"))
