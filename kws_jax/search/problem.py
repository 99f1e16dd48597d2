"""What a search is asked, and what it answers: the same for every way to search."""

import dataclasses
from typing import Any

from kws_jax import costs
from kws_jax.frontends import FrontEnd
from kws_jax.search import arch as arch_lib
from kws_jax.space import Architecture, SearchSpace


@dataclasses.dataclass(frozen=True)
class Problem:
    """Find an architecture of `space` that costs about `macs`.

    Attributes:
      front_end: what makes the image; counted in both costs.
      space: where to look.
      macs: wanted MACs of the whole network; also the most it may have.
      tolerance: how far below `macs` it may end, as a share.
      parameters: the most parameters it may have, or None.

    Raises:
      ValueError: `macs` or `parameters` is out of what the space holds, or `tolerance` of 0..1.
    """

    front_end: FrontEnd
    space: SearchSpace
    macs: float
    tolerance: float = 0.05
    parameters: float | None = None

    def __post_init__(self):
        """Raises ValueError as above."""
        if not 0 <= self.tolerance < 1:
            raise ValueError(f'tolerance must be in 0..1 (a share of macs), got {self.tolerance}')
        least, most = self.macs_table.bounds
        if not least <= self.macs:
            raise ValueError(
                f'the target of {self.macs:g} MACs is below the smallest network of the space, '
                f'{least:g} (front end {self.front_end.macs:g}); ask for more, or take fewer '
                'filters'
            )
        if self.macs * (1 - self.tolerance) > most:
            raise ValueError(
                f'the target of {self.macs:g} MACs is above the largest network of the space, '
                f'{most:g}; ask for less'
            )
        fewest = self.parameters_table.bounds[0]
        if self.parameters is not None and not fewest <= self.parameters:
            raise ValueError(
                f'parameters is {self.parameters:g}, below the smallest network of the space, '
                f'{fewest:g}; allow more'
            )

    def check_reachable(self) -> None:
        """Makes sure that some architecture meets all bounds, before hours go into a search.

        Raises:
          ValueError: none does.
        """
        parameters = self.parameters_table
        smallest = arch_lib.choose_within(
            self.space,
            [-row for row in parameters.layers],
            self.macs_table,
            **self.bounds,
            bins=1000,
        )
        if self.parameters is not None and parameters.of(smallest) > self.parameters:
            raise ValueError(
                f'parameters is {self.parameters:g}, but networks of {self.bounds["low"]:g} to '
                f'{self.bounds["high"]:g} MACs have at least {parameters.of(smallest):g}; allow '
                'more, or ask for fewer MACs'
            )

    @property
    def macs_table(self) -> costs.CostTable:
        """MACs of every choice."""
        return costs.macs_table(self.space, front_end_macs=self.front_end.macs)

    @property
    def parameters_table(self) -> costs.CostTable:
        """Parameters of every choice."""
        return costs.parameters_table(self.space, front_end_parameters=self.front_end.parameters)

    @property
    def caps(self) -> tuple:
        """Further bounds, as `arch.choose_within` takes them."""
        return () if self.parameters is None else ((self.parameters_table, self.parameters),)

    @property
    def bounds(self) -> dict[str, float]:
        """`low` and `high` of the MACs."""
        return {'low': self.macs * (1 - self.tolerance), 'high': self.macs}


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
      architecture: the choice.
      params, averages: its weights from the supernet, or None where there was none.
      facts: JSON-ready: wall time per phase, expected and final MACs, entropy, and so on.
    """

    architecture: Architecture
    params: Any
    averages: Any
    facts: dict
