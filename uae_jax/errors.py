"""The one exception that means: the user can fix this."""


class UserError(Exception):
  """One line that says what is wrong and what to change; exit code 2."""
