import pytest
import torch

from conf.enums import Prediction
from training.diffusion.guidance import guided
from training.diffusion.prediction import to_x0_and_epsilon


@pytest.mark.parametrize(
    ("scale", "expected"), [(0.0, 100.0), (0.5, 102.5), (1.0, 105.0), (2.0, 110.0), (7.5, 137.5)]
)
def test_guidance_extrapolates_from_the_empty_to_the_conditional_answer(scale, expected):
    denoiser = guided(lambda noisy, timesteps, condition: noisy + condition, 100.0, scale)
    assert denoiser(torch.zeros(1, 1), torch.tensor([0]), 105.0).item() == pytest.approx(expected)


@pytest.mark.parametrize(("scale", "conditions"), [(1.0, ["cat"]), (3.0, ["", "cat"])])
def test_both_calls_see_the_same_noisy_latents_and_scale_1_makes_one(scale, conditions):
    noisy, timesteps = torch.ones(1, 2), torch.tensor([3])
    calls = []

    def denoiser(*arguments):
        calls.append(arguments)
        return arguments[0]

    guided(denoiser, "", scale)(noisy, timesteps, "cat")
    assert sorted(condition for _, _, condition in calls) == conditions
    assert all(call[0] is noisy and call[1] is timesteps for call in calls)


@pytest.mark.parametrize("kind", list(Prediction))
def test_guiding_any_prediction_guides_x0_and_epsilon_alike(kind):
    """The kinds are affine in one another, so guidance commutes with the conversion."""
    alpha, sigma, scale = 0.6, 0.8, 4.0
    noisy, cond, uncond = torch.randn(3, 1, 5, generator=torch.Generator().manual_seed(0))
    denoiser = guided(lambda noisy, timesteps, condition: condition, uncond, scale)
    output = denoiser(noisy, torch.tensor([0]), cond)
    got = to_x0_and_epsilon(kind, output, noisy, alpha, sigma)
    of_cond = to_x0_and_epsilon(kind, cond, noisy, alpha, sigma)
    of_uncond = to_x0_and_epsilon(kind, uncond, noisy, alpha, sigma)
    for part, with_condition, without in zip(got, of_cond, of_uncond, strict=True):
        torch.testing.assert_close(
            part, without + scale * (with_condition - without), atol=1e-5, rtol=1e-5
        )


def test_variances_are_those_of_the_conditional_answer():
    cond, uncond = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    answers = {"cat": cond, "": uncond}
    denoiser = guided(lambda noisy, timesteps, condition: answers[condition], "", 3.0)
    output = denoiser(torch.zeros(3, 2, 5), torch.zeros(3, dtype=torch.int64), "cat")
    torch.testing.assert_close(output[:, :2], uncond[:, :2] + 3 * (cond - uncond)[:, :2])
    assert torch.equal(output[:, 2:], cond[:, 2:])
