"""`llmperf --completion SHELL`: what a shell needs to complete commands, options and choices."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")
_VARIABLE = "_LLMPERF_COMPLETE"


def _print_script(ctx: click.Context, _parameter: click.Parameter, shell: str | None) -> None:
    from click.shell_completion import get_completion_class  # noqa: PLC0415

    if shell is None or ctx.resilient_parsing:
        return
    completion = get_completion_class(shell)
    assert completion is not None  # noqa: S101 - click has the three of SHELLS
    click.echo(completion(ctx.command, {}, "llmperf", _VARIABLE).source())
    ctx.exit()


completion_option = click.option(
    "--completion",
    type=click.Choice(SHELLS),
    is_eager=True,
    expose_value=False,
    callback=_print_script,
    help='Print the script that completes llmperf in a shell: eval "$(llmperf --completion bash)".',
)
