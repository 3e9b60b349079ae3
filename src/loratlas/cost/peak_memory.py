"""Peak memory of a run as a function of ranks: the measure of a memory budget (`loratlas.placement.budget`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from loratlas.cost.dry_run import dry_run, even_rows, typical

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from loratlas.anatomy.sites import Anatomy
    from loratlas.data.examples import Encoded, Example
    from loratlas.training.settings import Settings


class PeakMemory:
    """What a table of ranks holds at its peak, in bytes. Made by `of_run` or `of_step`.

    Args:
        config: of the base.
        anatomy: of the base.
        examples: of a step.
        settings: of the run.
        repeated_tokens: as for `loratlas.cost.dry_run.dry_run`.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        anatomy: Anatomy,
        examples: Sequence[Example],
        settings: Settings,
        *,
        repeated_tokens: int | None,
    ) -> None:
        self._config, self._examples, self._settings = config, examples, settings
        self._repeated_tokens = repeated_tokens
        self._sites = {site.path: site for site in anatomy.sites}
        self._known: dict[tuple[tuple[str, int], ...], int] = {}

    @classmethod
    def of_run(
        cls, config: PretrainedConfig, anatomy: Anatomy, data: Encoded, settings: Settings
    ) -> PeakMemory:
        """Of a run over these rows.

        A step is one of typical rows. Where the run sees rows more than once, states of all of them at the lowest
        adapted layer are part of the peak, for a run keeps them (`loratlas.training.step.frozen_prefix`): so the budget
        holds whether there is room for them on the day or not.

        Args:
            config: of the base.
            anatomy: of the base.
            data: the rows.
            settings: of the run.

        Example:
            ``memory = PeakMemory.of_run(config, anatomy, rows, settings)``, then
            ``place(anatomy, "all@top/2", budget="memory=6GB", memory=memory)``
        """
        seen = min(len(data), settings.subset or len(data))
        visits = settings.steps_for(len(data)) * settings.batch_size
        repeated = data.report.tokens * seen // len(data) if visits > seen else None
        step = typical(data.examples, settings.batch_size)
        return cls(config, anatomy, step, settings, repeated_tokens=repeated)

    @classmethod
    def of_step(
        cls, config: PretrainedConfig, anatomy: Anatomy, settings: Settings, *, length: int
    ) -> PeakMemory:
        """Of a step of rows of one length, ``settings.batch_size`` of them, that come once.

        Args:
            config: of the base.
            anatomy: of the base.
            settings: of the run.
            length: tokens of each row.
        """
        rows = even_rows(settings.batch_size, length)
        return cls(config, anatomy, rows, settings, repeated_tokens=None)

    def __call__(self, ranks: Mapping[str, int]) -> int:
        """Peak bytes of these ranks by site; known from the second time on."""
        from loratlas.adapters.plan_row import PlanRow

        table = tuple(sorted(ranks.items()))
        if table not in self._known:
            rows = [
                PlanRow(site=self._sites[path], rank=rank, alpha=2.0 * rank) for path, rank in ranks.items()
            ]
            step = dry_run(
                self._config, rows, self._examples, self._settings, repeated_tokens=self._repeated_tokens
            )
            self._known[table] = step.peak_bytes
        return self._known[table]
