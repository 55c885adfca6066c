"""Random tiny torch models: every parameter drawn, norms and biases too."""

import numpy as np
import torch


def randomise(module: torch.nn.Module) -> torch.nn.Module:
  """Redraws all parameters, so that no zero or one hides a wrong mapping."""
  generator = torch.Generator().manual_seed(1)
  for name, p in module.named_parameters():
    noise = torch.randn(p.shape, generator=generator)
    is_scale = p.ndim == 1 and name.endswith('weight')
    p.data.copy_(
      1 + 0.2 * noise if is_scale else noise * (0.05 if p.ndim > 1 else 0.1)
    )
  return module.eval()


def close(a, b, tol=1e-5):
  """Equal shapes, and no entry off by more than `tol` of the largest."""
  a, b = np.asarray(a), np.asarray(b)
  assert a.shape == b.shape, (a.shape, b.shape)
  assert np.abs(a - b).max() <= tol * np.abs(b).max()


def close_rms(a, b, tol=2e-2):
  """Equal shapes, and a root mean square error within `tol` of that of b."""
  a, b = (np.asarray(x, np.float32) for x in (a, b))
  assert a.shape == b.shape, (a.shape, b.shape)
  assert np.sqrt(np.mean((a - b) ** 2)) <= tol * np.sqrt(np.mean(b**2))
