"""Diffusion as plain functions of tensors and any denoiser callable. Imports no model."""
