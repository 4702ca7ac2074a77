"""Generated backgrounds: inpainting models of diffusers."""
