"""Denoising and super-resolution networks with their images, PSNR and SSIM: the same shape of files as detectors."""
