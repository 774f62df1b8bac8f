"""What the report needs to know about an experiment: plain data."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from robustmed import errors
from robustmed.evaluation.claims import Claim

PAPER = ('arm', 'attack', 'eps', 'metric', 'mean')


@dataclasses.dataclass(frozen=True)
class Arm:
  """How one arm is named and drawn; colour None takes the next one of `overlays.COLOURS`."""

  name: str
  label: str = ''
  colour: str | None = None
  line: str = '-'

  @property
  def shown(self) -> str:
    return self.label or self.name


@dataclasses.dataclass(frozen=True)
class Panel:
  """One metric under one attack: a curve figure and a table of arms by levels."""

  metric: str
  attack: str
  higher_is_better: bool = True
  label: str = ''  # of the y axis
  limits: tuple[float, float] | None = None
  aimed: bool = True  # False: the attack does not try to make this metric worse

  @property
  def shown(self) -> str:
    return self.label or self.metric


class Section(NamedTuple):
  """A section of this experiment alone: simple Markdown, picture files, (caption, frame) tables."""

  heading: str
  markdown: str = ''
  figures: Sequence[str | os.PathLike] = ()
  tables: Sequence[tuple[str, pd.DataFrame]] = ()


@dataclasses.dataclass(frozen=True)
class ReportSpec:
  """Everything about the page that is not in the workdir.

  `arms` gives order and style; other arms of the rows follow, arms without rows are left out.
  `paper` holds published means with the columns of `PAPER`. `headline_eps` is the level of the
  verdict in the opening paragraph (None: where the arms differ most). `arms_are`: what an arm is.
  `attack_units` are the units of the levels of attacks that have units of their own. `group_names`
  are names of groups, `classes` those of the labels of stored label maps, the background first.
  """

  title: str
  description: tuple[str, ...] = ()
  panels: tuple[Panel, ...] = ()
  level_units: str = ''
  arms: tuple[Arm, ...] = ()
  claims: tuple[Claim, ...] = ()
  paper: pd.DataFrame | None = None
  notes: tuple[str, ...] = ()
  sections: tuple[Section, ...] = ()
  headline_eps: float | None = None
  arms_are: str = 'one way of training the network'
  attack_units: Mapping[str, str] = dataclasses.field(default_factory=dict)
  group_names: Mapping[int, str] = dataclasses.field(default_factory=dict)
  classes: tuple[str, ...] = ()

  def __post_init__(self):
    if self.paper is not None:
      missing = [name for name in PAPER if name not in self.paper.columns]
      if missing:
        raise errors.UserError(f'the paper values of the report lack the columns {missing}')
