"""Hyper-parameter search scored by cross-entropy on held-out data: grid, random, Bayesian; and temperature scaling.

Sampling and storage are Optuna's (``pip install "crossent-jax[tune]"``); what is added is JAX's part: the trials of a batch,
and the seeds of each, train together in one compiled program. Every trial is scored by the plain negative log-likelihood of
held-out labels, in nats, whatever loss it was trained with: with label smoothing, a temperature, class weights or a z-loss
the training losses of two trials are different quantities.
"""

try:
    import optuna as optuna
except ImportError as error:
    raise ImportError('crossent_jax.tuning needs Optuna: pip install "crossent-jax[tune]"') from error

from ._calibration import Reliability as Reliability
from ._calibration import fit_temperature as fit_temperature
from ._calibration import reliability as reliability
from ._plots import plot_best_so_far as plot_best_so_far
from ._plots import plot_reliability as plot_reliability
from ._search import search as search
from ._training import training as training
