"""The calls that users of stable-baselines3 know: VecEnv, callbacks and their locals."""
