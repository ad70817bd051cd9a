"""Parts that several memories use: addressing, readers, noise, episode buffers and pictures."""
