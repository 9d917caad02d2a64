"""The behaviour policy as a diffusion model: schedule, networks, solvers, samplers."""
