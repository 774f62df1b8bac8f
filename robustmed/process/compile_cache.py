"""The folder of compiled programs, so that a second run does not compile again."""

import pathlib


def folder() -> pathlib.Path:
  """Returns where JAX keeps compiled programs: as configured, else in the user's home."""
  import jax

  return pathlib.Path(
    jax.config.jax_compilation_cache_dir or pathlib.Path.home() / '.cache' / 'robustmed' / 'xla'
  )


def share() -> None:
  """Turns on the persistent compilation cache in the user's home, unless one is set."""
  import jax

  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update('jax_compilation_cache_dir', str(folder()))
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)
