"""Stable-Baselines3's interfaces: VecEnv, callbacks and their locals."""
