"""robustmed: attack, harden and evaluate medical-image networks in JAX."""

__version__ = '0.1.0'


def tune_cpu() -> str:
  """Sets XLA flags that make the CPU backend faster; call it before the first JAX computation.

  See `robustmed.process.cpu_flags.tune`.
  """
  from robustmed.process import cpu_flags  # here, so that importing the package stays cheap

  return cpu_flags.tune()
