"""Random tiny torch models: every parameter drawn, norms and biases too."""

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
