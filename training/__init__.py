"""Models, diffusion, engines and the commands that train, encode, sample and measure."""
