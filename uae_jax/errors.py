"""The one exception that means: the user can fix this."""


class UserError(Exception):
  """One line that says what is wrong and what to change; exit code 2.

  What it repeats of a file or a library may have lines and control characters
  of its own, which would break or repaint a terminal's.
  """

  def __init__(self, text: str):
    lines = str(text).replace('\t', ' ').splitlines()
    line = ' '.join(filter(None, map(str.strip, lines)))
    super().__init__(''.join(c if c.isprintable() else '?' for c in line))
