"""The real photographs that ship inside scikit-image and scikit-learn."""

import numpy as np


def photographs() -> dict[str, np.ndarray]:
  """Name -> uint8 [H, W, 3]: whole ones, and odd and long parts of them."""
  from skimage import data
  from sklearn.datasets import load_sample_images

  china, flower = load_sample_images().images
  out = dict(
    astronaut=data.astronaut(),  # 512 x 512
    coffee=data.coffee(),  # 400 x 600
    chelsea=data.chelsea(),  # 300 x 451
    rocket=data.rocket(),  # 427 x 640
    china=china,  # 427 x 640
    flower=flower,
  )
  return (
    out
    | dict(
      tall=out['china'][:, 200:411],  # 427 x 211
      thin=out['flower'][101:134, 3:640],  # 33 x 637
      small=out['chelsea'][20:117, 30:143],  # 97 x 113: enlarged
      exact=out['astronaut'][:224, 100:324],  # 224 x 224
    )
  )
