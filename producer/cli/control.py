"""Commands that stop a job and let it go on: cancel, pause, resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from producer import repairs
from producer.cli.common import BrokerOption, EndpointOption, err, load_settings
from producer.cli.status import JobArgument, OutOption, reopen

if TYPE_CHECKING:
    import typer


def register(app: typer.Typer) -> None:
    """Add the commands."""

    @app.command(epilog="Example:  vitrina cancel 20261123-142501-3f9a2c")
    def cancel(
        job: str = JobArgument,
        out: str | None = OutOption,
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Drop what is queued and list no further; photos that are being worked on finish."""
        whole = repairs.cancel(reopen(job, out, load_settings(broker=broker, endpoint_url=endpoint_url)))
        err.print(f"cancelled; `vitrina retry {job} --reason cancelled` runs after all what was listed", soft_wrap=True)
        if not whole:
            err.print("the source was not listed to its end: for the rest submit it again, finished photos are skipped")
        return 0

    @app.command(epilog="Example:  vitrina pause 20261123-142501-3f9a2c")
    def pause(
        job: str = JobArgument,
        out: str | None = OutOption,
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Queue nothing more of a job until resume. What is queued goes on."""
        queued = repairs.pause(reopen(job, out, load_settings(broker=broker, endpoint_url=endpoint_url)))
        err.print(
            f"paused; {queued} photos that are queued go on. `vitrina resume {job}` ends the pause", soft_wrap=True
        )
        return 0

    @app.command(epilog="Example:  vitrina resume 20261123-142501-3f9a2c")
    def resume(
        job: str = JobArgument,
        out: str | None = OutOption,
        broker: str | None = BrokerOption,
        endpoint_url: str | None = EndpointOption,
    ) -> int:
        """Go on with a paused job. One whose producer has ended goes on with submit --resume."""
        fed = repairs.resume(reopen(job, out, load_settings(broker=broker, endpoint_url=endpoint_url)))
        hint = "" if fed else f" with what is queued; `vitrina submit --resume {job}` feeds the rest"
        err.print(f"going on{hint}", soft_wrap=True)
        return 0
