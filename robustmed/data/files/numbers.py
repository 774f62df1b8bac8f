"""Numbers in text files."""


def parsed(text: str) -> float:
  """Returns the number that a text states; `ValueError` for others, among them 1_000.

  Python reads that as 1000, other programs stop before the underscore or refuse it.
  """
  if '_' in text:
    raise ValueError(f'{text!r} has an underscore')
  return float(text)
