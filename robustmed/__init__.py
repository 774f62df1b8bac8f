"""robustmed: attack, harden and evaluate medical-image networks in JAX."""

__version__ = '0.1.0'


def tune_cpu() -> str:
  """Sets XLA flags that make the CPU backend faster; call it before the first JAX computation.

  See `robustmed.process.parallel.tune_cpu`.
  """
  from robustmed.process import parallel  # here, so that importing the package stays cheap

  return parallel.tune_cpu()
